"""Best-fit-decreasing bin packing."""

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def best_fit_decreasing(lengths: npt.NDArray[np.int32], capacity: int) -> list[Indices]:
    """Pack items into bins: longest first, each into the bin that it fills best.

    Uses at most 11/9 of the fewest possible bins, plus 4 (Johnson et al., 1974). Items of equal
    length are placed together, so a million items take a few seconds.

    Args:
        lengths: Length of each item, 1 to ``capacity``.
        capacity: Length of a bin.

    Returns:
        The indices of the items, one ascending array per bin, bins in the order of their opening.

    Raises:
        ValueError: An item is longer than a bin, or shorter than 1.
    """
    if len(lengths) == 0:
        return []
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(
            f"items of length {lengths.min()} to {lengths.max()} cannot fit into {capacity}"
        )
    bin_of_item = np.empty(len(lengths), np.int64)
    num_bins = 0
    bins_with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys, ascending

    def put_back(room: int, bins: list[int]) -> None:
        if not bins:
            return
        if room not in bins_with_room:
            bins_with_room[room] = []
            insort(rooms, room)
        bins_with_room[room] += bins

    by_length = np.argsort(-lengths, kind="stable")
    steps = np.flatnonzero(np.diff(lengths[by_length])) + 1
    for items in np.split(by_length, steps):  # items of one length
        length = int(lengths[items[0]])
        placed = 0
        while placed < len(items):
            tightest = bisect_left(rooms, length)
            room = rooms[tightest] if tightest < len(rooms) else capacity
            # The tightest bin remains the tightest until it is full.
            items_per_bin = room // length
            num_wanted = -(-(len(items) - placed) // items_per_bin)
            if tightest == len(rooms):
                bins = list(range(num_bins, num_bins + num_wanted))
                num_bins += num_wanted
            else:
                bins = bins_with_room.pop(room)
                del rooms[tightest]
                put_back(room, bins[num_wanted:])
                bins = bins[:num_wanted]
            targets = np.repeat(bins, items_per_bin)[: len(items) - placed]
            bin_of_item[items[placed : placed + len(targets)]] = targets
            placed += len(targets)
            in_last = len(targets) - (len(bins) - 1) * items_per_bin
            put_back(room - items_per_bin * length, bins[:-1])
            put_back(room - in_last * length, bins[-1:])

    by_bin = np.argsort(bin_of_item, kind="stable")
    ends = np.cumsum(np.bincount(bin_of_item, minlength=num_bins))
    return np.split(by_bin, ends[:-1])
