"""Splits: a hash picks the groups of clips that are held out."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.specs import EVAL, TRAIN


def assign_splits(
    groups: pa.DictionaryArray, given: Sequence[str | None], eval_fraction: float, seed: int
) -> list[str]:
    """Return the split of each clip.

    Clips of one group (``keys.groups_of``) always share a split. A group is held out when its
    hash falls below ``eval_fraction``; if that leaves a split empty, the group with the smallest
    (or largest) hash goes there, so that two groups always give both splits.

    Args:
        groups: The group of each clip, by name.
        given: The split from the manifest, or None; it wins for the whole group.
        eval_fraction: Share of the groups to hold out.
        seed: Another seed gives another split.

    Returns:
        ``train`` or ``eval`` for each clip.
    """
    numbers = groups.indices.to_numpy()
    names = (name.as_py() for name in groups.dictionary)
    hashes = np.fromiter((unit_hash("split", seed, name) for name in names), np.float64)
    is_held_out, is_free = hashes < eval_fraction, np.ones(len(hashes), np.bool_)
    for group, split in zip(numbers.data, given, strict=True):
        if split is not None:
            is_held_out[group], is_free[group] = split == EVAL, False
    free = np.flatnonzero(is_free)
    if len(free) and not is_held_out.any():
        is_held_out[free[hashes[free].argmin()]] = True
    if len(free) and is_held_out.all():
        is_held_out[free[hashes[free].argmax()]] = False
    return [EVAL if held_out else TRAIN for held_out in is_held_out[numbers].tolist()]
