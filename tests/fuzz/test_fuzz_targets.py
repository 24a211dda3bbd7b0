"""Each target of ``make fuzz`` takes its seeds, what was found before, and seeded damage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import targets

SEEDS = list(targets.seeds())
FOUND = sorted((Path(__file__).parent / "found").glob("*"))
NUM_DAMAGED = 20


@pytest.mark.parametrize("number", range(len(targets.TARGETS)))
def test_a_target_takes_its_seeds_whole_and_damaged(number: int) -> None:
    mine = [seed for seed in SEEDS if seed[0] == number]
    draw = random.Random(number)
    assert mine
    for seed in mine:
        targets.run(seed)
    for _ in range(NUM_DAMAGED):
        damaged = bytearray(draw.choice(mine))
        place = draw.randrange(1, len(damaged))
        damaged[place : place + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((0, 1, 4)))
        targets.run(bytes(damaged))


@pytest.mark.parametrize("found", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_no_fault_any_more(found: Path) -> None:
    targets.run(found.read_bytes())
