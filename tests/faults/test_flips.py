"""Damaged files between stages: refused, or without any effect."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.page import Record
from safetensors.torch import load_file
from trainings import PackedCorpus, evaluate_in, train

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.manifests.row_table import read_rows
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.data.specs import CLIPS, EVAL_CLIPS, MEASURED, TableSpec, codes_spec
from higgs_pipe.data.tables import open_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import BASE_FILE, AdapterBase
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.listening.breakdown import Breakdown
from higgs_pipe.listening.spoken import GENERATED, Generation
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.training.checkpoints import Checkpoints
from higgs_pipe.training.results import (
    EvalMetrics,
    Preflight,
    RunInfo,
    TrainedSettings,
    TrainingLog,
)

SEED = 20_261_126
NUM_FLIPS = 25  # of one bit; then a truncation, and sixteen zeros


def table(spec: TableSpec) -> Callable[[Path], Any]:
    return lambda path: open_table(path, spec).read()


def packed(path: Path) -> Any:
    rows = PackedRows(path)
    return [str(rows[index]) for index in range(len(rows))]


def adapter(file: Path) -> Any:
    base = AdapterBase.read(file.with_name(BASE_FILE))
    weights = load_file(file.with_name("adapter_model.safetensors"))
    return base, {name: tensor.tolist() for name, tensor in weights.items()}


def checkpoint(file: Path) -> Any:
    state = Checkpoints(file.parent, {"seed": "1"}, 2).load_latest()
    if state is None:
        raise UserError("the one before is used")
    return state["weights"].tolist()


def rows(path: Path) -> tuple[Any, ...]:
    """Return every row and all other facts about the manifests."""
    found = read_rows(path)
    return *found.rows, found.ignored_keys, found.notes, found.left_out


# Each file of a run, and the reader that its next stages use.
READERS: dict[str, Callable[[Path], Any]] = {
    "data/rows.parquet": rows,
    "data/measured/shard-00000.parquet": table(MEASURED),
    "data/clips.parquet": table(CLIPS),
    "data/validation.json": ValidationSummary.read,
    "codes/shard-00000.parquet": table(codes_spec(8)),
    "packed/train.parquet": packed,
    "packed/packing.json": PackingSummary.read,
    "models/base_model.json": PinnedModel.read,
    "train/metrics.jsonl": TrainingLog.read,
    "train/run.json": RunInfo.read,
    "train/config.json": TrainedSettings.read,
    "train/preflight.json": Preflight.read,
    "train/adapter/adapter_config.json": adapter,
    "train/adapter/adapter_model.safetensors": adapter,
    "train/adapter/base_model.json": adapter,
    "checkpoints/step-00000001.pt": checkpoint,
    "eval/metrics.json": EvalMetrics.read,
    "eval/verdict.json": Verdict.read,
    "eval/breakdown.json": Breakdown.read,
    "eval/generation.json": Generation.read,
    "eval/clips.parquet": table(EVAL_CLIPS),
    "eval/generation.parquet": table(GENERATED),
}


@pytest.fixture(scope="module")
def run(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file, each made by its own stage."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("data", "codes", "packed"):
        (folder / name).symlink_to(corpus.directory / name)
    train(corpus, folder / "train", num_epochs=1, eval_steps=1)
    evaluate_in(folder, corpus, folder / "train/adapter", num_prompts=1, max_seconds=0.3)
    PinnedModel.of(Pretrained("base_model", str(corpus.base))).write(
        folder / "models/base_model.json"
    )
    state = {"weights": torch.arange(50.0)}
    Checkpoints(folder / "checkpoints", {"seed": "1"}, 2).save(1, state)
    return folder


def damaged(content: bytes, seed: str) -> list[bytes]:
    """The content with one bit flipped, at seeded places; cut; with sixteen bytes set to zero."""
    draw = random.Random(seed)
    variants = []
    for _ in range(NUM_FLIPS):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        variants.append(bytes(changed))
    place = draw.randrange(len(content) - 16)
    return [*variants, content[:place], content[:place] + bytes(16) + content[place + 16 :]]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_never_changes_a_result_silently(
    run: Path, tmp_path: Path, name: str, record: Record
) -> None:
    read, file = READERS[name], tmp_path / name
    file.parent.mkdir(parents=True)
    for beside in (run / name).parent.iterdir():
        if beside.is_file():
            file.with_name(beside.name).write_bytes(beside.read_bytes())
    whole, content = read(file), file.read_bytes()
    refused = equal = 0
    for variant in damaged(content, f"{SEED} {name}"):
        file.write_bytes(variant)
        try:
            assert read(file) == whole
            equal += 1
        except UserError:
            refused += 1
    record("a flipped bit, a truncation, zeros", f"`{name}`", refused=refused, equal=equal)
    assert refused > NUM_FLIPS / 5  # the rest hit what nothing reads
