"""The stages of a small run: what each reads and writes, and how it is started and ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers import ROOT, python_path, write_stage_config
from leftovers import unmarked_environment
from trainings import PackedCorpus

from higgs_pipe.higgs.v2.miniature import AUDIO_TOKENIZER
from higgs_pipe.planning.model_types import V2


@dataclass
class Zygote:
    """Starts stages as processes of their own; see the module of that name."""

    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        environment = {
            **unmarked_environment(),
            "PYTHONPATH": python_path(ROOT / "tests"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, module: str, arguments: list[str], stderr: Path, **fault: str | float) -> int:
        """Run a stage with a fault of :mod:`faults.zygote`; return its exit code.

        It is minus the number of the signal that ended it.
        """
        return self.answer(module, arguments, stderr, **fault)[0]

    def answer(
        self, module: str, arguments: list[str], stderr: Path, **fault: str | float
    ) -> list[int]:
        """Return the exit code of each copy of a stage and the number of writes of one copy."""
        job: dict[str, Any] = {"module": module, "arguments": arguments, "stderr": str(stderr)}
        job |= dict.fromkeys(("at_write", "end_by", "after_seconds", "fault"))
        job |= {"num_copies": 1, **fault}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer: list[int] = json.loads(self._line())
        return answer


@dataclass(frozen=True)
class Stage:
    """A stage with the results of an undisturbed run."""

    module: str
    inputs: dict[str, Path]  # by option
    outputs: dict[str, str]  # by option, below the folder of the results
    others: tuple[str, ...] = ()  # more options
    compared: str = ""  # beginning of the names of the results that no clock changes
    num_writes: int = 0  # of an undisturbed run
    everything: dict[str, bytes] = field(default_factory=dict)  # that it leaves

    @property
    def whole(self) -> dict[str, bytes]:
        return self.comparable(self.everything)

    def measured(self, zygote: Zygote, folder: Path) -> Stage:
        """Return the stage with the results of an undisturbed run."""
        stderr = folder.with_name("stderr")
        code, num_writes = zygote.answer(self.module, self.arguments(emptied(folder)), stderr)
        assert code == 0, stderr.read_text()
        return replace(self, num_writes=num_writes, everything=results_in(folder))

    def results_in(self, folder: Path) -> dict[str, bytes]:
        """The bytes of all results of a folder that are comparable."""
        return self.comparable(results_in(folder))

    def comparable(self, files: dict[str, bytes]) -> dict[str, bytes]:
        return {name: files[name] for name in files if name.startswith(self.compared)}

    def arguments(self, folder: Path, **changed: Path) -> list[str]:
        """The command line for results in a folder, with other inputs."""
        named = {**self.inputs, **{option: folder / name for option, name in self.outputs.items()}}
        named |= {option: changed[option] for option in changed}
        options = (("--" + key.replace("_", "-"), str(path)) for key, path in named.items())
        return [*(text for option in options for text in option), *self.others]


def results_in(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder by name; unfinished files start with a dot."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def stages_of(corpus: PackedCorpus, folder: Path) -> list[Stage]:
    """The stages up to the packed rows, on the files of a corpus."""
    config, data = corpus.directory / "config", corpus.directory / "data"
    pack = write_stage_config(
        folder / "pack.json", base_model=str(corpus.base), pack={"max_tokens": 512}
    )
    shard = "shard-00000.parquet"
    return [
        Stage(
            "list_rows",
            {"config": config / "list_rows.json"},
            {"rows": "rows.parquet", "recordings_dir": "recordings"},
        ),
        Stage(
            "measure",
            {"config": config / "measure.json", "recordings": data / "recordings" / shard},
            {"measured": "measured.parquet"},
        ),
        Stage(
            "validate",
            {
                "config": config / "validate.json",
                "rows": data / "rows.parquet",
                "measured_dir": data / "measured",
            },
            {
                "clips": "clips.parquet",
                "rejected": "rejected.parquet",
                "validation": "validation.json",
                "shards_dir": "shards",
            },
            ("--families", V2),
        ),
        Stage(
            "tokenize_audio",
            {"config": config / "tokenize.json", "shard_clips": data / "shards" / shard},
            {"codes": "codes.parquet"},
        ),
        Stage(
            "pack",
            {"config": pack, "clips": corpus.clips, "codes_dir": corpus.codes_dir},
            {"train_rows": "train.parquet", "eval_rows": "eval.parquet", "packing": "packing.json"},
            ("--num-shards", "2"),
        ),
    ]


OF_MODELS = ("train", "evaluate", "package", "report", "speak")  # seconds per run
NAMES = ("list_rows", "measure", "validate", "tokenize_audio", "pack", *OF_MODELS)
# Three steps, with a checkpoint after each.
SHORT: dict[str, Any] = {"rows_per_step": 2, "max_steps": 3, "save_steps": 1, "preflight": False}
EVAL = {"device": "cpu", "num_prompts": 1, "max_seconds": 1.0}


def later_stages_of(corpus: PackedCorpus, folder: Path, zygote: Zygote) -> list[Stage]:
    """The stages from training on; those before each are run into ``folder``."""
    base = {"base_model": str(corpus.base)}
    codec = {"codec": str(corpus.base / AUDIO_TOKENIZER)}
    sections: dict[str, dict[str, Any]] = {
        "validate": {"manifest": "manifest.jsonl"},
        "tokenize": codec,
        "pack": base,
        "train": base | {"train": SHORT | {"device": "cpu", "tracker": "none"}},
        "eval": base | {"eval": EVAL},
        "package": base | codec,
        "report": {},
    }
    config = {
        stage: write_stage_config(folder / f"config/{stage}.json", **parts)
        for stage, parts in sections.items()
    }
    data, packed, experiment = (
        corpus.directory / "data",
        corpus.directory / "packed",
        folder / "a/b",
    )
    rows = {"train_rows": corpus.train_rows, "eval_rows": corpus.eval_rows}
    train = Stage(
        "train",
        {"config": config["train"], **rows},
        {"output_dir": "train"},
        compared="train/adapter/",
    )
    adapter = experiment / "train/adapter"
    evaluate = Stage(
        "evaluate",
        {
            "config": config["eval"],
            "clips": corpus.clips,
            "eval_rows": corpus.eval_rows,
            "adapter_dir": adapter,
        },
        {"eval_dir": "eval", "samples_dir": "samples"},
    )
    for stage in (train, evaluate):
        assert zygote.run(stage.module, stage.arguments(experiment), folder / "stderr") == 0
    package = Stage(
        "package",
        {
            "config": config["package"],
            "data_dir": data,
            "packed_dir": packed,
            "experiment_dir": experiment,
            "config_dir": folder / "config",
        },
        {"package_dir": "b", "archive": "b.zip"},
        ("--name", "b"),
    )
    report = Stage(
        "report",
        {
            "config": config["report"],
            "clips": corpus.clips,
            "validation": data / "validation.json",
            "packing": packed / "packing.json",
            "experiments_dir": folder / "a",
            "other_validation": folder / "none",
            "other_packing": folder / "none",
        },
        {"page": "index.html", "figures": "figures"},
        ("--families", V2, "--names", "b", "--bases", str(corpus.base)),
    )
    speak = Stage(
        "speak",
        {"adapter": adapter, "codec": corpus.base / AUDIO_TOKENIZER},
        {"out": "spoken.wav"},
        ("--text", "One.", "--max-seconds", "0.3", "--device", "cpu"),
    )
    return [train, evaluate, package, report, speak]


def emptied(folder: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def loaded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
