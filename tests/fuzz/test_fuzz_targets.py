"""Each target of ``make fuzz`` takes its seeds, what was found or kept before, seeded damage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import page, targets

SEEDS = list(targets.seeds())
KEPT = page.kept()
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


def test_a_target_takes_the_inputs_that_were_kept() -> None:
    assert len(KEPT) > 300
    for content in KEPT[::4]:
        targets.run(content)


@pytest.mark.parametrize("found", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_no_fault_any_more(found: Path) -> None:
    targets.run(found.read_bytes())
