"""The committed demo corpus and the script that makes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf  # type: ignore[import-untyped, unused-ignore]
from helpers import ROOT

DEMO = ROOT / "examples" / "demo"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (DEMO / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
]
BY_ID = {row["id"]: row for row in ROWS}

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"
)


def clip_format(row: dict[str, Any]) -> tuple[str, str, int, int]:
    info = sf.info(DEMO / row["audio"])
    return info.format, info.subtype, info.samplerate, info.channels


def run_script(out: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO / "make_corpus.py"), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_the_v3_manifest_is_the_demo_manifest_without_scenes() -> None:
    own, other = (
        [json.loads(line) for line in (ROOT / f"examples/demo/{name}").read_text().splitlines()]
        for name in ("manifest.jsonl", "manifest-v3.jsonl")
    )
    assert other == [{k: v for k, v in row.items() if k != "scene"} for row in own]


def test_the_corpus_has_sixty_rows_with_unique_ids_and_texts() -> None:
    assert len(ROWS) == 60
    assert len(BY_ID) == 60
    assert len({row["text"] for row in ROWS}) == 60


def test_three_speakers_speak_two_languages_twenty_clips_each() -> None:
    counts = Counter((row["speaker"], row["language"]) for row in ROWS)
    assert counts == {("ada", "en"): 20, ("ben", "en"): 20, ("clara", "de"): 20}


def test_every_text_is_non_empty_and_stripped() -> None:
    assert all(row["text"] and row["text"] == row["text"].strip() for row in ROWS)


def test_no_row_sets_a_split() -> None:
    assert not any("split" in row for row in ROWS)


def test_the_manifest_lists_exactly_the_files_in_the_audio_folder() -> None:
    on_disk = {p.relative_to(DEMO).as_posix() for p in (DEMO / "audio").iterdir()}
    assert sorted(row["audio"] for row in ROWS) == sorted(on_disk)


def test_six_rows_have_a_scene() -> None:
    assert sum(bool(row.get("scene")) for row in ROWS) == 6


def test_reference_audio_is_another_clip_of_the_same_speaker_with_its_text() -> None:
    by_audio = {row["audio"]: row for row in ROWS}
    with_reference = [row for row in ROWS if "ref_audio" in row]
    assert len(with_reference) == 2
    for row in with_reference:
        other = by_audio[row["ref_audio"]]
        assert other["id"] != row["id"]
        assert other["speaker"] == row["speaker"]
        assert other["text"] == row["ref_text"]


def test_formats_and_rates_are_as_documented() -> None:
    assert Counter(clip_format(row) for row in ROWS) == {
        ("WAV", "PCM_16", 16_000, 1): 9,
        ("WAV", "PCM_16", 22_050, 1): 3,
        ("WAV", "PCM_16", 44_100, 2): 3,
        ("FLAC", "PCM_16", 22_050, 1): 9,
        ("FLAC", "PCM_16", 44_100, 1): 3,
        ("OGG", "VORBIS", 16_000, 1): 12,
        ("OGG", "VORBIS", 22_050, 1): 21,
    }


def test_every_speaker_has_every_format() -> None:
    pairs = {(row["speaker"], clip_format(row)) for row in ROWS}
    assert len(pairs) == 3 * 7


@pytest.mark.parametrize("clip", sorted(BY_ID))
def test_clip_is_short_audible_unclipped_and_trimmed(clip: str) -> None:
    samples, rate = sf.read(DEMO / BY_ID[clip]["audio"], always_2d=True)
    loudness = np.abs(samples).max(axis=1)
    assert 1.0 <= len(samples) / rate <= 8.0
    assert 0.3 < loudness.max() < 0.99
    trailing = len(samples) - np.flatnonzero(loudness >= 0.01)[-1]
    assert trailing / rate <= 0.25


def test_stereo_channels_differ() -> None:
    stereo = [row for row in ROWS if clip_format(row)[3] == 2]
    for row in stereo:
        samples, _ = sf.read(DEMO / row["audio"])
        assert np.abs(samples[:, 0] - samples[:, 1]).max() > 0.01


def test_the_demo_folder_stays_below_its_size_limit() -> None:
    files = [p for p in DEMO.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) <= 2_900_000


@needs_espeak
def test_regenerating_the_corpus_gives_the_committed_ids_and_durations(tmp_path: Path) -> None:
    assert run_script(tmp_path).returncode == 0
    lines = (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    for row in ROWS:
        committed = sf.info(DEMO / row["audio"]).duration
        # another espeak-ng version may speak slightly faster or slower
        assert sf.info(tmp_path / row["audio"]).duration == pytest.approx(committed, rel=0.15)


@needs_espeak
def test_two_runs_write_identical_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_script(first)
    run_script(second)
    assert len(files_in(first)) == 61
    assert files_in(first) == files_in(second)


def test_without_espeak_the_script_says_so_and_exits_with_2(tmp_path: Path) -> None:
    result = run_script(tmp_path / "out", env={"PATH": str(tmp_path)})
    assert result.returncode == 2
    assert "espeak-ng is not installed" in result.stderr
    assert not (tmp_path / "out").exists()
