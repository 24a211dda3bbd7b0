"""A line of ``make bench``: a ratio measured in several rounds, and the goal that it must reach."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A ratio of two measurements that took turns, once per round."""

    name: str
    rounds: list[float]
    goal: float
    at_least: bool = True  # or at most

    @property
    def value(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def noise(self) -> float:
        """Half of what lies between the lowest and the highest round."""
        return (max(self.rounds) - min(self.rounds)) / 2

    @property
    def is_missed(self) -> bool:
        """Return whether the goal is missed by more than the noise."""
        lacking = self.goal - self.value if self.at_least else self.value - self.goal
        return lacking > self.noise


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def in_turn(
    variants: Mapping[str, Callable[[], object]], num_rounds: int
) -> dict[str, list[float]]:
    """Return the CPU seconds of each variant in each round, after a round that warms up.

    Processor time, unlike the clock's, hardly depends on what else the machine does.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(num_rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number:
                found[name].append(time.process_time() - started)
    return found
