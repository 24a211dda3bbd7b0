"""Splits and shards by hash, checked against an independent implementation of the hash."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.keys import groups_of, keys_of
from higgs_pipe.data.clips.overlap import overlap
from higgs_pipe.data.clips.splits import assign_splits
from higgs_pipe.data.conversation import ClipId, Conversation, Turn
from higgs_pipe.data.hashing import shard_of, unit_hash
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.data.text import bare_words


def split_groups(groups: list[str], given: Any, eval_fraction: float, seed: int) -> list[str]:
    return assign_splits(pa.array(groups).dictionary_encode(), given, eval_fraction, seed)


def numbered(num_groups: int) -> list[str]:
    return [f"group-{index}" for index in range(num_groups)]


def test_unit_hash_is_the_first_seven_bytes_of_sha256_over_two_to_the_56() -> None:
    digest = hashlib.sha256(b"split\x1f7\x1fa").hexdigest()
    assert unit_hash("split", 7, "a") == int(digest[:14], 16) / 16**14


def test_unit_hash_depends_on_the_boundaries_between_parts() -> None:
    assert unit_hash("a", "bc") != unit_hash("ab", "c")


def test_clips_are_spread_over_all_shards() -> None:
    shards = Counter(shard_of(clip, 4) for clip in numbered(400))
    assert sorted(shards) == [0, 1, 2, 3]
    assert min(shards.values()) > 70


def test_a_clip_stays_in_the_shard_of_its_hash() -> None:
    digests = [hashlib.sha256(f"shard\x1f{clip}".encode()).digest() for clip in numbered(20)]
    assert [shard_of(clip, 16) for clip in numbered(20)] == [digest[0] // 16 for digest in digests]


def test_a_single_shard_takes_every_clip() -> None:
    assert {shard_of(clip, 1) for clip in numbered(50)} == {0}


def test_a_group_is_held_out_when_its_hash_is_below_the_fraction() -> None:
    groups = numbered(30)
    splits = split_groups(groups, [None] * 30, eval_fraction=0.3, seed=5)
    for group, split in zip(groups, splits, strict=True):
        digest = hashlib.sha256(f"split\x1f5\x1f{group}".encode()).hexdigest()
        assert split == ("eval" if int(digest[:14], 16) / 16**14 < 0.3 else "train")


def test_clips_of_one_group_share_a_split_for_every_seed() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    for seed in range(100):
        splits = split_groups(groups, [None] * 6, eval_fraction=0.5, seed=seed)
        assert splits[0] == splits[2] == splits[5]
        assert splits[1] == splits[4]


def test_a_given_split_wins_for_the_whole_group() -> None:
    splits = split_groups(["a", "a", "b"], [None, "eval", "train"], eval_fraction=0.01, seed=0)
    assert splits == ["eval", "eval", "train"]
    given = ["eval", "eval", None, "train"]
    assert split_groups(["a", "b", "c", "d"], given, eval_fraction=0.01, seed=0)[:2] == given[:2]


def test_two_groups_always_give_both_splits() -> None:
    for seed in range(100):
        for fraction in (0.001, 0.999):
            splits = split_groups(["a", "b"], [None, None], fraction, seed)
            assert sorted(splits) == ["eval", "train"]


def test_an_unassigned_group_fills_a_split_left_empty_by_the_given_ones() -> None:
    for seed in range(20):
        assert split_groups(["a", "b"], ["eval", None], 0.999, seed) == ["eval", "train"]
        assert split_groups(["a", "b"], ["train", None], 0.001, seed) == ["train", "eval"]


def test_if_all_groups_would_be_held_out_the_one_with_the_largest_hash_trains() -> None:
    groups = numbered(5)
    hashes = [unit_hash("split", 0, group) for group in groups]
    splits = split_groups(groups, [None] * 5, eval_fraction=max(hashes) + 1e-9, seed=0)
    assert splits.index("train") == hashes.index(max(hashes))


def test_if_no_group_would_be_held_out_the_one_with_the_smallest_hash_is() -> None:
    groups = numbered(5)
    hashes = [unit_hash("split", 2, group) for group in groups]
    assert hashes.index(min(hashes)) not in (0, 4)
    splits = split_groups(groups, [None] * 5, eval_fraction=min(hashes), seed=2)
    assert splits.index("eval") == hashes.index(min(hashes))
    assert splits.count("eval") == 1


def test_a_single_group_goes_to_train() -> None:
    assert split_groups(["a", "a"], [None, None], 0.5, seed=0) == ["train", "train"]


def test_another_seed_gives_another_split() -> None:
    first, second = (split_groups(numbered(50), [None] * 50, 0.5, seed) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_held_out_share_is_near_the_fraction(fraction: float) -> None:
    splits = split_groups(numbered(4000), [None] * 4000, fraction, seed=0)
    assert splits.count("eval") / 4000 == pytest.approx(fraction, abs=0.02)


def test_adding_groups_does_not_move_other_groups() -> None:
    few = split_groups(numbered(100), [None] * 100, 0.2, seed=0)
    many = split_groups(numbered(200), [None] * 200, 0.2, seed=0)
    assert many[:100] == few


def clip(
    path: str = "a.wav", start: float | None = None, end: float | None = None, **columns: str
) -> dict[str, Any]:
    """A clip with the columns that splits read; by default it shares only its file with others."""
    unlike = f"{path} {start} {end}"
    return {
        "audio_path": path,
        "start_seconds": start,
        "end_seconds": end,
        "pcm_sha256": columns.get("pcm", unlike),
        "audio_sha256": path,
        "text": columns.get("text", unlike),
        "speaker": columns.get("speaker"),
        "dialogue_id": columns.get("dialogue"),
        "split": columns.get("split"),
        "conversation": None,
    }


def groups_among(clips: list[dict[str, Any]], **settings: Any) -> list[str]:
    """The name of each clip's group."""
    keys = keys_of(table_of(clips).column, DataConfig(**settings))
    groups: list[str] = groups_of(keys).to_pylist()
    return groups


def table_of(clips: list[dict[str, Any]]) -> pa.Table:
    """Some columns of the table of clips."""
    columns = [field for field in CLIPS.schema if field.name in clip() or field.name == "clip_id"]
    return pa.Table.from_pylist(clips, pa.schema(columns))


def overlap_of(clips: list[dict[str, Any]], **settings: Any) -> dict[str, int]:
    return overlap(table_of(clips).column, DataConfig(**settings))


def together(clips: list[dict[str, Any]], **settings: Any) -> list[list[int]]:
    """Return the groups of clips, by index, that must share a split."""
    groups = groups_among(clips, **settings)
    return [
        [index for index, group in enumerate(groups) if group == name]
        for name in dict.fromkeys(groups)
    ]


def test_clips_that_share_audio_in_any_way_are_one_group() -> None:
    clips = [
        clip("long.wav", 0.0, 5.0, pcm="a"),
        clip("long.wav", 4.0, 8.0, pcm="b"),  # overlaps a
        clip("long.wav", 8.0, 9.0, pcm="c"),  # touches b, shares nothing
        clip("other.wav", pcm="b"),  # a copy of b
        clip("other.wav", 2.0, 3.0, pcm="d"),  # inside that copy
        clip("alone.wav", pcm="e"),
    ]
    assert groups_among(clips) == ["a", "a", "c", "a", "a", "e"]


def test_a_short_segment_does_not_hide_a_longer_one_that_overlaps_more() -> None:
    clips = [clip("l.wav", 0.0, 9.0), clip("l.wav", 1.0, 2.0), clip("l.wav", 5.0, 10.0)]
    assert together(clips) == [[0, 1, 2]]


def test_segments_that_overlap_match_a_plain_search() -> None:
    generator = random.Random(0)
    for _ in range(50):
        bounds = [sorted(generator.sample(range(60), 2)) for _ in range(12)]
        linked = [{i} for i in range(12)]
        for _ in range(12):
            for i, j in itertools.product(range(12), repeat=2):
                if bounds[i][0] < bounds[j][1] and bounds[j][0] < bounds[i][1]:
                    linked[i] = linked[j] = linked[i] | linked[j]
        clips = [clip("long.wav", start, end) for start, end in bounds]
        assert together(clips) == list(map(sorted, dict.fromkeys(map(frozenset, linked))))


def test_no_clips_give_no_groups() -> None:
    assert groups_among([]) == []


def test_clips_with_one_text_are_one_group_unless_texts_may_cross_splits() -> None:
    texts = ["Yes, I am.", "yes  i AM", "No.", "Yes, I am not.", "...", "?!"]
    clips = [clip(f"{index}.wav", text=text) for index, text in enumerate(texts)]
    assert together(clips) == [[0, 1], [2], [3], [4], [5]]
    assert together(clips, keep_text_together=False) == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize(
    ("text", "same", "other"),
    [
        ("Straße", "STRASSE!", "Strase"),
        ("कि", "«कि»", "का"),  # a vowel sign is no punctuation
        ("你好。", "你好", "您好"),
        ("$5", " $5 ", "5"),
    ],
)
def test_texts_are_compared_ignoring_case_and_punctuation(text: str, same: str, other: str) -> None:
    assert bare_words(text) == bare_words(same) != bare_words(other)


def test_turns_of_a_dialogue_are_one_group() -> None:
    clips = [clip("a.wav", dialogue="d"), clip("b.wav", dialogue="d"), clip("c.wav")]
    assert together(clips) == [[0, 1], [2]]


def test_a_split_by_speaker_uses_the_speaker_as_the_group() -> None:
    clips = [clip("a.wav", speaker="x"), clip("b.wav", speaker="y"), clip("c.wav", speaker="x")]
    assert together(clips) == [[0], [1], [2]]
    assert groups_among(clips, split_by="speaker") == ["x", "y", "x"]


def test_a_split_by_recording_keeps_all_segments_of_a_file_together() -> None:
    clips = [clip("a.wav", 0.0, 1.0), clip("b.wav"), clip("a.wav", 5.0, 6.0)]
    assert together(clips) == [[0], [1], [2]]
    assert together(clips, split_by="recording") == [[0, 2], [1]]


def test_groups_match_a_plain_search() -> None:
    generator = random.Random(0)
    for _ in range(50):
        texts, dialogues = ([str(generator.randrange(25)) for _ in range(20)] for _ in range(2))
        clips = [
            clip(f"{i}.wav", pcm=f"{i:02d}", text=texts[i], dialogue=dialogues[i])
            for i in range(20)
        ]
        linked = [{i} for i in range(20)]
        for _ in range(20):
            for i, j in itertools.product(range(20), repeat=2):
                if texts[i] == texts[j] or dialogues[i] == dialogues[j]:
                    linked[i] = linked[j] = linked[i] | linked[j]
        assert groups_among(clips) == [f"{min(group):02d}" for group in linked]


def test_the_overlap_counts_everything_shared_by_both_splits() -> None:
    clips = [
        clip("l.wav", 0.0, 5.0, split="train", dialogue="d", speaker="x"),
        clip("l.wav", 4.0, 6.0, split="eval", dialogue="d", speaker="x"),
        clip("l.wav", 6.0, 7.0, split="train", text="Yes.", pcm="p"),
        clip("m.wav", split="eval", text="yes", pcm="p"),
        clip("n.wav", split="train", text="..."),
        clip("o.wav", split="eval", text="!"),
    ]
    found = {"audio": 2, "texts": 1, "dialogues": 1, "context": 0}
    assert overlap_of(clips) == found
    assert overlap_of(clips, split_by="speaker") == found | {"speakers": 1}
    assert overlap_of(clips, split_by="recording") == found | {"recordings": 1}


def test_segments_in_both_splits_count_as_one_shared_recording() -> None:
    clips = [clip("a.wav", 0.0, 1.0, split="train"), clip("a.wav", 5.0, 6.0, split="eval")]
    found = overlap_of(clips, split_by="recording")
    assert (found["audio"], found["recordings"]) == (0, 1)


def test_the_overlap_counts_targets_and_context_of_conversations() -> None:
    def talk(name: str, split: str, *, is_target: bool) -> list[dict[str, Any]]:
        """A conversation of two recordings, the first of which is ``p``."""
        recordings = [("ref-p", is_target), (name, True)]
        turns = tuple(Turn("assistant", (ClipId(c),), target) for c, target in recordings)
        own = clip(f"{name}.wav", split=split) | {"clip_id": name}
        reference = clip("copy.wav", pcm="p", split="reference") | {"clip_id": "ref-p"}
        return [own | {"conversation": Conversation(turns).to_json()}, reference]

    held_out = clip("p.wav", pcm="p", split="eval") | {"clip_id": "p"}
    learned = overlap_of([held_out, *talk("x", "train", is_target=True)])
    assert (learned["audio"], learned["context"]) == (1, 0)
    heard = overlap_of([held_out, *talk("x", "train", is_target=False)])
    assert (heard["audio"], heard["context"]) == (0, 1)
    apart = overlap_of([held_out, *talk("x", "eval", is_target=True)])
    assert set(apart.values()) == {0}


def test_a_long_segment_overlaps_every_segment_of_the_other_split_within_it() -> None:
    def segment(start: float, end: float) -> dict[str, Any]:
        span = {"audio_sha256": "a", "start_seconds": start, "end_seconds": end}
        own = {"clip_id": str(start), "pcm_sha256": str(start), "text": "", "dialogue_id": None}
        return span | own | {"conversation": None}

    long_and_short, within_the_long = [(0, 10), (1, 2)], [(5, 6), (10, 12)]
    for train, held_out in [(long_and_short, within_the_long), (within_the_long, long_and_short)]:
        clips = [segment(*span) | {"split": "train"} for span in train]
        clips += [segment(*span) | {"split": "eval"} for span in held_out]
        assert overlap_of(clips)["audio"] == 1
