from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgs_pipe.data.packing.bins import best_fit_decreasing


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    return [
        members.tolist() for members in best_fit_decreasing(np.array(lengths, np.int32), capacity)
    ]


def plain_best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """The room that is left in each bin."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(capacity - length)
    return rooms


def test_bins_match_a_hand_calculation() -> None:
    assert packed([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 2, 3, 5]]


@given(st.lists(st.integers(1, 50), max_size=60))
def test_bins_are_as_full_as_those_of_the_plain_algorithm(lengths: Any) -> None:
    bins = packed(lengths, 50)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    rooms = [50 - sum(lengths[i] for i in members) for members in bins]
    assert sorted(rooms) == sorted(plain_best_fit_decreasing(lengths, 50))


def test_typical_speech_lengths_fill_99_percent_of_the_rows() -> None:
    seconds = np.random.default_rng(0).uniform(1, 20, 20_000)
    lengths = (seconds * 25 + 60).astype(np.int32)
    assert lengths.sum() / 2048 / len(best_fit_decreasing(lengths, 2048)) > 0.99


def test_no_items_need_no_bins() -> None:
    assert packed([], 10) == []


@pytest.mark.parametrize("lengths", [[3, 11], [0, 3]])
def test_an_item_larger_than_a_bin_is_refused(lengths: Any) -> None:
    with pytest.raises(ValueError, match=r"\b10\b"):
        packed(lengths, 10)
