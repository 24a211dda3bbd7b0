"""Losses per clip, calculated by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from higgs_pipe.higgs.frame_losses import FrameLosses
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.listening.clip_losses import ClipLosses
from higgs_pipe.listening.clusters import Clusters


def losses_of(audio: float) -> FrameLosses:
    """Of a clip with a label of each kind, in each of its parts, and two codebooks."""
    sums = LossSums(torch.tensor([1.0, audio, audio, 1.0]), torch.ones(4))
    return FrameLosses(sums, np.ones((3, 2)), np.ones((3, 2)), stop_at_end=0.5, stop_before_end=0.1)


def test_the_worst_clips_are_ranked_by_the_loss_of_the_adapter() -> None:
    clips: list[Any] = [
        {"clip_id": name, "text": f"{name}!", "speaker": None, "language": None}
        | {"duration_seconds": 1.0, "task": "speech"}
        for name in ("a", "b")
    ]
    adapter, base = ([losses_of(x) for x in losses] for losses in ((1.0, 2.0), (9.0, 3.0)))
    alone = Clusters.of(["a", "b"], [None] * 2, [None] * 2)
    other = [[each.sums for each in model] for model in (adapter, base)]
    found = ClipLosses(clips, alone, adapter, base, *other).breakdown().worst_clips
    assert [(clip.clip_id, clip.text, clip.adapter, clip.base) for clip in found] == [
        ("b", "b!", 2.0, 3.0),
        ("a", "a!", 1.0, 9.0),
    ]


def test_a_family_without_text_loss_has_no_text_loss_difference() -> None:
    clips: list[Any] = [{"clip_id": name} for name in ("a", "b")]
    alone = Clusters.of(["a", "b"], [None] * 2, [None] * 2)
    for has_text in (True, False):
        both = [losses_of(loss) for loss in (1.0, 2.0)]
        both = [replace(each, sums=replace(each.sums, has_text=has_text)) for each in both]
        sums = [each.sums for each in both]
        found = ClipLosses(clips, alone, both, both, sums, sums).differences()
        assert ("text_loss" in found) == has_text


def test_the_20_worst_clips_are_listed() -> None:
    ids = [f"{number:02d}" for number in range(25)]
    clips: list[Any] = [
        {"clip_id": name, "text": name, "speaker": None, "language": None}
        | {"duration_seconds": 1.0, "task": "speech"}
        for name in ids
    ]
    losses = [losses_of(float(number)) for number in range(25)]
    alone = Clusters.of(ids, [None] * 25, [None] * 25)
    sums = [each.sums for each in losses]
    found = ClipLosses(clips, alone, losses, losses, sums, sums).breakdown().worst_clips
    assert [clip.clip_id for clip in found] == ids[:4:-1]


def test_clips_are_grouped_by_length_and_by_the_positions_they_contain() -> None:
    clips: list[Any] = [
        {"clip_id": name, "text": name, "speaker": None, "language": None}
        | {"duration_seconds": seconds, "task": "speech"}
        for name, seconds in (("a", 1.0), ("b", 20.0))
    ]
    without_middle = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    losses = [replace(losses_of(1.0), part_count=without_middle) for _ in clips]
    alone = Clusters.of(["a", "b"], [None] * 2, [None] * 2)
    sums = [each.sums for each in losses]
    found = ClipLosses(clips, alone, losses, losses, sums, sums).breakdown().groups
    assert {g.name for g in found if g.kind == "length"} == {"below 2 s", "20 s and more"}
    assert [g.name for g in found if g.kind == "position"] == ["start", "end"]


def test_the_loss_of_a_group_is_the_mean_over_codebooks() -> None:
    """Codebook 0 has 9 nats over 9 labels, codebook 1 has 3 over 1: the mean of 1 and 3."""
    clips: list[Any] = [
        {"clip_id": name, "text": name, "speaker": "ada", "language": None}
        | {"duration_seconds": 1.0, "task": "speech"}
        for name in ("a", "b")
    ]
    sums = LossSums(torch.tensor([1.0, 9.0, 3.0, 1.0]), torch.tensor([1.0, 9.0, 1.0, 1.0]))
    losses = [replace(losses_of(1.0), sums=sums) for _ in clips]
    alone = Clusters.of(["a", "b"], [None] * 2, [None] * 2)
    found = ClipLosses(clips, alone, losses, losses, [sums] * 2, [sums] * 2).breakdown().groups
    [group] = [each for each in found if each.kind == "speaker"]
    assert (group.base, group.adapter, group.num_clips) == (2.0, 2.0, 2)


def test_groups_of_a_kind_are_listed_largest_first() -> None:
    clips: list[Any] = [
        {"clip_id": str(number), "text": "", "speaker": speaker, "language": None}
        | {"duration_seconds": 1.0, "task": "speech"}
        for number, speaker in enumerate(["ada", "cyd", "ben", "cyd"])
    ]
    losses = [losses_of(1.0) for _ in clips]
    sums = [each.sums for each in losses]
    alone = Clusters.of(list("0123"), [None] * 4, [None] * 4)
    found = ClipLosses(clips, alone, losses, losses, sums, sums).breakdown().groups
    assert [g.name for g in found if g.kind == "speaker"] == ["cyd", "ada", "ben"]


def three_clips() -> ClipLosses:
    """Of two codebooks: sums are of text, codebooks 0 and 1, and stop; parts of codebooks 0 and 1.

    The clip "a" is too short for a middle of codebook 1.
    """
    clips: list[Any] = [
        {"clip_id": "a", "speaker": "ada", "language": None, "duration_seconds": 1.9},
        {"clip_id": "b", "speaker": "ben", "language": "de", "duration_seconds": 2.0},
        {"clip_id": "c", "speaker": "ada", "language": None, "duration_seconds": 1.0},
    ]
    counts = [[1.0, 2.0, 1.0, 2.0], [1.0, 4.0, 3.0, 2.0], [1.0, 2.0, 1.0, 2.0]]
    part_counts = np.array([[[1, 1], [1, 0], [1, 1]], [[2, 2]] * 3, [[1, 1]] * 3], float)
    part_losses = np.array(
        [[[1, 1], [5, 0], [2, 2]], [[2, 4], [4, 6], [8, 2]], [[1, 1]] * 3], float
    )

    def model(losses: Any, at_end: Any, before_end: Any, times: int) -> list[FrameLosses]:
        return [
            FrameLosses(sums, times * part_loss, part_count, end, before)
            for sums, part_loss, part_count, end, before in zip(
                sums_of(losses), part_losses, part_counts, at_end, before_end, strict=True
            )
        ]

    def sums_of(losses: Any) -> list[LossSums]:
        return [
            LossSums(torch.tensor([float(x) for x in loss]), torch.tensor(count))
            for loss, count in zip(losses, counts, strict=True)
        ]

    return ClipLosses(
        [{"text": "So.", "task": "dialogue_cloning"} | clip for clip in clips],
        Clusters.of(["a", "b", "c"], [None] * 3, [None] * 3),
        adapter=model(
            [[1, 2, 3, 4], [2, 8, 3, 2], [1, 2, 1, 2]], [0.9, 0.3, 0.3], [0.1, 0.2, 0.6], 1
        ),
        base=model([[3, 6, 4, 8], [1, 4, 9, 6], [1, 2, 1, 2]], [0.6, 0, 0], [0, 0, 0.3], 2),
        adapter_other_text=sums_of([[9, 4, 5, 9], [9, 10, 6, 9], [9, 2, 1, 9]]),
        base_other_text=sums_of([[9, 6, 6, 9], [9, 5, 9, 9], [9, 2, 1, 9]]),
    )


def test_differences_are_summed_losses_divided_by_label_counts() -> None:
    """Audio: the adapter has 12 nats over 8 labels, 7 over 5; the base 12 over 8, 14 over 5."""
    losses = three_clips()
    found = {name: difference.value for name, difference in losses.differences().items()}
    assert found == pytest.approx(
        {
            "audio_loss": (12 / 8 + 7 / 5) / 2 - (12 / 8 + 14 / 5) / 2,
            "stop_loss": 8 / 6 - 16 / 6,
            "text_loss": 4 / 3 - 5 / 3,
            "text_use": (4 / 8 + 5 / 5) / 2 - (1 / 8 + 2 / 5) / 2,
        }
    )
    assert losses.text_use().value == pytest.approx((4 / 8 + 5 / 5) / 2)


def test_the_breakdown_of_three_clips_matches_a_hand_calculation() -> None:
    found = three_clips().breakdown()
    assert [(g.kind, g.name, g.num_clips, g.base, g.adapter) for g in found.groups] == [
        ("speaker", "ada", 2, 2.25, 1.5),
        ("speaker", "ben", 1, 2.0, 1.5),
        ("language", "de", 1, 2.0, 1.5),
        ("task", "dialogue cloning", 3, pytest.approx(2.15), pytest.approx(1.45)),
        ("length", "below 2 s", 2, 2.25, 1.5),
        ("length", "2 to 5 s", 1, 2.0, 1.5),
        ("position", "start", 3, 2.5, 1.25),
        ("position", "middle", 2, pytest.approx(4), pytest.approx(2)),
        ("position", "end", 3, 4.0, 2.0),
    ]
    assert [g.difference.value for g in found.groups] == pytest.approx(
        [g.adapter - g.base for g in found.groups]
    )
    assert vars(found.adapter_stopping) == pytest.approx({"at_end": 0.5, "before_end": 0.3})
    assert vars(found.base_stopping) == pytest.approx({"at_end": 0.2, "before_end": 0.1})
    worst = [(clip.clip_id, clip.speaker, clip.base, clip.adapter) for clip in found.worst_clips]
    assert worst == [("a", "ada", 3.5, 2.0), ("b", "ben", 2.0, 1.5), ("c", "ada", 1.0, 1.0)]
