"""Recordings changed in place: real Snakemake, real stages, only what changed is redone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from helpers import ROOT, jobs_run, tone
from workflow.forked_snakemake import run_snakemake
from workflow.forked_stages import forking_python

pytestmark = pytest.mark.slow


def snakemake(folder: Path, *words: str) -> list[tuple[str, str]]:
    """Run `snakemake tokenize`; return the rules that ran, each with its shard if it has one."""
    words = ("--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *words, "tokenize")
    finished = run_snakemake([*words], folder, python=str(forking_python()))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    ran = [job.partition(" ") for job in jobs_run(finished.stderr)]
    return sorted((name, shard) for name, _, shard in ran)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings in four shards, tokenized."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"audio": f"wavs/{i}.wav", "text": f"Text number {i} here."} for i in range(8)]
    for i, row in enumerate(rows):
        tone(folder / row["audio"], 1.0, 100 + 30 * i)
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load((ROOT / "config.yaml").read_text())
    settings |= {"manifest": "m.jsonl", "data": {"num_shards": 4}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    snakemake(folder)
    return folder


def shard_of_recording(folder: Path, path: Path) -> str:
    for shard in sorted((folder / "results/data/recordings").glob("*.parquet")):
        if str(path.relative_to(folder)) in pq.read_table(shard)["audio_path"].to_pylist():
            return shard.stem
    raise AssertionError(path)


def test_a_second_run_does_nothing(finished: Path) -> None:
    assert snakemake(finished) == []


def test_touching_a_recording_reruns_nothing(finished: Path) -> None:
    os.utime(finished / "wavs/3.wav")
    codes = {p: p.stat().st_mtime_ns for p in (finished / "results/codes").iterdir()}
    assert snakemake(finished) == [("judge_clips", ""), ("list_rows", "")]
    assert {p: p.stat().st_mtime_ns for p in (finished / "results/codes").iterdir()} == codes
    assert snakemake(finished) == []


def test_a_manifest_replaced_by_an_older_file_is_read_again(finished: Path) -> None:
    manifest, older = finished / "m.jsonl", finished / "older.jsonl"
    older.write_text(manifest.read_text().replace("Text number 3", "Words number 3"))
    os.utime(older, (1e9, 1e9))
    older.rename(manifest)
    assert snakemake(finished) == [("judge_clips", ""), ("list_rows", "")]
    texts = pq.read_table(finished / "results/data/clips.parquet")["text"].to_pylist()
    assert "Words number 3 here." in texts
    assert snakemake(finished) == []


@pytest.mark.parametrize("has_equal_size", [True, False])
def test_a_recording_changed_in_place_reruns_only_its_shard(
    finished: Path, has_equal_size: bool
) -> None:
    path = finished / "wavs/3.wav"
    shard = shard_of_recording(finished, path)
    tone(path, 1.0 if has_equal_size else 1.5, 777 + has_equal_size)
    assert snakemake(finished) == [
        ("judge_clips", ""),
        ("list_rows", ""),
        ("measure_shard", shard),
        ("tokenize_shard", shard),
    ]
    assert snakemake(finished) == []


def test_a_copied_project_only_hashes_and_a_moved_one_reruns_nothing(
    finished: Path, tmp_path: Path
) -> None:
    """A copy has other modification times and does not use the recordings of the original."""
    project = shutil.copytree(finished, tmp_path / "a copy", copy_function=shutil.copyfile)
    for path in (finished / "wavs").iterdir():
        path.rename(path.with_suffix(".away"))
    codes = {p: p.stat().st_mtime_ns for p in (project / "results/codes").iterdir()}
    assert snakemake(project) == [("judge_clips", ""), ("list_rows", "")]
    assert {p: p.stat().st_mtime_ns for p in (project / "results/codes").iterdir()} == codes
    moved = project.rename(tmp_path / "moved")
    assert snakemake(moved) == []
    for path in (finished / "wavs").iterdir():
        path.rename(path.with_suffix(".wav"))
