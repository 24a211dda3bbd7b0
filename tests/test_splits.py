"""Splits and shards: by hash, checked against a hash written out here."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from higgs_pipe.data.splits import Stretch, assign_splits, audio_groups, shard_of, unit_hash


def groups_of(num_groups: int) -> list[str]:
    return [f"group-{index}" for index in range(num_groups)]


def test_unit_hash_is_the_first_seven_bytes_of_sha256_over_two_to_the_56() -> None:
    digest = hashlib.sha256(b"split\x1f7\x1fa").hexdigest()
    assert unit_hash("split", 7, "a") == int(digest[:14], 16) / 16**14


def test_unit_hash_tells_parts_apart() -> None:
    assert unit_hash("a", "bc") != unit_hash("ab", "c")


def test_every_shard_gets_clips_and_no_other_shard_exists() -> None:
    shards = Counter(shard_of(clip, 4) for clip in groups_of(400))
    assert sorted(shards) == [0, 1, 2, 3]
    assert min(shards.values()) > 70


def test_one_shard_takes_everything() -> None:
    assert {shard_of(clip, 1) for clip in groups_of(50)} == {0}


def test_a_group_is_held_out_when_its_hash_is_below_the_fraction() -> None:
    groups = groups_of(30)
    splits = assign_splits(groups, [None] * 30, eval_fraction=0.3, seed=5)
    for group, split in zip(groups, splits, strict=True):
        digest = hashlib.sha256(f"split\x1f5\x1f{group}".encode()).hexdigest()
        assert split == ("eval" if int(digest[:14], 16) / 16**14 < 0.3 else "train")


def test_clips_of_one_group_share_a_split_for_every_seed() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    for seed in range(100):
        splits = assign_splits(groups, [None] * 6, eval_fraction=0.5, seed=seed)
        assert splits[0] == splits[2] == splits[5]
        assert splits[1] == splits[4]


def test_a_given_split_wins_for_the_whole_group() -> None:
    splits = assign_splits(["a", "a", "b"], [None, "eval", "train"], eval_fraction=0.01, seed=0)
    assert splits == ["eval", "eval", "train"]


def test_two_groups_always_give_both_sides() -> None:
    for seed in range(100):
        for fraction in (0.001, 0.999):
            splits = assign_splits(["a", "b"], [None, None], fraction, seed)
            assert sorted(splits) == ["eval", "train"]


def test_a_free_group_fills_the_side_that_the_given_splits_leave_empty() -> None:
    for seed in range(20):
        assert assign_splits(["a", "b"], ["eval", None], 0.999, seed) == ["eval", "train"]
        assert assign_splits(["a", "b"], ["train", None], 0.001, seed) == ["train", "eval"]


def test_one_group_goes_to_train() -> None:
    assert assign_splits(["a", "a"], [None, None], 0.5, seed=0) == ["train", "train"]


def test_another_seed_gives_another_split() -> None:
    first, second = (assign_splits(groups_of(50), [None] * 50, 0.5, seed) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_held_out_share_is_near_the_fraction(fraction: float) -> None:
    splits = assign_splits(groups_of(4000), [None] * 4000, fraction, seed=0)
    assert splits.count("eval") / 4000 == pytest.approx(fraction, abs=0.02)


def test_adding_groups_moves_no_other_group() -> None:
    few = assign_splits(groups_of(100), [None] * 100, 0.2, seed=0)
    many = assign_splits(groups_of(200), [None] * 200, 0.2, seed=0)
    assert many[:100] == few


def test_clips_that_share_audio_are_one_group_however_they_share_it():
    groups = audio_groups(
        [
            Stretch("long.wav", 0.0, 5.0, "a"),
            Stretch("long.wav", 4.0, 8.0, "b"),  # overlaps a
            Stretch("long.wav", 8.0, 9.0, "c"),  # touches b, shares nothing
            Stretch("other.wav", None, None, "b"),  # a copy of b
            Stretch("other.wav", 2.0, 3.0, "d"),  # inside that copy
            Stretch("alone.wav", None, None, "e"),
        ]
    )
    assert groups == ["a", "a", "c", "a", "a", "e"]


def test_a_short_segment_does_not_hide_the_long_one_before_it():
    groups = audio_groups(
        [
            Stretch("long.wav", 0.0, 9.0, "a"),
            Stretch("long.wav", 1.0, 2.0, "b"),
            Stretch("long.wav", 5.0, 10.0, "c"),
        ]
    )
    assert groups == ["a", "a", "a"]


def test_no_clip_gives_no_group():
    assert audio_groups([]) == []
