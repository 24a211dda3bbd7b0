"""Fixtures that several test files share: a tiny base, and stages run on a small corpus.

What imports PyTorch is imported by the fixtures, so that a test of data starts within seconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults.page import Happened, Record, table
from helpers import run_validation, tone, write_stage_config
from pages import put_table

if TYPE_CHECKING:
    from trainings import PackedCorpus

pytest_plugins = ["leftovers", "workflow.forked_stages"]


LONGEST = ("test_slurm.py", "test_pipeline.py")


@pytest.hookimpl(trylast=True)  # when they are in random order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no worker is left busy alone at the end."""
    is_slow = {item.path: False for item in items}
    for item in items:
        is_slow[item.path] |= item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: (item.path.name not in LONGEST, not is_slow[item.path]))


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undo the logging setup of a stage's command line that ran in this process."""
    logger = logging.getLogger("higgs_pipe")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Record a fault and its outcome for the table of ``make faults``.

    The table is written into the page that FAULTS_PAGE names if it names one and no test failed.
    """
    noted: list[Happened] = []

    def note(fault: str, stage: str, **counts: int) -> None:
        noted.append(Happened(fault, stage, **counts))

    yield note
    name = os.environ.get("FAULTS_PAGE")
    if name and request.session.testsfailed == 0:
        put_table(Path(name), "faults", table(noted))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete miniature checkpoint; its codec is in ``audio_tokenizer/``."""
    from higgs_pipe.higgs.v2 import miniature

    directory = tmp_path_factory.mktemp("base") / "tiny-higgs"
    miniature.build(directory, hidden_size=64, num_layers=2)
    return directory


@pytest.fixture(scope="session")
def v3_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete miniature Higgs TTS 3, with the codec of ``tiny_base`` in its bundle."""
    from higgs_pipe.higgs.v3 import miniature

    directory = tmp_path_factory.mktemp("v3-base") / "tiny-higgs-v3"
    miniature.build(directory, hidden_size=64, num_layers=2)
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> PackedCorpus:
    """Fourteen tones of two speakers, three of them held out, packed into rows of 512."""
    from trainings import PackedCorpus

    from higgs_pipe import tokenize_audio
    from higgs_pipe.higgs.v2.miniature import AUDIO_TOKENIZER

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
        directory / "config/tokenize.json", codec=str(tiny_base / AUDIO_TOKENIZER)
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


@pytest.fixture(scope="session")
def v3_corpus(
    tmp_path_factory: pytest.TempPathFactory, corpus: PackedCorpus, v3_base: Path
) -> PackedCorpus:
    """The clips and codes of ``corpus``, without their scenes, packed for Higgs TTS 3."""
    directory = tmp_path_factory.mktemp("v3-corpus")
    changes: dict[str, dict[str, Any]] = {f"clip-{i:02d}": {"scene": None} for i in range(14)}
    packed = replace(corpus.changed(directory, changes), base=v3_base)
    packed.pack(directory / "packed", max_tokens=512)
    return packed


@pytest.fixture
def stage_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a stage's config into ``tmp_path`` and returns its path."""

    def write(name: str, **sections: Any) -> Path:
        return write_stage_config(tmp_path / f"{name}.json", **sections)

    return write
