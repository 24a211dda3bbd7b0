from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PackedCorpus
from reference import audio_labels, delayed_frames
from transformers import AutoTokenizer

from higgs_pipe.config import PackConfig, TaskMix
from higgs_pipe.data.codes_store import CodesStore
from higgs_pipe.data.splits import TRAIN
from higgs_pipe.data.tables import CLIPS, read_table
from higgs_pipe.errors import UserError
from higgs_pipe.pack import NO_REFERENCE, REFERENCE_TOO_LONG, choose_references

SPEECH_ONLY = {"speech": 1, "cloning": 0}
CLONING_ONLY = {"speech": 0, "cloning": 1}


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


def test_every_clip_is_packed_once_and_no_row_is_too_long(corpus: PackedCorpus):
    rows = pq.read_table(corpus.train_rows).to_pylist()
    assert max(len(row["input_ids"]) for row in rows) <= 512
    counts = Counter(sample_id for row in rows for sample_id in row["sample_ids"])
    assert counts == {f"clip-{i:02d}": 1 for i in range(14) if i not in (3, 6, 9)}
    held_out = pq.read_table(corpus.eval_rows)["sample_ids"].to_pylist()
    assert sorted(i for row in held_out for i in row) == ["clip-03", "clip-06", "clip-09"]


def test_packed_codes_and_labels_are_the_plain_ones(corpus, tmp_path):
    corpus.pack(tmp_path, tasks=SPEECH_ONLY, max_tokens=512)
    codes = CodesStore(sorted(corpus.codes_dir.glob("*.parquet")))
    samples = samples_of(tmp_path / "train.parquet")
    assert len(samples) == 11
    for clip_id, sample in samples.items():
        clip_codes = codes[clip_id].tolist()
        assert sample["audio_input_ids"].tolist() == delayed_frames(clip_codes, 1024, 1025)
        assert sample["audio_labels"].tolist() == audio_labels(clip_codes, 1024, 1025)
        assert (sample["labels"] != -100).sum() == 3


def test_a_cloning_sample_begins_with_another_clip_of_the_speaker(corpus, tmp_path):
    summary = corpus.pack(tmp_path, tasks=CLONING_ONLY, max_tokens=512)
    assert summary["train"]["tasks"] == {"speech": 0, "cloning": 11}
    codes = CodesStore(sorted(corpus.codes_dir.glob("*.parquet")))
    tokenizer = AutoTokenizer.from_pretrained(corpus.base)
    train_clips = [f"clip-{i:02d}" for i in range(14) if i not in (3, 6, 9)]
    for clip_id, sample in samples_of(tmp_path / "train.parquet").items():
        same_speaker = [c for c in train_clips if (int(c[-2:]) - int(clip_id[-2:])) % 2 == 0]
        candidates = {
            c: delayed_frames(codes[c].tolist(), 1024, 1025) for c in same_speaker if c != clip_id
        }
        frames = sample["audio_input_ids"].tolist()
        reference = next(c for c, d in candidates.items() if frames[: len(d)] == d)
        num_reference = len(candidates[reference])
        assert (sample["audio_labels"][:num_reference] == -100).all()
        text = tokenizer.decode(sample["input_ids"])
        first = text.index(f"Tone number {int(reference[-2:])}, held")
        assert first < text.index(f"Tone number {int(clip_id[-2:])}, held")


def test_scene_and_system_prompt_are_in_the_prompt(corpus, tmp_path):
    corpus.pack(tmp_path, system_prompt="Speak as you are told.", tasks=SPEECH_ONLY)
    tokenizer = AutoTokenizer.from_pretrained(corpus.base)
    sample = samples_of(tmp_path / "train.parquet")["clip-05"]
    text = tokenizer.decode(sample["input_ids"])
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSpeak as"
    )
    assert "<|scene_desc_start|>\nA quiet room.\n<|scene_desc_end|>" in text
    assert "Tone number 5, held for a while.<|eot_id|>" in text  # the bare end got a full stop


def test_packing_twice_gives_the_same_bytes_and_another_seed_others(corpus, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        corpus.pack(tmp_path / name, seed=seed)
    packed = {name: (tmp_path / name / "train.parquet").read_bytes() for name in "abc"}
    assert packed["a"] == packed["b"]
    assert packed["a"] != packed["c"]


def test_the_summary_counts_what_is_in_the_rows(corpus, tmp_path):
    summary = corpus.pack(tmp_path, max_tokens=512)["train"]
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert summary["num_rows"] == len(rows)
    assert summary["num_tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert summary["fill"] == summary["num_tokens"] / (512 * len(rows))
    assert summary["num_text_labels"] == 3 * summary["num_samples"] == 33
    codes = CodesStore(sorted(corpus.codes_dir.glob("*.parquet")))
    num_frames = sum(len(codes[i]) for row in rows for i in row["sample_ids"])
    assert summary["audio_seconds"] == pytest.approx(num_frames / 25)
    assert summary["num_audio_labels"] == 8 * (num_frames + 11)


def test_a_sample_that_can_never_fit_is_rejected_with_its_place(corpus, tmp_path):
    summary = corpus.pack(tmp_path, max_tokens=150, tasks=SPEECH_ONLY)
    assert {item["reason"] for item in summary["rejected"]} == {"too_many_tokens"}
    longest = next(item for item in summary["rejected"] if item["clip_id"] == "clip-13")
    assert "manifest.jsonl:14: " in longest["message"]
    assert "pack.max_tokens = 150" in longest["message"]
    kept = samples_of(tmp_path / "train.parquet")
    assert "clip-13" not in kept
    assert len(kept) == summary["train"]["num_samples"] > 0


def test_a_reference_that_does_not_fit_is_left_out_and_counted(corpus, tmp_path):
    summary = corpus.pack(tmp_path, max_tokens=260, tasks=CLONING_ONLY)
    reasons = Counter(item["reason"] for item in summary["fallbacks"])
    assert reasons[REFERENCE_TOO_LONG] > 0
    assert summary["train"]["tasks"]["speech"] == sum(
        item["num_clips"] for item in summary["fallbacks"] if item["split"] == "train"
    )


def test_no_sample_that_fits_is_an_error_with_the_next_step(corpus, tmp_path):
    with pytest.raises(UserError, match=r"no sample of the train split fits .* raise it"):
        corpus.pack(tmp_path, max_tokens=64)
    assert not (tmp_path / "train.parquet").exists()


def clip(clip_id: str, speaker: str | None, reference_id: str | None = None) -> dict:
    return {
        "clip_id": clip_id,
        "audio_path": clip_id,
        "start_seconds": None,
        "end_seconds": None,
        "speaker": speaker,
        "reference_id": reference_id,
        "pcm_sha256": clip_id,
        "text": "",
        "scene": None,
    }


def choose(clips: list[dict], references: dict | None = None, **tasks: float) -> dict:
    settings = PackConfig(tasks=TaskMix(**tasks))
    return {s.clip["clip_id"]: s for s in choose_references(clips, references or {}, settings)}


def test_a_speaker_with_one_clip_falls_back_to_plain_speech_and_says_so():
    chosen = choose([clip("a", "x"), clip("b", "y"), clip("c", "y")], speech=0, cloning=1)
    assert (chosen["a"].task, chosen["a"].fallback) == ("speech", NO_REFERENCE)
    assert chosen["b"].reference["clip_id"] == "c"
    assert chosen["c"].reference["clip_id"] == "b"


def test_a_clip_without_speaker_has_no_reference():
    chosen = choose([clip("a", None), clip("b", None)], speech=0, cloning=1)
    assert [s.fallback for s in chosen.values()] == [NO_REFERENCE, NO_REFERENCE]


def test_a_rows_own_reference_comes_first():
    own = clip("ref-1", "x")
    clips = [clip("a", "x", reference_id="ref-1"), clip("b", "x")]
    chosen = choose(clips, {"ref-1": own}, speech=0, cloning=1)
    assert chosen["a"].reference is own


def test_a_duplicate_of_the_target_is_never_its_reference():
    clips = [clip("a", "x"), clip("b", "x"), clip("c", "x")]
    clips[1]["pcm_sha256"] = "a"
    for sample in choose(clips, speech=0, cloning=1).values():
        assert sample.reference["pcm_sha256"] != sample.clip["pcm_sha256"]


def segment(clip_id: str, start_seconds: float | None, end_seconds: float | None) -> dict:
    times = {"start_seconds": start_seconds, "end_seconds": end_seconds}
    return {**clip(clip_id, "x"), "audio_path": "long.wav", **times}


def test_overlapping_segments_of_one_file_are_never_each_others_reference():
    clips = [segment("a", None, 2.0), segment("b", 2.0, 5.0), segment("c", 4.0, None)]
    chosen = choose(clips, speech=0, cloning=1)
    assert {i: s.reference["clip_id"] for i, s in chosen.items() if s.reference} == {
        "a": chosen["a"].reference["clip_id"],
        "b": "a",
        "c": "a",
    }
    whole = choose([segment("a", 0.0, 2.0), segment("b", None, None)], speech=0, cloning=1)
    assert [s.fallback for s in whole.values()] == [NO_REFERENCE, NO_REFERENCE]


def test_the_task_mix_is_that_of_the_weights():
    clips = [clip(f"clip-{i}", "x") for i in range(2000)]
    tasks = Counter(sample.task for sample in choose(clips, speech=3, cloning=1).values())
    assert 0.22 < tasks["cloning"] / 2000 < 0.28


def test_codes_of_two_codecs_are_not_mixed(corpus, tmp_path):
    shards = sorted(corpus.codes_dir.glob("*.parquet"))
    table = pq.read_table(shards[1])
    metadata = table.schema.metadata
    changed = metadata[b"higgs_pipe"].replace(b'"fingerprint": "', b'"fingerprint": "0')
    other = tmp_path / "shard-00001.parquet"
    pq.write_table(table.replace_schema_metadata({**metadata, b"higgs_pipe": changed}), other)
    with pytest.raises(UserError, match="made by another codec"):
        CodesStore([shards[0], other])


def test_a_clip_without_codes_names_the_rule(corpus):
    codes = CodesStore(sorted(corpus.codes_dir.glob("*.parquet")))
    with pytest.raises(UserError, match=r"'nobody' has no codes; run: snakemake"):
        codes["nobody"]


def test_the_corpus_is_what_the_tests_say_it_is(corpus):
    clips = read_table(corpus.clips, CLIPS)[0].to_pylist()
    assert sum(c["split"] == TRAIN for c in clips) == 11


def test_shards_of_an_earlier_run_are_not_read(corpus, tmp_path):
    """Lowering data.num_shards leaves shards behind, perhaps of another codec."""
    stale = corpus.codes_dir / "shard-00002.parquet"
    stale.write_text("of another codec")
    try:
        summary = corpus.pack(tmp_path, max_tokens=512)
    finally:
        stale.unlink()
    assert summary["train"]["num_samples"] == 11
