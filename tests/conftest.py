"""Fixtures that several test files share: a tiny base, and stages run on a small corpus."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from higgs_pipe import list_rows, measure, validate
from higgs_pipe.config.schema import json_schema
from higgs_pipe.config.settings import Config
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.data.tables import read_table, shard_path, write_table
from higgs_pipe.higgs import miniature
from higgs_pipe.planning import config_check

SCHEMA = json_schema()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete miniature checkpoint; its codec is in ``audio_tokenizer/``."""
    directory = tmp_path_factory.mktemp("base") / "tiny-higgs"
    miniature.build(directory, hidden_size=64, num_layers=2)
    return directory


def write_stage_config(path: Path, **sections: Any) -> Path:
    """A ``results/config/<stage>.json`` as the workflow writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


def run_validation(folder: Path, num_threads: int = 1, **sections: Any) -> Path:
    """Run list_rows, measure and validate with the settings that the workflow would give them.

    Returns:
        ``folder / "data"``, where their results are.
    """
    config = Config(base_model="b", codec="c", **sections).model_dump(by_alias=True)
    stages = {}
    for stage in ("list_rows", "measure", "validate"):
        text = config_check.stage_config_text(config, stage, SCHEMA)
        stages[stage] = write_stage_config(folder / f"config/{stage}.json", **json.loads(text))
    data = folder / "data"
    rows, recordings, measured = (
        data / name for name in ("rows.parquet", "recordings", "measured")
    )
    list_rows.run(stages["list_rows"], rows, recordings)
    for shard in range(config["data"]["num_shards"]):
        paths = (shard_path(shards, shard) for shards in (recordings, measured))
        measure.run(stages["measure"], *paths, num_threads=num_threads)
    tables = (data / f"{name}.parquet" for name in ("clips", "rejected"))
    outputs = (*tables, data / "validation.json", data / "shards")
    validate.run(stages["validate"], rows, measured, *outputs)
    return data


def tone(path: Path, seconds: float, pitch_hz: float = 220.0, rate_hz: int = 24_000) -> Path:
    """A WAV with a tone that no other pitch repeats."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    samples = 0.3 * np.sin(2 * np.pi * pitch_hz * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate_hz)
    return path


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
        table, _ = read_table(self.clips, CLIPS)
        rows = [row | changes.get(row["clip_id"], {}) for row in table.to_pylist()]
        write_table(directory / "data" / "clips.parquet", CLIPS, rows)
        shutil.copy(self.directory / "data" / "validation.json", directory / "data")
        (directory / "codes").symlink_to(self.codes_dir)
        return PackedCorpus(directory, self.base)

    def pack(self, output_dir: Path, **settings: Any) -> dict[str, Any]:
        """Pack the corpus with other settings into ``output_dir``; returns packing.json."""
        from higgs_pipe import pack

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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> PackedCorpus:
    """Fourteen tones of two speakers, three of them held out, packed into rows of 512."""
    from higgs_pipe import tokenize_audio

    directory = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(14):
        tone(directory / f"audio/clip-{i:02d}.wav", seconds=0.5 + 0.13 * i, pitch_hz=150 + 37 * i)
        row: dict[str, Any] = {
            "id": f"clip-{i:02d}",
            "audio": f"audio/clip-{i:02d}.wav",
            "text": f"Tone number {i}, held for a while",
            "speaker": "high" if i % 2 else "low",
            "split": "eval" if i in (3, 6, 9) else "train",
        }
        rows.append(row | ({"scene": "A quiet room."} if i % 5 == 0 else {}))
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

    data = run_validation(directory, manifest=str(manifest), data={"num_shards": 2})
    tokenize_config = write_stage_config(
        directory / "config/tokenize.json", codec=str(tiny_base / miniature.AUDIO_TOKENIZER)
    )
    for shard in ("shard-00000", "shard-00001"):
        tokenize_audio.run(
            tokenize_config,
            data / f"shards/{shard}.parquet",
            directory / f"codes/{shard}.parquet",
        )
    packed = PackedCorpus(directory, tiny_base)
    packed.pack(directory / "packed", max_tokens=512)
    return packed


@pytest.fixture
def stage_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a stage's config into ``tmp_path`` and returns its path."""

    def write(name: str, **sections: Any) -> Path:
        return write_stage_config(tmp_path / f"{name}.json", **sections)

    return write


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a full disk, writing more into a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
