"""The stages before judging: rows to shards of recordings, recordings to measures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers import environment_with, recordings_of, tone, write_stage_config

from higgs_pipe import list_rows, measure
from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.conversation import Conversation, Turn
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row_table import RowColumns, read_rows, write_rows
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import MEASURED, RECORDINGS
from higgs_pipe.data.tables import read_table, shard_path, write_table


def list_shards(folder: Path, rows: list[dict[str, Any]], num_shards: int = 4) -> dict[str, bytes]:
    """The shards of a manifest's recordings, by name."""
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_stage_config(
        folder / "list_rows.json", manifest=str(manifest), data={"num_shards": num_shards}
    )
    list_rows.run(config, folder / "rows.parquet", folder / "recordings")
    return {path.name: path.read_bytes() for path in (folder / "recordings").iterdir()}


def measure_segments(folder: Path, segments: list[Span], **options: Any) -> list[dict[str, Any]]:
    """Rows of MEASURED."""
    write_table(folder / "r.parquet", RECORDINGS, recordings_of(segments))
    settings = options.pop("validate", {})
    config = write_stage_config(folder / "measure.json", validate=settings)
    measure.run(config, folder / "r.parquet", folder / "measured.parquet", **options)
    rows: list[dict[str, Any]] = read_table(folder / "measured.parquet", MEASURED).to_pylist()
    return rows


# --- Listing --------------------------------------------------------------------------------------

ROWS = [{"id": name, "audio": f"{name}.wav", "text": name} for name in "abcdefgh"]


@pytest.mark.parametrize(
    ("changed", "of"),
    [
        ([{"id": "new", "audio": "n.wav", "text": "N"}, *ROWS], ["new"]),
        ([*ROWS[:3], *ROWS[4:]], ["d"]),
        ([ROWS[0] | {"audio": "z.wav"}, *ROWS[1:]], ["a"]),
        ([ROWS[0] | {"text": "other"}, *ROWS[1:]], []),
        (ROWS[::-1], []),
    ],
    ids=["added first", "removed", "another recording", "another text", "another order"],
)
def test_a_changed_row_changes_only_its_own_shard(
    tmp_path: Path, changed: list[dict[str, Any]], of: list[str]
) -> None:
    before = list_shards(tmp_path, ROWS)
    after = list_shards(tmp_path, changed)
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {f"shard-{shard_of(clip_id, 4):05d}.parquet" for clip_id in of}


def test_a_shard_lists_each_segment_of_its_rows_once(tmp_path: Path) -> None:
    rows = [
        {"id": name, "audio": "long.wav", "text": name, "start_seconds": start, "end_seconds": 2}
        | {"ref_audio": "r.wav", "ref_text": "R."}
        for name, start in (("a", 1), ("b", 0.5), ("c", 1))
    ]
    list_shards(tmp_path, rows, num_shards=1)
    table = read_table(tmp_path / "recordings/shard-00000.parquet", RECORDINGS)
    assert [tuple(row.values())[:3] for row in table.to_pylist()] == [
        (f"{tmp_path}/long.wav", 0.5, 2.0),
        (f"{tmp_path}/long.wav", 1.0, 2.0),
        (f"{tmp_path}/r.wav", None, None),
    ]


def test_fetched_manifests_and_roots_are_read_from_their_local_copies() -> None:
    fetched = {"s3://b/corpus": "/here"}
    entry = ManifestEntry(path="s3://b/corpus/m.csv", root="s3://b/corpus/wavs", speaker="ada")
    expected = entry.model_copy(update={"path": "/here/m.csv", "root": "/here/wavs"})
    assert list_rows._local(entry, fetched) == expected
    assert list_rows._local("s3://b/corpus/m.csv", fetched) == "/here/m.csv"
    assert list_rows._local(ManifestEntry(path="m.csv"), fetched) == ManifestEntry(path="m.csv")


def test_rows_survive_a_round_trip_through_the_table(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"speaker": "s", "scene": "A hall.", "split": "eval", "lang": "x"}, ROWS[1]]
    list_shards(tmp_path, rows)
    manifest = read_manifests([str(tmp_path / "m.jsonl")])
    assert list(read_rows(tmp_path / "rows.parquet").rows) == list(manifest.rows)
    turns = (
        Turn("user", ("Said.", Span("/x/r.wav"))),
        Turn("assistant", (Span("/x/t.wav"),), is_target=True),
    )
    talking = replace(manifest.rows[0], dialogue_id="d", turn=3, conversation=Conversation(turns))
    write_rows(tmp_path / "t.parquet", replace(manifest, rows=RowColumns([talking])))
    assert list(read_rows(tmp_path / "t.parquet").rows) == [talking]
    assert Span("/x/r.wav") in talking.all_spans
    write_rows(tmp_path / "u.parquet", manifest, "seen later")
    assert (tmp_path / "u.parquet").read_bytes() != (tmp_path / "rows.parquet").read_bytes()


@pytest.mark.parametrize(
    ("audio", "is_outside"),
    [("in/a.wav", False), ("in/../a.wav", False), ("../a.wav", True), ("/elsewhere/a.wav", True)],
)
def test_a_path_outside_the_root_is_flagged(tmp_path: Path, audio: str, is_outside: bool) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": audio, "text": "A."}))
    (row,) = read_manifests([ManifestEntry(path=str(tmp_path / "m.jsonl"))]).rows
    assert row.is_outside_root == is_outside


class Listed:
    """A corpus of eight recordings in four shards, listed and measured again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for index, row in enumerate(ROWS):
            tone(folder / row["audio"], 0.4, 100 + 20 * index)
        manifest = folder / "m.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        self.list_config = write_stage_config(
            folder / "list_rows.json", manifest=str(manifest), data={"num_shards": 4}
        )
        self.measure_config = write_stage_config(folder / "measure.json")

    def list(self) -> dict[int, bytes]:
        """The bytes of each shard's list."""
        rows, shards, memory, measured = (
            self.folder / name for name in ("rows.parquet", "list", "memory.json", "measured")
        )
        list_rows.run(self.list_config, rows, shards, memory, measured)
        return {n: shard_path(self.folder / "list", n).read_bytes() for n in range(4)}

    def measure(self) -> None:
        for n in range(4):
            recordings, measured = (
                shard_path(self.folder / name, n) for name in ("list", "measured")
            )
            measure.run(self.measure_config, recordings, measured)


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    corpus = Listed(tmp_path)
    corpus.list()
    corpus.measure()
    return corpus


def changed_shards(before: dict[int, bytes], after: dict[int, bytes]) -> set[int]:
    return {n for n in before if before[n] != after[n]}


def test_touching_a_recording_changes_no_shard(listed: Listed) -> None:
    before = listed.list()
    for moment in (1_000_000_000, 2_000_000_000):  # the second time it is compared with the first
        os.utime(listed.folder / "c.wav", ns=(moment, moment))
        assert listed.list() == before


def test_a_touched_recording_with_damaged_measures_counts_as_changed(listed: Listed) -> None:
    before = listed.list()
    shard_path(listed.folder / "measured", shard_of("c", 4)).write_bytes(b"PAR1")
    os.utime(listed.folder / "c.wav", ns=(0, 0))
    assert changed_shards(before, listed.list()) == {shard_of("c", 4)}


def test_a_recording_changed_in_place_changes_only_its_own_shard(listed: Listed) -> None:
    before = listed.list()
    tone(listed.folder / "c.wav", 0.4, 777)  # as many bytes
    assert changed_shards(before, listed.list()) == {shard_of("c", 4)}


def test_a_recording_that_vanishes_or_appears_changes_only_its_own_shard(listed: Listed) -> None:
    before = listed.list()
    content = (listed.folder / "c.wav").read_bytes()
    (listed.folder / "c.wav").unlink()
    without = listed.list()
    listed.measure()
    (listed.folder / "c.wav").write_bytes(content)
    assert changed_shards(before, without) == {shard_of("c", 4)}
    assert changed_shards(without, listed.list()) == {shard_of("c", 4)}


def test_a_change_not_yet_measured_is_not_forgotten(listed: Listed) -> None:
    before = listed.list()
    tone(listed.folder / "c.wav", 0.4, 777)
    listed.list()  # and the run ends here
    os.utime(listed.folder / "c.wav", ns=(0, 0))
    assert changed_shards(before, listed.list()) == {shard_of("c", 4)}


# --- Measuring ------------------------------------------------------------------------------------


def test_a_recording_is_measured_or_its_fault_is_named(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 2.0)
    (tmp_path / "page.wav").write_text("<!DOCTYPE html>")
    paths = [str(tmp_path / name) for name in ("a.wav", "none.wav", "page.wav")]
    whole, second, missing, page = measure_segments(
        tmp_path, [Span(paths[0]), Span(paths[0], 1.0), *map(Span, paths[1:])]
    )
    samples = sf.read(paths[0])[0]
    assert (whole["reason"], whole["duration_seconds"], whole["num_channels"]) == (None, 2, 1)
    assert whole["peak"] == pytest.approx(np.abs(samples).max())
    assert second["peak"] == pytest.approx(np.abs(samples[24_000:]).max())
    assert whole["audio_sha256"] == second["audio_sha256"]
    assert whole["pcm_sha256"] != second["pcm_sha256"]
    assert (missing["reason"], page["reason"]) == ("audio_missing", "audio_unreadable")
    assert page["duration_seconds"] is page["peak"] is None


def test_a_recording_that_is_too_long_still_has_its_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = str(tone(tmp_path / "a.wav", 3.0))
    (row,) = measure_segments(tmp_path, [Span(path)], validate={"max_clip_seconds": 2.5})
    assert (row["reason"], row["duration_seconds"]) == ("too_long", 3)
    assert "measured 1 files, 3 s of audio; faults: 1" in caplog.text


def test_a_short_segment_of_a_long_file_is_measured(tmp_path: Path) -> None:
    path = str(tone(tmp_path / "a.wav", 3.0))
    limit = {"max_clip_seconds": 2.5}
    segment, rest = measure_segments(
        tmp_path, [Span(path, 1.0, 2.0), Span(path, 0.25)], validate=limit
    )
    assert (segment["reason"], segment["duration_seconds"]) == (None, 1)
    assert (rest["reason"], rest["duration_seconds"]) == ("too_long", 2.75)


@pytest.mark.parametrize("rate_hz", [48_000, 10_000_019])
def test_a_recording_above_the_sample_rate_limit_is_not_decoded(
    tmp_path: Path, rate_hz: int
) -> None:
    path = str(tone(tmp_path / "a.wav", 1.0, rate_hz=rate_hz))
    limit = {"max_sample_rate_hz": 44_100} if rate_hz == 48_000 else {}
    (row,) = measure_segments(tmp_path, [Span(path)], validate=limit)
    assert (row["reason"], row["peak"]) == ("high_sample_rate", None)
    assert f"{rate_hz:,} Hz" in row["fact"]


def test_the_number_of_threads_does_not_change_the_bytes(tmp_path: Path) -> None:
    paths = [tone(tmp_path / f"{i}.wav", 0.5, pitch_hz=100 + i) for i in range(8)]
    segments = [Span(str(path)) for path in paths]
    written = []
    for num_threads in (1, 4):
        measure_segments(tmp_path, segments, num_threads=num_threads)
        written.append((tmp_path / "measured.parquet").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("moment", ["measure.open_audio", "pq.ParquetWriter.close", "os.fsync"])
def test_a_killed_job_leaves_no_partial_shard_and_a_rerun_is_identical(
    tmp_path: Path, moment: str
) -> None:
    segments = [Span(str(tone(tmp_path / f"{i}.wav", 0.4, 100 + i))) for i in range(3)]
    measure_segments(tmp_path, segments)
    measured = tmp_path / "measured.parquet"
    uninterrupted = measured.read_bytes()
    measured.unlink()
    kill = "lambda *_: os.kill(os.getpid(), 9)"
    program = (
        "import os, pathlib, pyarrow.parquet as pq\n"
        "from higgs_pipe import measure\n"
        f"{moment} = {kill}\n"
        "measure.run(*map(pathlib.Path, ('measure.json', 'r.parquet', 'measured.parquet')))"
    )
    environment = environment_with()
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not measured.exists()
    measure_segments(tmp_path, segments)
    assert measured.read_bytes() == uninterrupted


def test_a_recording_is_silent_if_the_mean_of_its_channels_is(tmp_path: Path) -> None:
    wave = 1.5e-4 * np.sin(np.arange(24_000) / 20)  # above the limit of 1e-4; half of it is not
    sf.write(tmp_path / "a.wav", np.stack([wave, 0 * wave], axis=1), 24_000, subtype="FLOAT")
    [row] = measure_segments(tmp_path, [Span(str(tmp_path / "a.wav"))])
    assert row["reason"] == "silent"
    assert "7.5e-05" in row["fact"]


def test_a_clipping_channel_is_reported_even_if_the_mean_does_not_clip(tmp_path: Path) -> None:
    wave = np.clip(1.5 * np.sin(np.arange(24_000) / 20), -1, 1)
    sf.write(tmp_path / "a.wav", np.stack([wave, 0.1 * wave], axis=1), 24_000)
    [row] = measure_segments(tmp_path, [Span(str(tmp_path / "a.wav"), None, None)])
    assert row["peak"] > 0.99
    assert row["clipping_fraction"] > 0.1


def test_levels_are_those_of_the_mean_of_the_channels(tmp_path: Path) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(24_000) / 24_000)  # 200 whole periods
    sf.write(tmp_path / "a.wav", np.stack([wave, 0 * wave], axis=1), 24_000, subtype="FLOAT")
    [row] = measure_segments(tmp_path, [Span(str(tmp_path / "a.wav"))])
    assert row["rms_dbfs"] == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=1e-4)
    assert (row["num_channels"], row["channel"]) == (2, None)


@pytest.mark.parametrize("reason", ["audio_missing", "audio_unreadable"])
def test_each_segment_of_a_file_that_cannot_be_read_has_its_fault(
    tmp_path: Path, reason: str
) -> None:
    path = tmp_path / "a.wav"
    if reason == "audio_unreadable":
        path.write_bytes(b"RIFF")
    rows = measure_segments(tmp_path, [Span(str(path), 0.0, 1.0), Span(str(path), 1.0, 2.0)])
    assert [(row["start_seconds"], row["reason"]) for row in rows] == [(0.0, reason), (1.0, reason)]
