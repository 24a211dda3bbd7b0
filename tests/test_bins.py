import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgs_pipe.data.bins import first_fit_decreasing


def plain_first_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for members in bins:
            if sum(lengths[i] for i in members) + lengths[item] <= capacity:
                members.append(item)
                break
        else:
            bins.append([item])
    return bins


def test_bins_are_filled_as_worked_by_hand():
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


@given(st.lists(st.integers(1, 50), max_size=60))
def test_packing_is_that_of_the_plain_algorithm(lengths):
    assert first_fit_decreasing(lengths, 50) == plain_first_fit_decreasing(lengths, 50)


def test_no_items_need_no_bin():
    assert first_fit_decreasing([], 10) == []


def test_an_item_longer_than_a_bin_is_refused():
    with pytest.raises(ValueError, match="length 11"):
        first_fit_decreasing([3, 11], 10)
