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
from faults.stages import Stage, Zygote, emptied, later_stages_of, results_in, stages_of
from helpers import PackedCorpus, has_line_with

from higgs_pipe.data.hashing import sha256_of_bytes
from higgs_pipe.data.tables import CHECKSUM_KEY, METADATA_KEY, read_codec_info

pytestmark = pytest.mark.slow

SEED = 17
NUM_KILLS = 4
NUM_KILLS_OF_MODELS = 2
OF_MODELS = ("train", "evaluate", "package", "report", "speak")  # seconds per run
NAMES = ("list_rows", "measure", "validate", "tokenize_audio", "pack", *OF_MODELS)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def stages(
    corpus: PackedCorpus, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Stage]:
    folder = tmp_path_factory.mktemp("run")
    found = [*stages_of(corpus, folder), *later_stages_of(corpus, folder, zygote)]
    return {stage.module: stage for stage in found}


def is_unfinished(file: str) -> bool:
    return any(part.startswith(".") for part in Path(file).parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_that_is_ended_leaves_no_half_file_and_loses_nothing(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    stage, draw, stderr = stages[name], random.Random(f"{SEED} {name}"), tmp_path / "stderr"
    started = time.monotonic()
    assert zygote.run(name, stage.arguments(emptied(tmp_path / "whole")), stderr) == 0
    seconds = time.monotonic() - started
    whole, folder = stage.results_in(tmp_path / "whole"), emptied(tmp_path / "results")
    arguments = stage.arguments(folder)
    is_of_models = name in OF_MODELS
    kills = [signal.SIGKILL] * (NUM_KILLS_OF_MODELS if is_of_models else NUM_KILLS)
    signals = [signal.SIGTERM, *([] if is_of_models else [signal.SIGHUP, signal.SIGINT])]
    for end_by in kills + signals:
        emptied(folder)
        after = draw.uniform(0.1, 1.0) * seconds
        code = zygote.run(name, arguments, stderr, end_by=end_by, after_seconds=after)
        finished = stage.results_in(folder)
        if end_by != signal.SIGKILL:
            assert code in (0, 128 + end_by)
            assert not [file for file in finished if is_unfinished(file)]
        named = [file for file in finished if not is_unfinished(file)]
        assert all(finished[file] == whole[file] for file in named)
        assert zygote.run(name, arguments, stderr) == 0
        assert stage.results_in(folder) == whole
    record("SIGKILL at seeded moments", name, equal=len(kills))
    record(", ".join(each.name for each in signals), name, equal=len(signals))


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
    assert [file for file in stage.results_in(folder) if not file.endswith("lock")] == []
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
    ("train", "train_rows"),
    ("train", "eval_rows"),
    ("evaluate", "clips"),
    ("evaluate", "eval_rows"),
    ("report", "clips"),
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
    assert (code, stage.results_in(folder)) == (2, {}), said
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


# What train and eval left, by the stage that reads it.
LEFT = [
    ("package", "train/adapter/adapter_model.safetensors"),
    ("package", "train/run.json"),
    ("package", "eval/metrics.json"),
    ("package", "eval/generation.parquet"),
    ("package", "samples/01-adapter-t1.wav"),
    ("report", "train/metrics.jsonl"),
    ("report", "eval/verdict.json"),
    ("report", "samples/01-adapter-t1.wav"),
]


@pytest.mark.parametrize(("name", "file"), LEFT)
@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_result_of_an_experiment_that_is_missing_or_cut_is_named(
    name: str,
    file: str,
    fault: str,
    stages: dict[str, Stage],
    zygote: Zygote,
    tmp_path: Path,
    record: Record,
) -> None:
    experiment = stages["package"].inputs["experiment_dir"]
    copy = Path(shutil.copytree(experiment, tmp_path / "a/b"))
    content = (copy / file).read_bytes()
    (copy / file).unlink()
    if fault == "cut":
        (copy / file).write_bytes(content[: len(content) // 2])
    option = {"package": {"experiment_dir": copy}, "report": {"experiments_dir": copy.parent}}
    folder = emptied(tmp_path / "results")
    stderr = tmp_path / "stderr"
    code = zygote.run(name, stages[name].arguments(folder, **option[name]), stderr)
    said = stderr.read_text()
    assert (code, results_in(folder)) == (2, {}), said
    assert Path(file).name in said
    record(f"a result that is {fault}", f"{name}, `{file}`", refused=1)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_rows_that_were_packed_for_another_base_are_refused(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    copy = Path(shutil.copy(stages[name].inputs["eval_rows"], tmp_path / "eval.parquet"))
    stamped = json.loads(pq.read_schema(copy).metadata[METADATA_KEY])
    other = stamped["pinned"]["base_model"] | {"fingerprint": "f" * 64}
    restamp(copy, pinned=stamped["pinned"] | {"base_model": other})
    rows = {"train_rows": copy} if name == "train" else {"eval_rows": copy}
    folder = emptied(tmp_path / "results")
    code = zygote.run(name, stages[name].arguments(folder, **rows), tmp_path / "stderr")
    said = (tmp_path / "stderr").read_text()
    assert code == 2, said
    assert "base" in said
    assert stages[name].results_in(folder) == {}
    record("rows packed for another base", name, refused=1)
