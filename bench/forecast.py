"""The tables of docs/gpu-memory.md: plan, memory, speed, time and cost by card, all computed.

    PYTHONPATH=. python bench/forecast.py docs/gpu-memory.md

Without the path they are printed.
"""

import sys
from pathlib import Path
from typing import Any

from pages import put_table
from train_step import LAYERS_3B, WIDTH_3B, model_config

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.higgs.v3.miniature import raw_config
from higgs_pipe.higgs.v3.native import HiggsV3Config
from higgs_pipe.training.forecast import KINDS, CardForecast, forecast

POSITIONS_PER_SECOND_OF_SPEECH = 32  # 25 frames, and the text of clips of about 10 s
ROW_POSITIONS = 2048
HOURS = (1, 10, 100)


def v2_config() -> Any:
    """The published shape of Higgs Audio v2."""
    return model_config(WIDTH_3B, LAYERS_3B, 128_256, head_dim=128, num_key_heads=8)


def v3_config() -> HiggsV3Config:
    """The published shape of Higgs TTS 3."""
    config = raw_config(num_ids=151_936, hidden_size=2560, num_layers=36)
    config["text_config"] |= {
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    return HiggsV3Config(**config)


def tables(config: Any) -> list[str]:
    """Two tables as lines of Markdown: the plan by card, and time and cost by hours of speech."""
    settings = TrainConfig()
    num_trained = count_parameters(config, settings).trainable
    formulas = {c: memory_formula(config, settings, num_trained, c) for c in (False, True)}

    def on(kind: int, hours: float, compiled: bool | None = None) -> CardForecast:
        train = settings if compiled is None else settings.model_copy(update={"compile": compiled})
        num_positions = round(hours * 3600 * POSITIONS_PER_SECOND_OF_SPEECH * train.num_epochs)
        return forecast(KINDS[kind], formulas, train, ROW_POSITIONS, num_positions)

    lines = [
        "| card | compiled: plan | memory | positions/s "
        "| not compiled: plan | memory | positions/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for index, kind in enumerate(KINDS):
        cells = [cell for compiled in (True, False) for cell in cells_of(on(index, 100, compiled))]
        lines.append(f"| {kind.memory_gb} GB ({kind.name}) | {' | '.join(cells)} |")
    lines += ["", "| card | " + " | ".join(f"{hours} h of speech" for hours in HOURS) + " |"]
    lines.append("|---|" + "---|" * len(HOURS))
    for index, kind in enumerate(KINDS):
        times = [time_and_cost(on(index, hours)) for hours in HOURS]
        lines.append(f"| {kind.memory_gb} GB ({kind.name}) | {' | '.join(times)} |")
    return lines


def cells_of(card: CardForecast) -> list[str]:
    """Plan, memory and speed."""
    num_rows = card.rows_per_micro_batch
    plan = "1 row" if num_rows == 1 else f"{num_rows} rows"
    if card.recomputed_layers:
        plan += f", {card.recomputed_layers} layers recomputed"
    return [plan, f"{card.memory_gib.total:.1f} GiB", f"{card.positions_per_second:,.0f}"]


def time_and_cost(card: CardForecast) -> str:
    """Minutes or hours, and dollars."""
    time = f"{card.hours:.1f} h" if card.hours >= 1 else f"{60 * card.hours:.0f} min"
    return f"{time}, ${card.dollars:.2f}"


if __name__ == "__main__":
    for name, config in (("card table", v2_config()), ("card table of v3", v3_config())):
        if len(sys.argv) > 1:
            put_table(Path(sys.argv[1]), name, tables(config))
        else:
            print(name, *tables(config), sep="\n")
