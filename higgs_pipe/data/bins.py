"""First-fit-decreasing bin packing."""

from collections.abc import Sequence


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into bins: longest first, each into the first bin that has room.

    At most 11/9 of the fewest possible bins, plus 6/9 (Dósa, 2007). O(n log n): a tournament tree
    over the bins' free space finds the first fit.

    Args:
        lengths: Length of each item, at most ``capacity``; items of equal length keep their order.
        capacity: Of a bin.

    Returns:
        The items' indices, a list a bin, bins in the order of their opening.

    Raises:
        ValueError: An item is longer than a bin.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an item of length {max(lengths)} cannot fit into {capacity}")
    num_leaves = 1
    while num_leaves < len(lengths):
        num_leaves *= 2
    most_free = [capacity] * (2 * num_leaves)  # of the bins below each node; leaves last
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        node = 1
        while node < num_leaves:
            node *= 2
            if most_free[node] < lengths[item]:
                node += 1
        index = node - num_leaves
        if index == len(bins):
            bins.append([])
        bins[index].append(item)
        most_free[node] -= lengths[item]
        while node > 1:
            node //= 2
            most_free[node] = max(most_free[2 * node], most_free[2 * node + 1])
    return bins
