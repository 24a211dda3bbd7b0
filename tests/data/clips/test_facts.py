"""Rows whose declared facts or texts contradict their recordings, run through the real stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import has_line_with, run_validation, tone

from higgs_pipe.data.specs import CLIPS, REJECTED
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError

Fields = dict[str, Any]
SENTENCES = [
    "It rained all day in the hills.",
    "Please close the kitchen window.",
    "Where did you put my glasses?",
    "The train to Leeds leaves at nine.",
    "We walked along the river bank.",
    "Nobody knows what he wanted there.",
]


def validated(
    folder: Path, rows: list[Fields], name: str = "m.jsonl", **settings: Any
) -> tuple[dict[str, Fields], dict[str, str], Fields]:
    """The clips by id, the reasons of rejected rows by id, and validation.json."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = {"max_rejected_fraction": 0.9, **settings}
    data = run_validation(folder, manifest=str(folder / name), validate=limits)
    clips = read_table(data / "clips.parquet", CLIPS).to_pylist()
    rejected = read_table(data / "rejected.parquet", REJECTED).to_pylist()
    summary = json.loads((data / "validation.json").read_text())
    return (
        {clip["clip_id"]: clip for clip in clips},
        {row["clip_id"]: row["reason"] for row in rejected},
        summary,
    )


def recorded(folder: Path, number: int, seconds: float = 3.0) -> str:
    path = folder / f"{number}.wav"
    if not path.exists():
        tone(path, seconds, 200 + 20 * number)
    return path.name


def sound_rows(folder: Path, num_rows: int = 3) -> list[Fields]:
    return [
        {"audio": recorded(folder, i), "text": SENTENCES[i % 6], "id": f"ok{i}"}
        for i in range(num_rows)
    ]


# --- Facts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"duration": 3.0}, None),
        ({"duration": 3.04}, None),
        ({"duration": 3000}, None),  # milliseconds
        ({"duration": 72_000}, None),  # samples
        ({"duration": "3.0"}, None),
        ({"duration": 12.0}, "duration_mismatch"),
        ({"duration": 1.2}, "duration_mismatch"),
        ({"duration": 3.4}, "duration_mismatch"),
        ({"duration": 3.08}, None),  # a tenth of a second is rounding
        ({"duration": 0}, None),  # not known
        ({"sampling_rate": 24_000}, None),
        ({"sample_rate": 24}, None),  # kHz
        ({"sample_rate": 16_000}, "sample_rate_mismatch"),
        ({"sample_rate": 24_001}, None),  # rounded
        ({"sample_rate": 24_002}, "sample_rate_mismatch"),
        ({"start": 1.0, "end": 2.0, "duration": 3.0}, None),  # of the file
        ({"start": 1.0, "end": 2.0, "duration": 1.0}, None),
        ({"start": 0.5, "end": 2.5, "duration": 1.0}, "duration_mismatch"),
        ({"offset": 1.0, "duration": 1.5}, None),
        ({"offset": 1.0, "duration": 5.0}, "segment_outside"),
    ],
)
def test_declared_facts_are_checked_against_the_recording(
    tmp_path: Path, said: Fields, reason: str | None
) -> None:
    row = {"audio": recorded(tmp_path, 9), "text": "Nobody knows.", "id": "x", **said}
    clips, reasons, _ = validated(tmp_path, [*sound_rows(tmp_path), row])
    assert reasons == ({} if reason is None else {"x": reason})
    if reason is None and "offset" in said:
        assert (clips["x"]["start_seconds"], clips["x"]["end_seconds"]) == (1.0, 2.5)


def test_the_duration_of_a_nemo_row_without_offset_is_checked(tmp_path: Path) -> None:
    rows = [
        {"audio_filepath": row["audio"], "text": row["text"], "id": row["id"], "duration": length}
        for row, length in zip(sound_rows(tmp_path), (3.0, 3.0, 9.0), strict=True)
    ]
    assert validated(tmp_path, rows)[1] == {"ok2": "duration_mismatch"}


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ({"start": 2.0, "end": 1.0}, ("m.jsonl:2", "2", "1")),
        ({"language": "It rained all day."}, ("m.jsonl:2", "`language`")),
        ({"language": "we went to the river"}, ("m.jsonl:2", "`language`")),
        ({"text": "wavs/a.wav"}, ("m.jsonl:2", "`text`", "wavs/a.wav")),
    ],
)
def test_an_impossible_value_is_a_fault_of_its_row(
    tmp_path: Path, said: Fields, tokens: tuple[str, ...]
) -> None:
    rows = [{"audio": "a.wav", "text": "A."}, {"audio": "b.wav", "text": "B.", **said}]
    with pytest.raises(UserError) as caught:
        validated(tmp_path, rows)
    assert has_line_with(str(caught.value), *tokens)


@pytest.mark.parametrize("language", ["en", "zh-CN", "pt_BR", "Chinese (Mandarin)", "sr-Latn"])
def test_a_language_may_be_a_code_or_a_name(tmp_path: Path, language: str) -> None:
    rows = [row | {"language": language} for row in sound_rows(tmp_path)]
    assert len(validated(tmp_path, rows)[0]) == 3


# --- Texts ----------------------------------------------------------------------------------------


def rows_with(folder: Path, texts: list[str], seconds: float = 3.0, **more: Any) -> list[Fields]:
    return [
        {"audio": recorded(folder, i, seconds), "text": text, **more}
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("texts", "fact"),
    [
        (["Hello there my friend.", "Good morning to you.", "How are you today?"] * 5, "3 diff"),
        (["ada", "ben", "ada", "ben"], "single words"),
        (["0", "17", "0", "17", "17"], "numbers"),
        (["Ada", "Ben", "Cleo", "Dora", "Eve"], "5 of 5 texts"),
        (["Yes.", *SENTENCES[:2], "No.", "Stop."], "3 of 5 texts"),
        ([f"Read this aloud: {sentence}" for sentence in SENTENCES[:4]], "'Read this aloud:'"),
    ],
)
def test_texts_taken_from_a_wrong_column_stop_the_run_and_are_shown(
    tmp_path: Path, texts: list[str], fact: str
) -> None:
    rows = rows_with(tmp_path, texts, seconds=4.5)
    with pytest.raises(UserError) as caught:
        validated(tmp_path, rows)
    message = str(caught.value)
    assert fact in message
    assert has_line_with(message, "m.jsonl:1: 0.wav", repr(texts[0]))
    assert "keep_text_together" not in message
    assert len(validated(tmp_path, rows, check_texts=False)[0]) == len(rows)


def test_recordings_shared_by_most_rows_with_different_texts_stop_the_run(tmp_path: Path) -> None:
    rows = [row | {"id": row["audio"]} for row in rows_with(tmp_path, SENTENCES)]
    for row in rows[1:4]:
        row["audio"] = rows[0]["audio"]
    with pytest.raises(UserError) as caught:
        validated(tmp_path, rows)
    assert "3 different recordings with 6 texts" in str(caught.value)
    assert len(validated(tmp_path, rows, check_texts=False)[0]) == 6


def test_recordings_with_contradictory_rows_are_reported(tmp_path: Path) -> None:
    rows = [row | {"speaker": "ada"} for row in sound_rows(tmp_path, 4)]
    copy = rows[0] | {"id": "copy", "text": "It rained all day -- in the HILLS!"}
    assert validated(tmp_path, [*rows, copy])[2]["contradictions"] == {}
    unnamed = {key: copy[key] for key in copy if key != "speaker"}
    assert validated(tmp_path, [*rows, unnamed])[2]["contradictions"] == {}
    copy |= {"text": "Other words.", "speaker": "ben"}
    rows[1] |= {"ref_audio": rows[2]["audio"], "ref_text": "Not its words."}
    found = validated(tmp_path, [*rows, copy])[2]["contradictions"]
    place = f"{tmp_path}/m.jsonl"
    assert found["speakers"] == {
        "num_recordings": 1,
        "examples": [f"ada ({place}:1), ben ({place}:5)"],
    }
    assert found["texts"]["num_recordings"] == 2
    assert found["texts"]["examples"][1] == (
        f"Not its words. ({place}:2), {rows[2]['text']} ({place}:3)"
    )


def test_a_text_equal_to_the_speaker_in_every_row_stops_the_run(tmp_path: Path) -> None:
    names = ["Ada Low", "Ben May", "Cleo Orr", "Dora Fay"]
    rows = [row | {"speaker": row["text"]} for row in rows_with(tmp_path, names)]
    with pytest.raises(UserError, match="speaker"):
        validated(tmp_path, rows)


def test_many_speakers_may_read_the_same_sentences(tmp_path: Path) -> None:
    rows = [
        row | {"speaker": f"s{i // 3}"}
        for i, row in enumerate(rows_with(tmp_path, SENTENCES[:3] * 5))
    ]
    assert len(validated(tmp_path, rows)[0]) == 15


def test_short_words_in_short_recordings_are_accepted_as_texts(tmp_path: Path) -> None:
    rows = rows_with(tmp_path, ["Yes.", "No.", "Stop.", "Go.", "Left.", "Right."], seconds=0.8)
    assert len(validated(tmp_path, rows)[0]) == 6


# --- What no row comes from, and scenes -----------------------------------------------------------


def test_skipped_files_are_in_validation_json(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "ada"
    folder.mkdir(parents=True)
    for i in range(3):
        recorded(folder, i)
        (folder / f"{i}.txt").write_text(SENTENCES[i])
    (folder / "alone.txt").write_text("Nothing says this.")
    (folder / "5.m4a").write_bytes(b"no audio that can be read")
    (folder / "5.txt").write_text(SENTENCES[5])
    data = run_validation(
        tmp_path, manifest=str(tmp_path / "corpus"), validate={"max_rejected_fraction": 0.5}
    )
    summary = json.loads((data / "validation.json").read_text())
    assert (summary["num_rows"], summary["num_clips"]) == (4, 3)
    assert summary["num_rejected_by_reason"] == {"audio_unreadable": 1}
    assert list(summary["speakers"]) == ["ada"]
    ((_, left_out),) = summary["left_out"].items()
    assert (left_out["num_files"], left_out["first_files"]) == (1, [str(folder / "alone.txt")])


def test_guessed_column_names_are_in_validation_json(tmp_path: Path) -> None:
    rows = [{"path": row["audio"], "sentence": row["text"]} for row in sound_rows(tmp_path)]
    (note,) = validated(tmp_path, rows)[2]["manifest_notes"]
    assert "'path' as audio" in note


def test_a_scene_shared_by_all_clips_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row | {"scene": "quiet_room"} for row in sound_rows(tmp_path)]
    sentence = "Audio is recorded from quiet room."
    clips, _, summary = validated(tmp_path, rows)
    assert {clip["scene"] for clip in clips.values()} == {summary["shared_scene"]} == {sentence}
    assert sentence in caplog.text
    rows[0]["scene"] = "A hall."
    assert validated(tmp_path, rows)[2]["shared_scene"] is None


# --- Conversations --------------------------------------------------------------------------------


def said(text: str) -> Fields:
    return {"type": "text", "text": text}


def heard(path: str) -> Fields:
    return {"type": "audio", "audio_url": path}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("user", [said("Either."), heard("7.wav")]), ("assistant", [heard("8.wav")])], "l"),
        ([("system", [said("S."), heard("7.wav")]), ("user", "T."), ("assistant", "8")], "l"),
        ([("user", "A joke?"), ("assistant", [said("Knock."), heard("8.wav")])], "l"),
        ([("user", "A."), ("assistant", [heard("7.wav"), heard("8.wav")])], "l"),
        ([("user", "A."), ("assistant", "8"), ("user", "And then?")], "l"),
        ([("assistant", "7"), ("user", "T."), ("assistant", "8")], "t"),
    ],
)
def test_a_conversation_layout_unknown_to_inference_is_rejected(
    tmp_path: Path, messages: list[tuple[str, Any]], reason: str
) -> None:
    for number in (7, 8):
        recorded(tmp_path, number)
    plain = [
        {
            "id": row["id"],
            "messages": [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": heard(row["audio"])},
            ],
        }
        for row in sound_rows(tmp_path)
    ]
    turns = [
        {"role": role, "content": heard(f"{c}.wav") if c in ("7", "8") else c}
        for role, c in messages
    ]
    _, reasons, _ = validated(tmp_path, [*plain, {"id": "x", "messages": turns}])
    assert reasons == {"x": {"l": "conversation_layout", "t": "text_empty"}[reason]}
