"""Conversations from the manifest to the table of clips: every turn measured, judged and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from helpers import run_validation, tone, write_stage_config
from transformers import AutoTokenizer

from higgs_pipe import pack, tokenize_audio
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.specs import CLIPS, REJECTED, SHARD_CLIPS
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError
from higgs_pipe.planning.model_types import V2, V3

NAMES = "abcdefgh"
Fields = dict[str, Any]


@pytest.fixture(autouse=True)
def recordings(tmp_path: Path) -> None:
    """a.wav to h.wav, none like another."""
    for index, name in enumerate(NAMES):
        tone(tmp_path / f"{name}.wav", 1.0, pitch_hz=200 + 31 * index)


def user(words: str) -> Fields:
    return {"role": "user", "content": words}


def assistant(name: str, **others: Any) -> Fields:
    return {
        "role": "assistant",
        "content": {"type": "audio", "audio_url": f"{name}.wav", **others},
    }


def talk(*names: str, **others: Any) -> Fields:
    """A sample with a turn pair for each recording, under a system message of its own."""
    pairs = [message for name in names for message in (user(f"Say {name}."), assistant(name))]
    return {"messages": [{"role": "system", "content": "Be calm."}, *pairs], **others}


def plain(name: str, **others: Any) -> Fields:
    return {"messages": [user(f"Say {name}."), assistant(name)], **others}


def run(folder: Path, *samples: Fields, families: tuple[str, ...] = (V2,), **data: Any) -> Path:
    path = folder / "m.json"
    path.write_text(json.dumps(samples), encoding="utf-8")
    return run_validation(
        folder / "out",
        families=families,
        manifest=str(path),
        data=data,
        validate={"max_rejected_fraction": 1.0},
    )


def clips_of(folder: Path) -> dict[str, Fields]:
    clips = read_table(folder / "clips.parquet", CLIPS).to_pylist()
    return {clip["clip_id"]: clip for clip in clips}


def rejected_of(folder: Path) -> dict[str, tuple[str, str]]:
    rows = read_table(folder / "rejected.parquet", REJECTED).to_pylist()
    return {row["clip_id"]: (row["reason"], row["message"]) for row in rows}


def test_a_conversation_with_a_scene_is_rejected_for_a_base_without_scenes(tmp_path: Path) -> None:
    scene = {"role": "scene", "content": "A hall."}
    samples = [plain("a"), plain("b"), {"messages": [scene, *talk("c", "d", "e")["messages"][1:]]}]
    found = rejected_of(run(tmp_path, *samples, families=(V3,)))
    assert [reason for reason, _ in found.values()] == ["no_scenes"]
    assert "turn 1" in next(iter(found.values()))[1]


def summary_of(folder: Path) -> Fields:
    summary: Fields = json.loads((folder / "validation.json").read_text())
    return summary


# --- What becomes of the recordings --------------------------------------------------------------


def test_the_clip_of_a_conversation_names_all_its_recordings_in_order(tmp_path: Path) -> None:
    out = run(tmp_path, talk("a", "b", "c", id="x", start_index=3), plain("h"), plain("g"))
    clips = clips_of(out)
    turns = json.loads(clips["x"]["conversation"])
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3]
    assert turns[1] == {"role": "user", "parts": [{"text": "Say a."}], "is_target": False}
    assert [turn["is_target"] for turn in turns] == [False] * 4 + [True, False, True]
    first, second, own = (turn["parts"][0]["clip_id"] for turn in turns[2::2])
    assert own == "x"
    assert Path(clips[own]["audio_path"]).name == "c.wav"
    for clip_id, name in ((first, "a"), (second, "b")):
        assert clip_id == f"ref-{clips[clip_id]['pcm_sha256'][:16]}"
        assert clips[clip_id]["split"] == "reference"
        assert Path(clips[clip_id]["audio_path"]).name == f"{name}.wav"
        assert clips[clip_id]["text"] == f"Say {name}."
        assert clips[clip_id]["conversation"] is None


def test_a_recording_shared_by_conversations_is_one_clip_in_one_shard(tmp_path: Path) -> None:
    out = run(tmp_path, talk("a", "b", id="x"), talk("a", "c", id="y"), plain("h"), num_shards=3)
    clips = clips_of(out)
    x, y = (json.loads(clips[name]["conversation"]) for name in "xy")
    (reference,) = {turns[2]["parts"][0]["clip_id"] for turns in (x, y)}
    assert sum(clip["split"] == "reference" for clip in clips.values()) == 1
    path = out / "shards" / f"shard-{shard_of(reference, 3):05d}.parquet"
    assert reference in read_table(path, SHARD_CLIPS)["clip_id"].to_pylist()


def test_a_segment_in_a_conversation_is_a_clip_of_that_segment(tmp_path: Path) -> None:
    tone(tmp_path / "long.wav", 4.0)
    messages = [user("One."), assistant("long", offset=0, duration=1.5)]
    messages += [user("Two."), assistant("long", offset=2, duration=1)]
    out = run(tmp_path, {"messages": messages, "id": "x"}, plain("h"), plain("g"))
    clips = clips_of(out)
    turns = json.loads(clips["x"]["conversation"])
    context = clips[turns[1]["parts"][0]["clip_id"]]
    assert (context["start_seconds"], context["end_seconds"]) == (0, 1.5)
    assert (clips["x"]["start_seconds"], clips["x"]["duration_seconds"]) == (2, 1)


def test_a_plain_row_has_no_conversation(tmp_path: Path) -> None:
    clips = clips_of(run(tmp_path, plain("a"), plain("b")))
    assert [clip["conversation"] for clip in clips.values()] == [None, None]


# --- Faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "families", "reason"),
    [
        (0.9, (V3,), "short_reference"),
        (0.9, (V2, V3), "short_reference"),
        (0.9, (V2,), ""),
        (1.0, (V3,), ""),
    ],
)
def test_a_reference_must_be_long_enough_for_every_base_in_use(
    tmp_path: Path, seconds: float, families: tuple[str, ...], reason: str
) -> None:
    """Servers of Higgs TTS 3 pad a short one before they encode it, which codes cannot be."""
    tone(tmp_path / "a.wav", seconds)
    tone(tmp_path / "b.wav", 0.8)  # a target may be as short as any
    messages = talk("a", "b", "c")["messages"][1:]
    rows = [{"messages": messages, "id": "x", "start_index": 2}, plain("h"), plain("g")]
    found = rejected_of(run(tmp_path, *rows, families=families))
    assert [key for key, _ in found.values()] == ([reason] if reason else [])
    assert not reason or found["x"][1].startswith("turn 2 lasts 0.900 s")


@pytest.mark.parametrize(
    ("name", "reason", "fact"),
    [
        ("none", "audio_missing", "none.wav"),
        ("page", "audio_unreadable", "page.wav"),
        ("silent", "silent", "silent.wav is silent"),
        ("brief", "too_short", "brief.wav lasts 0.100 s"),
    ],
)
@pytest.mark.parametrize("start_index", [0, None])
def test_a_bad_recording_in_any_turn_rejects_the_row_and_names_the_turn(
    tmp_path: Path, name: str, reason: str, fact: str, start_index: int | None
) -> None:
    (tmp_path / "page.wav").write_text("<html>")
    sf.write(tmp_path / "silent.wav", np.zeros(24_000), 24_000)
    tone(tmp_path / "brief.wav", 0.1)
    bad = talk(name, "b", id="x", start_index=start_index)
    found, message = rejected_of(run(tmp_path, bad, plain("h"), plain("g")))["x"]
    assert found == reason
    assert message.startswith("turn 3: ")
    assert fact in message


@pytest.mark.parametrize(
    ("content", "reason", "fact"),
    [
        ("Say <|eot_id|> a.", "control_token", "turn 2 contains <|eot_id|>"),
        ([{"type": "text", "text": "<|eot"}, "_id|>"], "control_token", "turn 2 contains <|eot"),
        (" ", "text_empty", "the text of turn 2"),
    ],
)
def test_a_bad_text_in_any_turn_rejects_the_row_and_names_the_turn(
    tmp_path: Path, content: Any, reason: str, fact: str
) -> None:
    bad = talk("a", "b", id="x")
    bad["messages"][1]["content"] = content
    found, message = rejected_of(run(tmp_path, bad, plain("h"), plain("g")))["x"]
    assert (found, message[: len(fact)]) == (reason, fact)


def test_context_containing_audio_of_the_target_is_rejected(tmp_path: Path) -> None:
    tone(tmp_path / "long.wav", 4.0)
    messages = [user("One."), assistant("long", offset=0, duration=2.5)]
    messages += [user("Two."), assistant("long", offset=2, duration=1)]
    part = {"messages": messages, "id": "part"}
    shutil.copy(tmp_path / "a.wav", tmp_path / "copy.wav")
    copy, same = talk("copy", "a", id="copied"), talk("a", "a", id="same")
    out = run(tmp_path, part, copy, same, plain("h"), plain("g"))
    for clip_id, turns in (("part", (2, 4)), ("copied", (3, 5)), ("same", (3, 5))):
        reason, message = rejected_of(out)[clip_id]
        assert reason == "reference_is_target"
        assert message.startswith("turn {} holds audio of turn {},".format(*turns))


def test_filters_apply_to_target_turns_only(tmp_path: Path) -> None:
    samples, rate = sf.read(tmp_path / "a.wav")
    sf.write(tmp_path / "quiet.wav", samples / 300, rate)
    sections = {"max_rejected_fraction": 1.0, "filters": {"min_rms_dbfs": -50}}
    manifest = tmp_path / "m.json"
    learned, heard = talk("quiet", "b", id="x", start_index=0), talk("quiet", "c", id="y")
    manifest.write_text(json.dumps([learned, heard, plain("h")]))
    out = run_validation(tmp_path / "out", manifest=str(manifest), validate=sections)
    ((clip_id, (reason, message)),) = rejected_of(out).items()
    assert (clip_id, reason, message[:7]) == ("x", "quiet", "turn 3:")


# --- Splits --------------------------------------------------------------------------------------


def sides(folder: Path, *samples: Fields) -> list[dict[str, str]]:
    """The split of each clip under several seeds; none leaves anything on both sides."""
    found = []
    for seed in range(6):
        out = run(folder, *samples, eval_fraction=0.5, split_seed=seed, num_shards=1)
        assert set(summary_of(out)["overlap"].values()) == {0}
        clips = clips_of(out)
        found.append({i: c["split"] for i, c in clips.items() if c["split"] != "reference"})
    return found


def test_all_targets_of_a_conversation_are_in_its_split(tmp_path: Path) -> None:
    """Not the last target alone: a is an earlier target of x."""
    samples = [talk("a", "b", id="x", start_index=0), plain("a"), plain("c"), plain("d")]
    assert all(split["x"] == split["a"] for split in sides(tmp_path, *samples))


def test_a_clip_used_as_context_is_in_the_split_of_its_conversation(tmp_path: Path) -> None:
    samples = [talk("a", "b", id="x"), plain("a"), plain("c"), plain("d")]
    assert all(split["x"] == split["a"] for split in sides(tmp_path, *samples))


def test_context_may_cross_the_split_if_allowed_and_is_then_counted(tmp_path: Path) -> None:
    samples = [talk("a", "b", id="x"), plain("a", split="eval"), plain("c", split="train")]
    samples[0]["split"] = "train"
    out = run(tmp_path, *samples, keep_context_together=False)
    assert rejected_of(out) == {}
    overlap = summary_of(out)["overlap"]
    assert overlap.pop("context") > 0
    assert set(overlap.values()) == {0}


def test_a_recording_used_only_as_context_ties_nothing_together(tmp_path: Path) -> None:
    """One prompt for all conversations must leave them free to be split."""
    samples = [talk("a", name, id=name) for name in "bcdefg"]
    assert any(len(set(split.values())) == 2 for split in sides(tmp_path, *samples))


def test_a_conversation_and_its_turn_in_different_splits_reject_the_train_row(
    tmp_path: Path,
) -> None:
    x = talk("a", "b", id="x", start_index=0, split="train")
    out = run(tmp_path, x, plain("a", split="eval"), plain("c", split="train"))
    reason, message = rejected_of(out)["x"]
    assert reason == "split_conflict"
    assert f"the same audio at {tmp_path}/m.json:2" in message


def test_a_corpus_linked_into_one_group_by_context_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.keep_context_together"):
        run(tmp_path, talk("a", "b", id="b"), talk("b", "c", id="c"), talk("c", "a", id="a"))


def test_the_number_of_threads_does_not_change_the_bytes_of_conversations(tmp_path: Path) -> None:
    samples = [talk("a", "b", "c", id="x"), talk("b", "d", id="y"), plain("h"), plain("g")]
    first = {p.name: p.read_bytes() for p in run(tmp_path, *samples).glob("*.parquet")}
    manifest = str(tmp_path / "m.json")
    limits = {"max_rejected_fraction": 1.0}
    again = run_validation(tmp_path / "again", 4, manifest=manifest, validate=limits)
    assert first == {p.name: p.read_bytes() for p in again.glob("*.parquet")}


# --- On to the packed rows -----------------------------------------------------------------------


def test_a_packed_conversation_has_labels_only_on_its_targets(
    tmp_path: Path, tiny_base: Path
) -> None:
    x = talk("a", "b", "c", id="x", start_index=3, split="train", speaker="ada")
    same_speaker = plain("g", split="train", speaker="ada")
    out = run(tmp_path, x, same_speaker, plain("h", split="eval"), num_shards=1)
    codec = str(tiny_base / "audio_tokenizer")
    config = write_stage_config(tmp_path / "tokenize.json", codec=codec)
    shard = "shards/shard-00000.parquet"
    tokenize_audio.run(config, out / shard, tmp_path / "codes" / "shard-00000.parquet")
    settings = {"tasks": {"speech": 0, "cloning": 1}}
    config = write_stage_config(
        tmp_path / "pack.json", base_model=str(tiny_base), pack=settings | {"max_tokens": 256}
    )
    pack.run(
        config,
        clips=out / "clips.parquet",
        codes_dir=tmp_path / "codes",
        num_shards=1,
        train_rows=tmp_path / "train.parquet",
        eval_rows=tmp_path / "eval.parquet",
        packing=tmp_path / "packing.json",
    )

    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    (row,) = (row for row in rows if row["sample_ids"] == ["x"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    text = tokenizer.decode([i for i in row["input_ids"] if i not in (270, 272)])
    words = ["Be calm.", "Say a.", "Say b.", "Say c."]
    assert sorted(words, key=text.index) == words
    labelled = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert labelled == "<|audio_out_bos|><|audio_eos|><|eot_id|>" * 2
    # A second is 25 frames, and BOS, EOS and 7 frames of delay: three recordings of 34.
    is_labelled = (np.array(row["audio_labels"]) != -100).any(axis=1).reshape(3, 34)
    assert is_labelled.any(axis=1).tolist() == [False, True, True]
    # A conversation is nobody's reference: its text may be of several voices.
    fallbacks = json.loads((tmp_path / "packing.json").read_text())["fallbacks"]
    assert ("train", "ada") in [(f["split"], f["speaker"]) for f in fallbacks]
