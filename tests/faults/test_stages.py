"""Stages that are killed, ended, short of disk, forbidden to write, or given other inputs."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults.conftest import Record
from faults.stages import Stage, Zygote, emptied, results_in, stages_of
from helpers import PackedCorpus, has_line_with

from higgs_pipe.data.hashing import sha256_of_bytes
from higgs_pipe.data.tables import CHECKSUM_KEY, METADATA_KEY, read_codec_info

pytestmark = pytest.mark.slow

SEED = 17
NUM_KILLS = 4
NAMES = ("list_rows", "measure", "validate", "tokenize_audio", "pack")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def stages(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    folder = tmp_path_factory.mktemp("config")
    return {stage.module: stage for stage in stages_of(corpus, folder)}


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_that_is_ended_leaves_no_half_file_and_loses_nothing(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    stage, draw, stderr = stages[name], random.Random(f"{SEED} {name}"), tmp_path / "stderr"
    started = time.monotonic()
    assert zygote.run(name, stage.arguments(emptied(tmp_path / "whole")), stderr) == 0
    seconds = time.monotonic() - started
    whole, folder = results_in(tmp_path / "whole"), emptied(tmp_path / "results")
    arguments = stage.arguments(folder)
    for end_by in [signal.SIGKILL] * NUM_KILLS + [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]:
        emptied(folder)
        after = draw.uniform(0.1, 1.0) * seconds
        code = zygote.run(name, arguments, stderr, end_by=end_by, after_seconds=after)
        finished = results_in(folder)
        if end_by != signal.SIGKILL:
            assert code in (0, 128 + end_by)
            assert not [file for file in finished if file.rpartition("/")[2].startswith(".")]
        named = [file for file in finished if not file.rpartition("/")[2].startswith(".")]
        assert all(finished[file] == whole[file] for file in named)
        assert zygote.run(name, arguments, stderr) == 0
        assert results_in(folder) == whole
    record("SIGKILL at seeded moments", name, equal=NUM_KILLS)
    record("SIGTERM, SIGHUP, SIGINT", name, equal=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", ["full", "readonly"])
def test_a_stage_that_cannot_write_says_so_and_leaves_nothing(
    name: str,
    fault: str,
    stages: dict[str, Stage],
    zygote: Zygote,
    tmp_path: Path,
    record: Record,
) -> None:
    stage, stderr = stages[name], tmp_path / "stderr"
    folder = emptied(tmp_path / "results")
    folder.chmod(0o555 if fault == "readonly" else 0o755)
    code = zygote.run(name, stage.arguments(folder), stderr, fault)
    said = stderr.read_text()
    assert code == 2, said
    assert str(folder) in said
    assert "Traceback" not in said
    assert [file for file in results_in(folder) if not file.endswith("lock")] == []
    folder.chmod(0o755)
    assert zygote.run(name, stage.arguments(folder), stderr) == 0
    record({"full": "disk full", "readonly": "read-only results"}[fault], name, refused=1)


def other_version(path: Path) -> None:
    """Stamp a table with a version that is not ours, and a hash that fits."""
    restamp(path, version=99)


def restamp(path: Path, **changes: object) -> None:
    table = pq.read_table(path)
    stamp = json.loads(table.schema.metadata[METADATA_KEY]) | changes
    text = json.dumps(stamp, sort_keys=True).encode()
    checksum = sha256_of_bytes(text).encode()
    pq.write_table(
        table.replace_schema_metadata({METADATA_KEY: text, CHECKSUM_KEY: checksum}), path
    )


INPUTS = [
    ("measure", "recordings"),
    ("validate", "rows"),
    ("validate", "measured_dir"),
    ("tokenize_audio", "shard_clips"),
    ("pack", "clips"),
    ("pack", "codes_dir"),
]


@pytest.mark.parametrize(("name", "option"), INPUTS)
@pytest.mark.parametrize("fault", ["missing", "cut", "another version"])
def test_an_input_that_is_not_what_it_should_be_is_named(
    name: str,
    option: str,
    fault: str,
    stages: dict[str, Stage],
    zygote: Zygote,
    tmp_path: Path,
    record: Record,
) -> None:
    stage, stderr = stages[name], tmp_path / "stderr"
    copy = tmp_path / "input"
    if stage.inputs[option].is_dir():
        table = Path(shutil.copytree(stage.inputs[option], copy)) / "shard-00001.parquet"
    else:
        table = copy = Path(shutil.copy(stage.inputs[option], tmp_path / "input.parquet"))
    if fault == "missing":
        table.unlink()
    elif fault == "cut":
        table.write_bytes(table.read_bytes()[:-100])
    else:
        other_version(table)
    folder = emptied(tmp_path / "results")
    code = zygote.run(name, stage.arguments(folder, **{option: copy}), stderr)
    said = stderr.read_text()
    assert (code, results_in(folder)) == (2, {}), said
    assert has_line_with(said, table.name, "snakemake --forcerun")
    record(f"an input that is {fault}", f"{name}, its {option}", refused=1)


def test_codes_of_another_codec_are_refused_by_pack(
    stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    copy = Path(shutil.copytree(stages["pack"].inputs["codes_dir"], tmp_path / "codes"))
    info = asdict(read_codec_info(copy / "shard-00001.parquet"))
    restamp(copy / "shard-00001.parquet", codec_info=info | {"fingerprint": "f" * 64})
    folder = emptied(tmp_path / "results")
    code = zygote.run("pack", stages["pack"].arguments(folder, codes_dir=copy), tmp_path / "stderr")
    assert (code, results_in(folder)) == (2, {}), (tmp_path / "stderr").read_text()
    record("codes of another codec", "pack", refused=1)
