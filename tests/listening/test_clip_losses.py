"""Losses by clip, worked by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from higgs_pipe.higgs.frame_losses import FrameLosses
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.listening.clip_losses import ClipLosses
from higgs_pipe.listening.clusters import Clusters


def losses_of(audio: float) -> FrameLosses:
    """Of a clip with a label of each kind, in each of its parts, and two codebooks."""
    sums = LossSums(torch.tensor([1.0, audio, audio, 1.0]), torch.ones(4))
    return FrameLosses(sums, np.ones((3, 2)), np.ones((3, 2)), stop_at_end=0.5, stop_before_end=0.1)


def test_the_worst_clips_are_those_of_the_adapter() -> None:
    clips: list[Any] = [
        {"clip_id": name, "text": name, "speaker": None, "language": None}
        | {"duration_seconds": 1.0, "task": "speech"}
        for name in ("a", "b")
    ]
    adapter, base = ([losses_of(x) for x in losses] for losses in ((1.0, 2.0), (9.0, 3.0)))
    alone = Clusters.of(["a", "b"], [None] * 2, [None] * 2)
    other = [[each.sums for each in model] for model in (adapter, base)]
    found = ClipLosses(clips, alone, adapter, base, *other).breakdown().worst_clips
    assert [(clip.clip_id, clip.adapter, clip.base) for clip in found] == [
        ("b", 2.0, 3.0),
        ("a", 1.0, 9.0),
    ]


def test_the_worst_twenty_clips_are_listed() -> None:
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


def test_clips_are_grouped_by_length_and_by_the_parts_that_they_have() -> None:
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


def test_the_loss_of_a_group_is_the_mean_of_its_codebooks() -> None:
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


def test_groups_of_a_kind_are_listed_from_the_largest() -> None:
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
