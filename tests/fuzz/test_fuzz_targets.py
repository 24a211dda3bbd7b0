"""Each target of ``make fuzz`` survives seeds, earlier findings, kept inputs and damage."""

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
def test_a_target_survives_its_seeds_intact_and_damaged(number: int) -> None:
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


def test_the_targets_survive_the_kept_inputs() -> None:
    assert len(KEPT) > 300
    for content in KEPT[::4]:
        targets.run(content)


@pytest.mark.parametrize("found", FOUND, ids=lambda path: path.name)
def test_inputs_that_once_failed_no_longer_do(found: Path) -> None:
    targets.run(found.read_bytes())
