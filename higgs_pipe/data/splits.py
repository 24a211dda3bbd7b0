"""Which clips are held out, and which shard a clip belongs to: by hash, so nothing drifts."""

import hashlib
from collections.abc import Sequence

TRAIN, EVAL, REFERENCE = "train", "eval", "reference"


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def shard_of(clip_id: str, num_shards: int) -> int:
    """The shard of a clip; adding rows never moves it."""
    return int(unit_hash("shard", clip_id) * num_shards)


def assign_splits(
    groups: Sequence[str], given: Sequence[str | None], eval_fraction: float, seed: int
) -> list[str]:
    """The split of each clip.

    Clips of one group (the same audio) always share a split. A group is held out when its hash
    falls below ``eval_fraction``; if that leaves a side empty, the group with the smallest (or
    largest) hash goes there, so that two groups always give both sides.

    Args:
        groups: A key for each clip; clips with equal audio have equal keys.
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
