"""The page of faults: what was done to which stage, and what became of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Happened:
    """A fault, the stage or file that it was done to, and how often it ended in which way."""

    fault: str
    stage: str
    refused: int = 0  # a sentence, exit code 2
    equal: int = 0  # results as without the fault, at once or after a rerun
    lost: int = 0  # a wrong result, a traceback or half a file


HEAD = """\
# Proof: faults, and what became of them

Written by `make faults`. Each row is a fault that a test of `tests/faults/` causes on purpose, in
the stages themselves, at seeded places. *Refused* is a sentence and exit code 2. *Equal* is the
result of an undisturbed run: tables byte for byte, an adapter to 1e-6, after a rerun where the
fault ended the stage. *Lost* is anything else: a wrong result in silence, a traceback, half a
file. A fault that ends so fails its test, and then this page is not written.

One fault is not ours to refuse: Snakemake reads a file of `--configfile` before any code of this
project. One that nests too deeply, or in which an alias stands in itself, ends within seconds by a
traceback of Snakemake. Aliases that multiply to billions of values are refused by a sentence, and
each of these in the folder's own `config.yaml`.

"""


def page(noted: Sequence[Happened]) -> str:
    """Return the page, with the date and the machine."""
    machine = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"
    )
    total = sum(each.refused + each.equal + each.lost for each in noted)
    lost = sum(each.lost for each in noted)
    lines = [
        f"{date.today()}: {total} faults, {lost} lost, on {machine}.\n",
        "| fault | stage or file | refused | equal | lost |",
        "|---|---|---|---|---|",
        *(f"| {e.fault} | {e.stage} | {e.refused} | {e.equal} | {e.lost} |" for e in noted),
    ]
    return HEAD + "\n".join(lines) + "\n"
