"""The table of injected faults: stage, fault and outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pages import machine_now

# Of a fault and a stage, with counts of Happened by keyword.
Record = Callable[..., None]


@dataclass(frozen=True)
class Happened:
    """A fault, the stage or file it was injected into, and the count of each outcome."""

    fault: str
    stage: str
    refused: int = 0  # a sentence, exit code 2
    equal: int = 0  # results as without the fault, at once or after a rerun
    lost: int = 0  # a wrong result, a traceback or half a file


def table(noted: Sequence[Happened]) -> list[str]:
    """Return the table as sorted lines of Markdown, below a line with date, machine and sums."""
    noted = sorted(noted, key=lambda each: (each.fault.lower(), each.stage))
    total = sum(each.refused + each.equal + each.lost for each in noted)
    lost = sum(each.lost for each in noted)
    return [
        f"{machine_now()}: {total} faults, {lost} lost.",
        "",
        "| fault | stage or file | refused | equal | lost |",
        "|---|---|---|---|---|",
        *(f"| {e.fault} | {e.stage} | {e.refused} | {e.equal} | {e.lost} |" for e in noted),
    ]
