"""The states of recordings, which list_rows keeps from one run to the next."""

import json
import os
from pathlib import Path

import pytest
from helpers import run_validation, tone

from higgs_pipe import list_rows
from higgs_pipe.data.specs import RECORDINGS, ROWS
from higgs_pipe.data.tables import read_table, shard_path
from higgs_pipe.planning.recordings import stamp_of


@pytest.mark.parametrize("has_changed", [False, True])
def test_a_touched_recording_keeps_its_first_state_in_all_later_runs(
    tmp_path: Path, has_changed: bool
) -> None:
    """So that its shard is not measured again; a changed one gets a new state."""
    recording = tone(tmp_path / "a.wav", 1.0)
    tone(tmp_path / "b.wav", 1.2)
    rows = [{"audio": f"{name}.wav", "text": f"Tone {name}."} for name in "ab"]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run_validation(tmp_path, manifest=str(manifest), data={"num_shards": 1})

    def listed() -> bytes:
        list_rows.run(
            tmp_path / "config/list_rows.json",
            data / "rows.parquet",
            data / "recordings",
            file_states=data / "recordings.json",
            measured_dir=data / "measured",
        )
        return shard_path(data / "recordings", 0).read_bytes()

    first = listed()
    if has_changed:
        tone(recording, 1.0, pitch_hz=330)  # as many bytes
    os.utime(recording, (1e9, 1e9))
    assert (listed() != first) == has_changed
    assert (listed() != first) == has_changed


def test_a_touched_recording_is_looked_up_in_each_shard_of_measures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recordings = [tone(tmp_path / f"{i}.wav", 1.0, 200 + 20 * i) for i in range(4)]
    rows = [{"audio": path.name, "text": f"Tone {path.stem}."} for path in recordings]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run_validation(tmp_path, manifest=str(manifest), data={"num_shards": 1})
    measured = shard_path(data / "measured", 0).rename(shard_path(data / "measured", 1))
    shard_path(data / "measured", 0).write_bytes(b"damaged")

    def times() -> list[int | None]:
        list_rows.run(
            tmp_path / "config/list_rows.json",
            data / "rows.parquet",
            data / "recordings",
            file_states=data / "recordings.json",
            measured_dir=measured.parent,
        )
        found = read_table(shard_path(data / "recordings", 0), RECORDINGS)
        modified: list[int | None] = found["mtime_ns"].to_pylist()
        return modified

    first = times()
    recordings[3].unlink()
    for path in recordings[1:3]:
        tone(path, 1.0, pitch_hz=330)  # as many bytes
    for path in recordings[:3]:
        os.utime(path, (1e9, 1e9))
    assert times() == [first[0], 10**18, 10**18, None]
    assert "3 recordings were touched, 2 of them changed" in caplog.text


def test_the_recordings_of_a_shard_are_sorted_by_file_and_time(tmp_path: Path) -> None:
    spans = [(None, None), (0.0, None), (0.0, 1.0), (0.0, 2.0), (1.0, None)]
    expected = [(f"{name}.wav", *span) for name in "abcdefgh" for span in spans]
    manifest = tmp_path / "m.jsonl"
    rows = [
        {"audio": audio, "text": "Said.", "start_seconds": start, "end_seconds": end}
        for audio, start, end in reversed(expected)
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed(tmp_path / "run", manifest)
    found = read_table(shard_path(tmp_path / "run/recordings", 0), RECORDINGS).to_pylist()
    assert [
        (Path(row["audio_path"]).name, row["start_seconds"], row["end_seconds"]) for row in found
    ] == expected


def listed(folder: Path, manifest: Path) -> list[dict[str, str]]:
    """List a manifest as Snakemake would; return its rows."""
    folder.mkdir(exist_ok=True)
    config = folder / "list_rows.json"
    config.write_text(json.dumps({"manifest": str(manifest), "data": {"num_shards": 1}}))
    list_rows.run(
        config,
        folder / "rows.parquet",
        folder / "recordings",
        file_states=folder / "recordings.json",
        stamp=planned(folder, manifest),
    )
    rows: list[dict[str, str]] = read_table(folder / "rows.parquet", ROWS).to_pylist()
    return rows


def planned(folder: Path, manifest: Path) -> str:
    return stamp_of(folder / "recordings.json", [str(manifest)])


def test_a_transcript_that_a_manifest_names_is_read_again_once_it_changes(tmp_path: Path) -> None:
    (tmp_path / "a.words").write_text("What was said.")
    manifest = tmp_path / "mine.json"
    sample = {"id": "a", "audio_file": "a.wav", "transcript_file": "a.words"}
    manifest.write_text(json.dumps({"samples": [sample]}))
    tone(tmp_path / "a.wav", 1.0)
    assert listed(tmp_path / "run", manifest)[0]["text"] == "What was said."
    before = planned(tmp_path / "run", manifest)
    assert before == planned(tmp_path / "run", manifest)
    (tmp_path / "a.words").write_text("What was really said.")
    assert planned(tmp_path / "run", manifest) != before
    assert listed(tmp_path / "run", manifest)[0]["text"] == "What was really said."


@pytest.mark.parametrize("name", ["wavs/a.flac", "a.mp3"])
def test_a_missing_recording_is_found_once_it_comes_with_another_ending(
    tmp_path: Path, name: str
) -> None:
    manifest = tmp_path / "lj/m.csv"
    tone(tmp_path / "lj/wavs/b.wav", 1.0)
    manifest.write_text("a|What is said.\nb|What else is said.\n")
    assert listed(tmp_path / "run", manifest)[0]["audio"] == "wavs/a.wav"
    others = json.loads((tmp_path / "run/recordings.json").read_text())["others"]
    assert list(others) == [str(tmp_path / "lj"), str(tmp_path / "lj/wavs")]  # in this order always
    before = planned(tmp_path / "run", manifest)
    assert before == planned(tmp_path / "run", manifest)
    tone(tmp_path / "lj" / name, 1.0)
    assert planned(tmp_path / "run", manifest) != before
    assert listed(tmp_path / "run", manifest)[0]["audio"] == name
    assert planned(tmp_path / "run", manifest) == planned(tmp_path / "run", manifest)
