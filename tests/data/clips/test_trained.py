"""Rows of another manifest: all held out, except those that training already has."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile as sf
from helpers import has_line_with, run_validation, tone

from higgs_pipe.errors import UserError

LENIENT = {"max_rejected_fraction": 1.0, "check_texts": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of a manifest: one held out, and one for training, which has a reference."""
    folder = tmp_path_factory.mktemp("trained")
    for name, pitch_hz in (("train", 200), ("reference", 300), ("held-out", 400)):
        tone(folder / f"{name}.wav", 2.0, pitch_hz)
    rows: list[dict[str, Any]] = [
        {"audio": "held-out.wav", "text": "Rain again.", "split": "eval"},
        {"audio": "train.wav", "text": "The sun rises.", "split": "train"},
    ]
    rows[1] |= {"ref_audio": "reference.wav", "ref_text": "A voice."}
    return validated(folder, rows) / "clips.parquet"


def validated(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"validate": LENIENT, "data": {"num_shards": 1}, **settings}
    return run_validation(folder, manifest=str(folder / "m.jsonl"), **settings)


def rejected(data: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(data / "rejected.parquet").to_pylist()
    return {row["clip_id"]: (row["reason"], row["message"]) for row in rows}


def test_every_row_of_another_manifest_is_held_out(trained: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"audio": str(tone(tmp_path / f"{i}.wav", 1.0, 500 + 50 * i)), "text": f"Number {i}."}
        for i in range(4)
    ]
    rows[0]["split"] = "train"
    for split_by in ("clip", "speaker", "given"):
        data = validated(
            tmp_path / split_by,
            rows,
            trained_clips=trained,
            data={"num_shards": 1, "split_by": split_by},
        )
        assert pq.read_table(data / "clips.parquet")["split"].to_pylist() == ["eval"] * 4


def test_rows_that_share_audio_or_text_with_training_are_rejected(
    trained: Path, tmp_path: Path
) -> None:
    folder = trained.parents[1]
    copied, rate_hz = sf.read(folder / "train.wav")
    sf.write(tmp_path / "copy.flac", copied, rate_hz)
    new, newer = (str(tone(tmp_path / f"{pitch}.wav", 1.0, pitch)) for pitch in (700, 800))
    part = {"audio": str(folder / "train.wav"), "start_seconds": 0.5, "end_seconds": 1.5}
    rows: list[dict[str, Any]] = [
        {"id": "copy", "audio": "copy.flac", "text": "Other words."},
        {"id": "part", "text": "A few words.", **part},
        {"id": "text", "audio": new, "text": "the SUN rises"},
        {"id": "reference", "audio": str(folder / "reference.wav"), "text": "What it says."},
        {"id": "its words", "audio": newer, "text": "a voice"},
        {"id": "held out", "audio": str(folder / "held-out.wav"), "text": "Rain again."},
    ]
    data = validated(tmp_path, rows, trained_clips=trained)
    found = rejected(data)
    assert {name: reason for name, (reason, _) in found.items()} == dict.fromkeys(
        ("copy", "part", "text", "reference", "its words"), "also_in_training"
    )
    assert all(f"{folder}/m.jsonl:2" in message for _, message in found.values())
    assert pq.read_table(data / "clips.parquet")["clip_id"].to_pylist() == ["held out"]


def test_a_conversation_whose_earlier_turn_was_trained_on_is_rejected(
    trained: Path, tmp_path: Path
) -> None:
    def talk(clip_id: str, *said: Path) -> dict[str, Any]:
        turns = [
            turn
            for path in said
            for turn in (
                {"role": "user", "content": f"Words of {path.stem}."},
                {"role": "assistant", "content": {"type": "audio", "audio_url": str(path)}},
            )
        ]
        return {"id": clip_id, "messages": turns, "start_index": 0}

    new = [tone(tmp_path / f"{i}.wav", 1.0, 500 + 50 * i) for i in range(3)]
    heard = trained.parents[1] / "train.wav"
    rows = [talk("fresh", *new[:2]), talk("known", heard, new[2])]
    data = validated(tmp_path, rows, trained_clips=trained)
    assert {name: reason for name, (reason, _) in rejected(data).items()} == {
        "known": "also_in_training"
    }


def test_equal_texts_count_only_if_the_split_keeps_texts_together(
    trained: Path, tmp_path: Path
) -> None:
    new = str(tone(tmp_path / "new.wav", 1.0, 700))
    rows = [{"audio": new, "text": "The sun rises."}]
    apart = {"num_shards": 1, "keep_text_together": False}
    data = validated(tmp_path, rows, trained_clips=trained, data=apart)
    assert rejected(data) == {}


def test_another_part_of_a_recording_counts_only_if_the_split_is_by_recordings(
    tmp_path: Path,
) -> None:
    long, *others = (str(tone(tmp_path / f"{i}.wav", 3.0, 200 + 100 * i)) for i in range(3))
    rows: list[dict[str, Any]] = [
        {"audio": long, "text": "The sun rises.", "end_seconds": 1.0, "split": "train"},
        {"audio": others[0], "text": "Rain again.", "split": "eval"},
    ]
    clips = validated(tmp_path / "trained", rows) / "clips.parquet"
    later: list[dict[str, Any]] = [
        {"id": "later", "audio": long, "text": "Snow at last.", "start_seconds": 2.25},
        {"id": "other", "audio": others[1], "text": "Fog at noon."},
    ]
    for split_by, expected in (("clip", {}), ("recording", {"later": "also_in_training"})):
        settings = {"num_shards": 1, "split_by": split_by}
        data = validated(tmp_path / split_by, later, trained_clips=clips, data=settings)
        assert {name: reason for name, (reason, _) in rejected(data).items()} == expected


def test_another_manifest_with_only_trained_recordings_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    rows = [{"audio": str(trained.parents[1] / "train.wav"), "text": "The sun rises."}]
    with pytest.raises(UserError) as refused:
        validated(tmp_path, rows, trained_clips=trained)
    assert has_line_with(str(refused.value), "m.jsonl:1", "also_in_training")
