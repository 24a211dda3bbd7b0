"""Which clips are held out, and which shard a clip belongs to: by hash, so nothing drifts."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

TRAIN, EVAL, REFERENCE = "train", "eval", "reference"


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def shard_of(clip_id: str, num_shards: int) -> int:
    """The shard of a clip; adding rows never moves it."""
    return int(unit_hash("shard", clip_id) * num_shards)


class Stretch(NamedTuple):
    """What a clip holds of a recording; None is the recording's own start or end."""

    path: Path | str
    start_seconds: float | None
    end_seconds: float | None
    pcm_sha256: str

    @classmethod
    def of_clip(cls, clip: Mapping[str, Any]) -> Self:
        """That of a row of the table of clips."""
        return cls(*(clip[name] for name in ("audio_path", *cls._fields[1:])))

    @property
    def span_seconds(self) -> tuple[float, float]:
        """Start and end in the file; infinity is the file's own end."""
        return self.start_seconds or 0.0, math.inf if self.end_seconds is None else self.end_seconds

    def overlaps(self, other: "Stretch") -> bool:
        """Whether both are parts of one file and share some of its time."""
        (start, end), (other_start, other_end) = self.span_seconds, other.span_seconds
        return self.path == other.path and start < other_end and other_start < end


def audio_groups(stretches: Sequence[Stretch]) -> list[str]:
    """A key for each clip; clips that share any audio have equal keys.

    Equal samples are shared, in whatever file they lie, and so is the time in which two segments
    of one file overlap; sharing is passed on from clip to clip.
    """
    parent = {stretch.pcm_sha256: stretch.pcm_sha256 for stretch in stretches}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    by_file: dict[Path | str, list[tuple[float, float, str]]] = defaultdict(list)
    for stretch in stretches:
        by_file[stretch.path].append((*stretch.span_seconds, stretch.pcm_sha256))
    for segments in by_file.values():
        segments.sort()
        reach, last = segments[0][1], segments[0][2]
        for start, end, pcm_sha256 in segments[1:]:
            if start < reach:
                one, other = sorted((root(last), root(pcm_sha256)))
                parent[other] = one
            if end > reach:
                reach, last = end, pcm_sha256
    return [root(stretch.pcm_sha256) for stretch in stretches]


def assign_splits(
    groups: Sequence[str], given: Sequence[str | None], eval_fraction: float, seed: int
) -> list[str]:
    """The split of each clip.

    Clips of one group (:func:`audio_groups`) always share a split. A group is held out when its
    hash falls below ``eval_fraction``; if that leaves a side empty, the group with the smallest
    (or largest) hash goes there, so that two groups always give both sides.

    Args:
        groups: A key for each clip; clips that share audio have equal keys.
        given: The split that the manifest gives, or None; it wins for the whole group.
        eval_fraction: Share of the groups to hold out.
        seed: Another seed gives another split.

    Returns:
        ``train`` or ``eval`` for each clip.
    """
    chosen = {group: split for group, split in zip(groups, given, strict=True) if split is not None}
    free = sorted(
        {group for group in groups if group not in chosen},
        key=lambda group: unit_hash("split", seed, group),
    )
    for group in free:
        held_out = unit_hash("split", seed, group) < eval_fraction
        chosen[group] = EVAL if held_out else TRAIN
    if free and EVAL not in chosen.values():
        chosen[free[0]] = EVAL
    if free and TRAIN not in chosen.values():
        chosen[free[-1]] = TRAIN
    return [chosen[group] for group in groups]
