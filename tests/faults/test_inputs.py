"""Stages with inputs that are missing, truncated, or made for another model or version."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults.page import Record
from faults.stages import Stage, Zygote, emptied, results_in
from helpers import has_line_with

from higgs_pipe.data.hashing import sha256_of_bytes
from higgs_pipe.data.tables import CHECKSUM_KEY, METADATA_KEY, read_codec_info

pytestmark = pytest.mark.slow


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
@pytest.mark.parametrize("fault", ["missing", "truncated", "other-version"])
def test_a_missing_truncated_or_wrong_version_input_is_named(
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
    elif fault == "truncated":
        table.write_bytes(table.read_bytes()[:-100])
    else:
        other_version(table)
    folder = emptied(tmp_path / "results")
    code = zygote.run(name, stage.arguments(folder, **{option: copy}), stderr)
    said = stderr.read_text()
    assert (code, stage.results_in(folder)) == (2, {}), said
    assert has_line_with(said, table.name, "snakemake --forcerun")
    record(f"{fault} input", f"{name}, its {option}", refused=1)


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
@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_a_missing_or_truncated_result_of_an_experiment_is_named(
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
    if fault == "truncated":
        (copy / file).write_bytes(content[: len(content) // 2])
    option = {"package": {"experiment_dir": copy}, "report": {"experiments_dir": copy.parent}}
    folder = emptied(tmp_path / "results")
    stderr = tmp_path / "stderr"
    code = zygote.run(name, stages[name].arguments(folder, **option[name]), stderr)
    said = stderr.read_text()
    assert (code, results_in(folder)) == (2, {}), said
    assert Path(file).name in said
    record(f"{fault} result", f"{name}, `{file}`", refused=1)


@pytest.mark.parametrize("name", ["train", "evaluate", "package"])
@pytest.mark.parametrize("other", ["base", "codec"])
def test_rows_that_were_packed_for_another_model_are_refused(
    name: str,
    other: str,
    stages: dict[str, Stage],
    zygote: Zygote,
    tmp_path: Path,
    record: Record,
) -> None:
    copy = Path(shutil.copytree(stages["package"].inputs["packed_dir"], tmp_path / "packed"))
    rows = copy / "eval.parquet"
    stamped = json.loads(pq.read_schema(rows).metadata[METADATA_KEY])
    if other == "base":
        base = stamped["pinned"]["base_model"] | {"fingerprint": "f" * 64}
        restamp(rows, pinned=stamped["pinned"] | {"base_model": base})
    else:
        restamp(rows, codec_info=stamped["codec_info"] | {"fingerprint": "f" * 64})
    changed = {"package": {"packed_dir": copy}}.get(name, {"eval_rows": rows})
    folder = emptied(tmp_path / "results")
    code = zygote.run(name, stages[name].arguments(folder, **changed), tmp_path / "stderr")
    said = (tmp_path / "stderr").read_text()
    assert code == 2, said
    assert other in said
    assert stages[name].results_in(folder) == {}
    record(f"rows packed for another {other}", name, refused=1)
