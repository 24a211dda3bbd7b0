import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import files_of_at_most, write_stage_config
from reference import audio_labels, delayed_frames
from trainings import PackedCorpus
from transformers import AutoTokenizer

from higgs_pipe import pack
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.packing import codes_store
from higgs_pipe.data.packing.codes_store import CodesStore
from higgs_pipe.data.packing.planner import DIALOGUE_TOO_LONG, REFERENCE_TOO_LONG
from higgs_pipe.data.specs import CLIPS, EVAL, TRAIN, codes_spec
from higgs_pipe.data.tables import TableFile, read_codec_info, read_table, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import packer
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.prompts import NotRendered
from higgs_pipe.higgs.v2.renderer import ChatRenderer

SPEECH_ONLY = {"speech": 1, "cloning": 0}
CLONING_ONLY = {"speech": 0, "cloning": 1}


def codes_of(corpus: PackedCorpus) -> dict[str, list[list[int]]]:
    """The codes of every clip, as the shards hold them."""
    shards = [pq.read_table(path).to_pylist() for path in corpus.codes_dir.glob("*.parquet")]
    return {row["clip_id"]: row["codes"] for rows in shards for row in rows}


def samples_of(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every packed sample by its id, cut out of its row."""
    samples = {}
    for row in pq.read_table(path).to_pylist():
        start = first_frame = 0
        for sample_id, length in zip(row["sample_ids"], row["sample_lengths"], strict=True):
            ids = np.array(row["input_ids"][start : start + length])
            num_frames = int(np.isin(ids, (270, 272)).sum())
            frames = slice(first_frame, first_frame + num_frames)
            samples[sample_id] = {
                "input_ids": ids,
                "labels": np.array(row["labels"][start : start + length]),
                "audio_input_ids": np.array(row["audio_input_ids"][frames]),
                "audio_labels": np.array(row["audio_labels"][frames]),
            }
            start, first_frame = start + length, first_frame + num_frames
        assert start == len(row["input_ids"])
    return samples


def test_every_clip_is_packed_once_and_no_row_exceeds_max_tokens(corpus: PackedCorpus) -> None:
    rows = pq.read_table(corpus.train_rows).to_pylist()
    assert max(len(row["input_ids"]) for row in rows) <= 512
    counts = Counter(sample_id for row in rows for sample_id in row["sample_ids"])
    assert counts == {f"clip-{i:02d}": 1 for i in range(14) if i not in (3, 6, 9)}
    held_out = pq.read_table(corpus.eval_rows)["sample_ids"].to_pylist()
    assert sorted(i for row in held_out for i in row) == ["clip-03", "clip-06", "clip-09"]


def test_packed_codes_and_labels_match_the_plain_reference(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    corpus.pack(tmp_path, tasks=SPEECH_ONLY, max_tokens=512)
    codes = codes_of(corpus)
    samples = samples_of(tmp_path / "train.parquet")
    assert len(samples) == 11
    for clip_id, sample in samples.items():
        clip_codes = codes[clip_id]
        assert sample["audio_input_ids"].tolist() == delayed_frames(clip_codes, 1024, 1025)
        assert sample["audio_labels"].tolist() == audio_labels(clip_codes, 1024, 1025)
        assert (sample["labels"] != -100).sum() == 3


def test_a_cloning_sample_begins_with_another_clip_of_the_speaker(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    summary = corpus.pack(tmp_path, tasks=CLONING_ONLY, max_tokens=512)
    assert summary["train"]["tasks"] == {"speech": 0, "cloning": 11}
    codes = codes_of(corpus)
    tokenizer = AutoTokenizer.from_pretrained(corpus.base)
    train_clips = [f"clip-{i:02d}" for i in range(14) if i not in (3, 6, 9)]
    for clip_id, sample in samples_of(tmp_path / "train.parquet").items():
        same_speaker = [c for c in train_clips if (int(c[-2:]) - int(clip_id[-2:])) % 2 == 0]
        candidates = {c: delayed_frames(codes[c], 1024, 1025) for c in same_speaker if c != clip_id}
        frames = sample["audio_input_ids"].tolist()
        reference = next(c for c, d in candidates.items() if frames[: len(d)] == d)
        num_reference = len(candidates[reference])
        assert (sample["audio_labels"][:num_reference] == -100).all()
        text = tokenizer.decode(sample["input_ids"])
        first = text.index(f"Tone number {int(reference[-2:])}, held")
        assert first < text.index(f"Tone number {int(clip_id[-2:])}, held")


def test_a_rows_own_reference_is_used_although_it_is_in_no_split(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    changes = {"clip-00": {"reference_id": "clip-07"}, "clip-07": {"split": "reference"}}
    corpus.changed(tmp_path, changes).pack(tmp_path / "packed", tasks=CLONING_ONLY, max_tokens=512)
    sample = samples_of(tmp_path / "packed/train.parquet")["clip-00"]
    reference = delayed_frames(codes_of(corpus)["clip-07"], 1024, 1025)
    assert sample["audio_input_ids"][: len(reference)].tolist() == reference
    text = AutoTokenizer.from_pretrained(corpus.base).decode(sample["input_ids"])
    assert "Tone number 7, held" in text


def test_scene_and_system_prompt_are_in_the_prompt(corpus: PackedCorpus, tmp_path: Path) -> None:
    corpus.pack(tmp_path, system_prompt="Speak as you are told.", tasks=SPEECH_ONLY)
    tokenizer = AutoTokenizer.from_pretrained(corpus.base)
    sample = samples_of(tmp_path / "train.parquet")["clip-05"]
    text = tokenizer.decode(sample["input_ids"])
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSpeak as"
    )
    assert "<|scene_desc_start|>\nA quiet room.\n<|scene_desc_end|>" in text
    assert "Tone number 5, held for a while.<|eot_id|>" in text  # the bare end got a full stop


def test_packing_twice_gives_the_same_bytes_and_another_seed_others(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        corpus.pack(tmp_path / name, seed=seed)
    packed = {name: (tmp_path / name / "train.parquet").read_bytes() for name in "abc"}
    assert packed["a"] == packed["b"]
    assert packed["a"] != packed["c"]


def test_the_summary_matches_the_packed_rows(corpus: PackedCorpus, tmp_path: Path) -> None:
    packing = corpus.pack(tmp_path, max_tokens=512)
    summary = packing["train"]
    assert packing["max_tokens"] == 512
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert summary["num_rows"] == len(rows)
    assert summary["num_tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert summary["fill"] == summary["num_tokens"] / (512 * len(rows))
    assert summary["num_audio_frames"] == sum(len(row["audio_input_ids"]) for row in rows)
    assert summary["num_text_labels"] == 3 * summary["num_samples"] == 33
    codes = codes_of(corpus)
    num_frames = sum(len(codes[i]) for row in rows for i in row["sample_ids"])
    assert summary["audio_seconds"] == pytest.approx(num_frames / 25)
    assert summary["num_audio_labels"] == 8 * (num_frames + 11)


def test_a_sample_longer_than_a_row_is_rejected_with_its_place(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    summary = corpus.pack(tmp_path, max_tokens=150, tasks=SPEECH_ONLY)
    assert {item["reason"] for item in summary["rejected"]} == {"too_many_tokens"}
    longest = next(item for item in summary["rejected"] if item["clip_id"] == "clip-13")
    assert "manifest.jsonl:14: " in longest["message"]
    assert "pack.max_tokens = 150" in longest["message"]
    kept = samples_of(tmp_path / "train.parquet")
    assert "clip-13" not in kept
    assert len(kept) == summary["train"]["num_samples"] > 0


def test_a_sample_of_exactly_max_tokens_fits(corpus: PackedCorpus, tmp_path: Path) -> None:
    corpus.pack(tmp_path / "wide", max_tokens=1024, tasks=SPEECH_ONLY)
    kept = samples_of(tmp_path / "wide/train.parquet")
    rows = pq.read_table(tmp_path / "wide/train.parquet").to_pylist()
    longest = max(length for row in rows for length in row["sample_lengths"])
    summary = corpus.pack(tmp_path / "narrow", max_tokens=longest, tasks=SPEECH_ONLY)
    assert summary["train"]["num_samples"] == len(kept)
    assert not summary["rejected"]
    fewer = corpus.pack(tmp_path / "less", max_tokens=longest - 1, tasks=SPEECH_ONLY)
    assert fewer["rejected"]


def test_a_reference_that_does_not_fit_is_left_out_and_counted(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    summary = corpus.pack(tmp_path, max_tokens=260, tasks=CLONING_ONLY)
    reasons = Counter(item["reason"] for item in summary["fallbacks"])
    assert reasons[REFERENCE_TOO_LONG] > 0
    assert summary["train"]["tasks"]["speech"] == sum(
        item["num_clips"] for item in summary["fallbacks"] if item["split"] == "train"
    )


def test_if_no_sample_fits_the_error_lists_every_place(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"11 samples of the train split") as caught:
        corpus.pack(tmp_path, max_tokens=64)
    facts = str(caught.value).splitlines()[1:]
    assert len(facts) == 11
    assert all("manifest.jsonl:" in fact and "pack.max_tokens = 64" in fact for fact in facts)
    assert not (tmp_path / "train.parquet").exists()


def test_if_the_template_renders_no_sample_the_error_says_so(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    parts = [{"clip_id": "clip-01"}]
    written = json.dumps([{"role": "user", "parts": parts, "is_target": False}])
    train = [f"clip-{i:02d}" for i in range(14) if i not in (3, 6, 9)]
    changes: dict[str, Any] = {clip: {"conversation": written} for clip in train}
    changes |= {"clip-01": {"split": "reference", "conversation": None}}
    with pytest.raises(UserError, match=r"10 samples of the train split") as caught:
        corpus.changed(tmp_path, changes).pack(tmp_path / "packed", max_tokens=512)
    assert "manifest.jsonl:1: the chat template gives 0 audio" in str(caught.value)
    assert "max_tokens" not in str(caught.value)


def test_a_plain_sample_that_cannot_be_rendered_stops_pack_with_its_place(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike with a conversation, which the user wrote, the template must be at fault."""
    monkeypatch.setattr(ChatRenderer, "prompts", lambda _, asked: [NotRendered("why")] * len(asked))
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: why; .*chat template"):
        corpus.pack(tmp_path, max_tokens=512)


def test_the_error_for_a_split_without_clips_names_judge_clips(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    changes = {f"clip-{i:02d}": {"split": "train"} for i in (3, 6, 9)}
    with pytest.raises(UserError, match=r"eval .*--forcerun judge_clips"):
        corpus.changed(tmp_path, changes).pack(tmp_path / "packed", max_tokens=512)


def pack_into(folder: Path, corpus: PackedCorpus, **options: Any) -> None:
    pack.run(
        write_stage_config(folder / "pack.json", base_model=str(corpus.base)),
        clips=corpus.clips,
        codes_dir=corpus.codes_dir,
        num_shards=2,
        train_rows=folder / "train.parquet",
        eval_rows=folder / "eval.parquet",
        packing=folder / "packing.json",
        **options,
    )


def test_an_unpacked_split_is_an_empty_table_with_the_same_codec(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    pack_into(tmp_path, corpus, splits=[EVAL])
    assert len(pq.read_table(tmp_path / "train.parquet")) == 0
    assert read_codec_info(tmp_path / "train.parquet") == read_codec_info(corpus.train_rows)
    assert set(samples_of(tmp_path / "eval.parquet")) == {"clip-03", "clip-06", "clip-09"}
    summary = json.loads((tmp_path / "packing.json").read_text())
    assert (summary["train"]["num_samples"], summary["eval"]["num_samples"]) == (0, 3)


def test_rows_are_stamped_with_the_base_as_it_was_pinned(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    pinned = PinnedModel.of(Pretrained("base_model", str(corpus.base)))
    pinned = pinned.model_copy(update={"fingerprint": "as pinned"})
    pinned.write(tmp_path / "base_model.json")
    pack_into(tmp_path, corpus, pinned_base=tmp_path / "base_model.json")
    for split in ("train", "eval"):
        stamp = TableFile(tmp_path / f"{split}.parquet", "pack_rows").stamp()
        assert stamp["pinned"] == {"base_model": pinned.model_dump()}


def test_codes_of_two_codecs_are_not_mixed(corpus: PackedCorpus, tmp_path: Path) -> None:
    shards = sorted(corpus.codes_dir.glob("*.parquet"))
    other = tmp_path / "shard-00001.parquet"
    codec = replace(read_codec_info(shards[1]), fingerprint="another")
    write_table(other, codes_spec(codec.num_codebooks), [], codec.as_metadata())
    for same in (shards[:1], 2 * shards[:1]):
        with pytest.raises(UserError, match=r"shard-00001.parquet .*shard-00000.parquet"):
            CodesStore([*same, other], pa.array([]), tmp_path)


def test_clips_without_codes_are_named_with_the_rule_to_rerun(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    shards = sorted(corpus.codes_dir.glob("*.parquet"))
    with pytest.raises(
        UserError, match=r"\n  nobody\n  noone\nrun: snakemake --forcerun tokenize_shard"
    ):
        CodesStore(shards, pa.array(["nobody", "clip-01", "noone"]), tmp_path)


def test_codes_can_be_read_in_any_order(corpus: PackedCorpus, tmp_path: Path) -> None:
    shards = sorted(corpus.codes_dir.glob("*.parquet"))
    ids = ["clip-07", "clip-00", "clip-12"]
    with CodesStore(shards, pa.array(ids), tmp_path) as codes:
        assert [codes[i].tolist() for i in (2, 0, 1)] == [
            codes_of(corpus)[ids[i]] for i in (2, 0, 1)
        ]
    assert list(tmp_path.iterdir()) == []


def test_the_test_corpus_has_11_training_clips(corpus: PackedCorpus) -> None:
    clips = read_table(corpus.clips, CLIPS).to_pylist()
    assert sum(c["split"] == TRAIN for c in clips) == 11


def test_stale_shards_of_an_earlier_run_are_not_read(corpus: PackedCorpus, tmp_path: Path) -> None:
    """Lowering data.num_shards leaves shards behind, perhaps of another codec."""
    stale = corpus.codes_dir / "shard-00002.parquet"
    stale.write_text("of another codec")
    try:
        summary = corpus.pack(tmp_path, max_tokens=512)
    finally:
        stale.unlink()
    assert summary["train"]["num_samples"] == 11


def test_a_dialogue_is_one_recording_preceded_by_a_reference_per_speaker(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    turns = {f"clip-{i:02d}": {"dialogue_id": "talk", "turn": i} for i in (0, 1, 2)}
    tasks = {"speech": 1, "cloning": 0, "dialogue": 0, "dialogue_cloning": 1000}
    dialogue = corpus.changed(tmp_path, turns)
    summary = dialogue.pack(tmp_path / "packed", max_tokens=1024, tasks=tasks)
    assert summary["train"]["tasks"] == {"speech": 8, "cloning": 0, "dialogue_cloning": 1}
    sample = samples_of(tmp_path / "packed/train.parquet")["clip-00"]
    text = AutoTokenizer.from_pretrained(corpus.base).decode(sample["input_ids"])
    assert [text.count(f"[SPEAKER{i}] Tone number") for i in (0, 1, 2)] == [3, 2, 0]
    codes = codes_of(corpus)
    joined = codes["clip-00"] + codes["clip-01"] + codes["clip-02"]
    target = delayed_frames(joined, 1024, 1025)
    assert sample["audio_input_ids"][-len(target) :].tolist() == target
    assert sample["audio_labels"][-len(target) :].tolist() == audio_labels(joined, 1024, 1025)
    assert (sample["audio_labels"][: -len(target)] == -100).all()
    assert (sample["labels"] != -100).sum() == 3


def test_a_dialogue_that_exceeds_a_row_is_packed_turn_by_turn(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    turns = {f"clip-{i:02d}": {"dialogue_id": "talk", "turn": i} for i in (10, 11, 12, 13)}
    tasks = {"speech": 1, "cloning": 0, "dialogue": 1000, "dialogue_cloning": 0}
    summary = corpus.changed(tmp_path, turns).pack(tmp_path / "p", max_tokens=300, tasks=tasks)
    assert summary["train"]["tasks"] == {"speech": 11, "cloning": 0}
    fallen = Counter({item["reason"]: item["num_clips"] for item in summary["fallbacks"]})
    assert fallen == {DIALOGUE_TOO_LONG: 2}  # of each of two speakers
    assert summary["rejected"] == []


def conversation_of(*turns: tuple[str, str, bool]) -> str:
    keys = {"user": "text", "assistant": "clip_id"}
    return json.dumps(
        [
            {"role": role, "parts": [{keys[role]: value}], "is_target": is_target}
            for role, value, is_target in turns
        ]
    )


def test_a_conversation_is_packed_whole_with_only_its_targets_labelled(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    written = conversation_of(
        ("user", "Low, please", False),
        ("assistant", "clip-00", False),
        ("user", "And now?", False),
        ("assistant", "clip-02", True),
        ("user", "Again", False),
        ("assistant", "clip-01", True),
    )
    changes = {
        "clip-00": {"split": "reference"},
        "clip-02": {"split": "reference"},
        "clip-01": {"conversation": written},
    }
    summary = corpus.changed(tmp_path, changes).pack(tmp_path / "packed", max_tokens=512)
    assert summary["train"]["tasks"]["conversation"] == 1
    samples = samples_of(tmp_path / "packed/train.parquet")
    assert len(samples) == 9
    sample = samples["clip-01"]
    codes = [codes_of(corpus)[i] for i in ("clip-00", "clip-02", "clip-01")]
    frames = [delayed_frames(c, 1024, 1025) for c in codes]
    assert sample["audio_input_ids"].tolist() == frames[0] + frames[1] + frames[2]
    assert (sample["audio_labels"][: len(frames[0])] == -100).all()
    learned = [audio_labels(c, 1024, 1025) for c in codes[1:]]
    assert sample["audio_labels"][len(frames[0]) :].tolist() == learned[0] + learned[1]
    assert (sample["labels"] != -100).sum() == 6


def test_a_conversation_the_template_cannot_render_is_rejected_with_its_place(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    written = '[{"role": "user", "parts": [{"clip_id": "clip-01"}], "is_target": false}]'
    changes = {"clip-01": {"conversation": written}}
    summary = corpus.changed(tmp_path, changes).pack(tmp_path / "packed", max_tokens=512)
    [rejected] = summary["rejected"]
    assert (rejected["clip_id"], rejected["reason"]) == ("clip-01", "not_in_chat_template")
    assert "manifest.jsonl:2: the chat template gives 0 audio" in rejected["message"]
    assert summary["train"]["num_samples"] == 10


def test_rows_are_not_sorted_by_length(corpus: PackedCorpus, tmp_path: Path) -> None:
    corpus.pack(tmp_path, max_tokens=200, tasks=SPEECH_ONLY)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    longest = [max(row["sample_lengths"]) for row in rows]
    assert longest != sorted(longest, reverse=True)


def test_no_temporary_file_is_left_behind(corpus: PackedCorpus, tmp_path: Path) -> None:
    corpus.pack(tmp_path / "a", max_tokens=512)
    made = {"pack.json", "packing.json", "train.parquet", "eval.parquet"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == made


def test_too_little_disk_space_is_a_user_error(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"takes \d+.\d\d GB, .* 0.00 GB"):
        corpus.pack(tmp_path, max_tokens=512)
    assert {path.name for path in tmp_path.iterdir()} == {"pack.json"}


def test_the_space_check_covers_all_codes_and_the_rows_of_each_split(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    for module in (codes_store, packer):
        monkeypatch.setattr(module, "check_free_space", lambda _, size, what: asked.append(size))
    corpus.pack(tmp_path, max_tokens=512)
    num_codes = sum(8 * len(codes) for codes in codes_of(corpus).values())
    num_positions = [
        sum(map(sum, pq.read_table(tmp_path / f"{split}.parquet")["sample_lengths"].to_pylist()))
        for split in ("train", "eval")
    ]
    # Codes have 2 bytes; of a position, 8 codes and 8 labels are compressed to half.
    assert asked == [2 * num_codes, *(16 * positions for positions in num_positions)]


@pytest.mark.parametrize("num_bytes", [1_000, 9_000])
def test_a_disk_that_fills_up_while_copying_codes_is_a_user_error(
    corpus: PackedCorpus, tmp_path: Path, num_bytes: int
) -> None:
    with files_of_at_most(num_bytes), pytest.raises(UserError, match=r"\d+\.\d\d GB of temporary"):
        corpus.pack(tmp_path, max_tokens=512)
    assert {path.name for path in tmp_path.iterdir()} == {"pack.json"}
