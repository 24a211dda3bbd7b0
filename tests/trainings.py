"""A small packed corpus, and trainings and evaluations on it, for several test files.

Importing this takes seconds, for PyTorch and PEFT; ``helpers`` does without them.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import ROOT, environment_with, python_path, write_stage_config

import higgs_pipe.evaluate
import higgs_pipe.train
from higgs_pipe import pack
from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained, TrainStage, load_stage
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.data.tables import read_table, write_table
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.planning.launching import launch_command
from higgs_pipe.training.step import Stepper
from higgs_pipe.training.training import Training


@dataclass(frozen=True)
class PackedCorpus:
    """A small corpus after validate, tokenize and pack."""

    directory: Path
    base: Path

    @property
    def clips(self) -> Path:
        return self.directory / "data" / "clips.parquet"

    @property
    def codes_dir(self) -> Path:
        return self.directory / "codes"

    @property
    def train_rows(self) -> Path:
        return self.directory / "packed" / "train.parquet"

    @property
    def eval_rows(self) -> Path:
        return self.directory / "packed" / "eval.parquet"

    def changed(self, directory: Path, changes: Mapping[str, Mapping[str, Any]]) -> "PackedCorpus":
        """The corpus with other values in some clips of its table; not packed."""
        table = read_table(self.clips, CLIPS)
        rows = [row | changes.get(row["clip_id"], {}) for row in table.to_pylist()]
        write_table(directory / "data" / "clips.parquet", CLIPS, rows)
        shutil.copy(self.directory / "data" / "validation.json", directory / "data")
        (directory / "codes").symlink_to(self.codes_dir)
        return PackedCorpus(directory, self.base)

    def pack(self, output_dir: Path, **settings: Any) -> dict[str, Any]:
        """Pack the corpus with other settings into ``output_dir``; returns packing.json."""
        config = write_stage_config(
            output_dir / "pack.json", base_model=str(self.base), pack=settings
        )
        packing = output_dir / "packing.json"
        pack.run(
            config,
            self.clips,
            self.codes_dir,
            2,
            output_dir / "train.parquet",
            output_dir / "eval.parquet",
            packing,
        )
        summary: dict[str, Any] = json.loads(packing.read_text())
        return summary


def launch(
    num_processes: int, *arguments: str, accelerate_config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Start a Python program in ``num_processes`` processes, as the training rule does."""
    launcher = launch_command(
        num_processes,
        num_processes,
        ROOT / "workflow/accelerate.yaml",
        accelerate_config=None if accelerate_config is None else str(accelerate_config),
    )
    environment = environment_with(PYTHONPATH=python_path(ROOT / "tests"))
    return subprocess.run(
        f"exec {sys.executable} {launcher.removeprefix('python')} {shlex.join(arguments)}",
        shell=True,
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def train(
    corpus: PackedCorpus,
    output: Path,
    train_rows: Path | None = None,
    base: Path | None = None,
    **settings: object,
) -> list[dict[str, Any]]:
    """Train in this process, on the CPU; returns the lines of metrics.jsonl.

    For another base the rows are packed anew.
    """
    eval_rows = corpus.eval_rows
    if base is not None:
        PackedCorpus(corpus.directory, base).pack(output / "packed", max_tokens=512)
        train_rows, eval_rows = (output / f"packed/{split}.parquet" for split in ("train", "eval"))
    config = write_stage_config(
        output / "train.json",
        base_model=str(base or corpus.base),
        train={"device": "cpu", "tracker": "none", **settings},
    )
    higgs_pipe.train.run(config, train_rows or corpus.train_rows, eval_rows, output)
    return log_of(output)


def log_of(output: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def training_of(corpus: PackedCorpus, **settings: Any) -> Training:
    """Return the training the stage would start: in this process, on the CPU, exact."""
    exact = {"device": "cpu", "dtype": "float64", "tracker": "none"}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        write_stage_config(path, base_model=str(corpus.base), train=exact | settings)
        stage = load_stage(TrainStage, path)
    base = base_of_rows(corpus.train_rows, stage.pretrained_base)
    tables = PackedRows(corpus.train_rows), PackedRows(corpus.eval_rows)
    return Training(stage, base, *tables, Accelerator(cpu=True))


def end_in_step(patch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Send SIGTERM to this process in the given step; the list gets an entry per step."""
    step = Stepper.step
    steps: list[int] = []

    def counted(self: Stepper, *arguments: Any, **options: Any) -> Any:
        steps.append(len(steps) + 1)
        if steps[-1] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **options)

    patch.setattr(Stepper, "step", counted)
    return steps


def evaluate_in(
    output: Path,
    corpus: PackedCorpus,
    adapter: Path,
    eval_rows: Path | None = None,
    ancestor: Path | None = None,
    **settings: Any,
) -> Path:
    """Evaluate an adapter in this process, on the CPU; returns the folder of the results."""
    config = write_stage_config(
        output / "eval.json", base_model=str(corpus.base), eval={"device": "cpu", **settings}
    )
    higgs_pipe.evaluate.run(
        config,
        corpus.clips,
        eval_rows or corpus.eval_rows,
        adapter,
        eval_dir=output / "eval",
        samples_dir=output / "samples",
        ancestor_dir=ancestor,
    )
    return output / "eval"


def dropping_model(base: Path) -> DualLossModel:
    """A model in float64 that trains, with dropout, whose LoRA is not zero."""
    native = load_base(Pretrained("base_model", str(base)), torch.float64)
    adapted = add_lora(native, LoraSettings(dropout=0.3), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.full_like(parameter, 0.01).cumsum(0) % 0.1
    return DualLossModel(adapted).train()
