"""The table of docs/tutorials/own-voice.md: rows, steps and minutes by hours of speech, computed.

    PYTHONPATH=. python bench/hours.py docs/tutorials/own-voice.md

Without the path it is printed.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

from forecast import POSITIONS_PER_SECOND_OF_SPEECH, ROW_POSITIONS
from pages import put_table
from train_step import LAYERS_3B, WIDTH_3B, model_config

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.training.forecast import KINDS, forecast

CARD = next(kind for kind in KINDS if kind.memory_gb == 24)


class Amount(NamedTuple):
    """An amount of speech and the settings that the page gives it."""

    name: str
    hours: float
    rows_per_step: int
    num_epochs: int


AMOUNTS = (
    Amount("10 minutes", 1 / 6, 2, 8),
    Amount("1 hour", 1, 4, 5),
    Amount("10 hours", 10, 8, 3),
    Amount("100 hours", 100, 16, 2),
)


def table() -> list[str]:
    """Return the lines of Markdown."""
    config = model_config(WIDTH_3B, LAYERS_3B, 128_256, head_dim=128, num_key_heads=8)
    lines = [
        f"| speech | rows per epoch | `rows_per_step` | `num_epochs` | steps | {CARD.name} |",
        "|---|---|---|---|---|---|",
    ]
    for amount in AMOUNTS:
        train = TrainConfig(rows_per_step=amount.rows_per_step, num_epochs=amount.num_epochs)
        num_trained = count_parameters(config, train).trainable
        formulas = {c: memory_formula(config, train, num_trained, c) for c in (False, True)}
        num_rows = math.ceil(amount.hours * 3600 * POSITIONS_PER_SECOND_OF_SPEECH / ROW_POSITIONS)
        num_steps = math.ceil(num_rows / amount.rows_per_step) * amount.num_epochs
        num_positions = num_rows * ROW_POSITIONS * amount.num_epochs
        card = forecast(CARD, formulas, train, ROW_POSITIONS, num_positions)
        cells = [amount.name, num_rows, amount.rows_per_step, amount.num_epochs, num_steps]
        lines.append(f"| {' | '.join(map(str, cells))} | {60 * card.hours:.0f} min |")
    return lines


if __name__ == "__main__":
    if len(sys.argv) > 1:
        put_table(Path(sys.argv[1]), "hours table", table())
    else:
        print("\n".join(table()))
