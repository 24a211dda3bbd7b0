"""Memory, time and cost of training on each card, computed without the card."""

import math
from dataclasses import dataclass
from typing import Any

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.data.results import ResultPart
from higgs_pipe.higgs.compilation_costs import (
    COLD_SECONDS,
    H200_FLOPS,
    SAVED_SECONDS_PER_POSITION,
)
from higgs_pipe.higgs.memory import (
    BYTES_PER_TRAINED_VALUE,
    GIB,
    WORKSPACE_BYTES,
    Memory,
    MemoryFormula,
    Parameters,
)
from higgs_pipe.training.plan import (
    USABLE_SHARE,
    Plan,
    choose_plan,
    micro_step_seconds,
    rows_of_process,
)

CONTEXT_BYTES = 0.6e9  # of CUDA itself
REACHED_SHARE = H200_FLOPS / 989e12  # of the data sheet's rate, in a large matrix product
PACKED_FILL = 0.99  # share of a row that is filled
SECONDS_AT_START = 60.0  # weights, pre-flight, held-out losses, the adapter


@dataclass(frozen=True)
class GpuKind:
    """A kind of card: memory, dense bfloat16 rate from its data sheet, and an assumed rent."""

    name: str
    memory_gb: int  # as it is sold; 2^30 bytes each
    flops: float
    dollars_per_hour: float


KINDS = (
    GpuKind("RTX 4080", 16, 97e12, 0.30),
    GpuKind("RTX 4090", 24, 165e12, 0.50),
    GpuKind("A100 40 GB", 40, 312e12, 1.30),
    GpuKind("L40S", 48, 362e12, 1.00),
    GpuKind("H100 80 GB", 80, 989e12, 2.50),
    GpuKind("H200", 141, 989e12, 3.50),
)


class CardForecast(ResultPart):
    """Training on one kind of card: plan, memory, time and cost, all computed."""

    card: str
    memory_gb: int
    fits: bool
    rows_per_micro_batch: int
    recomputed_layers: int
    is_compiled: bool
    memory_gib: Memory
    positions_per_second: float  # per process
    hours: float
    dollars: float  # at an assumed rent, of all processes

    def as_text(self) -> str:
        """Return the forecast as a readable line."""
        place = f"{self.memory_gb:>3} GB ({self.card}): "
        if not self.fits:
            return f"{place}does not fit"
        how = "compiled" if self.is_compiled else "not compiled"
        if self.recomputed_layers:
            how += f", {self.recomputed_layers} layers recomputed"
        num_rows = self.rows_per_micro_batch
        rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
        return (
            f"{place}{self.memory_gib.total:.1f} GiB, {rows} at once, "
            f"{how}; {self.hours:.2f} h, about ${self.dollars:.2f}"
        )


class ExperimentEstimate(ResultPart):
    """Steps, parameters and needs of an experiment; only the steps are known without the base."""

    num_steps: int
    parameters: Parameters | None
    cards: list[CardForecast]
    unknown_because: str | None


def estimate_experiment(
    train: TrainConfig,
    num_rows: int,
    max_tokens: int,
    base: Any | None,
    base_fault: str | None,
) -> ExperimentEstimate:
    """Estimate one experiment: its steps, and its needs on each kind of card.

    Args:
        train: The settings.
        num_rows: Packed rows to train on.
        max_tokens: Positions of a row.
        base: The native config of the base; None leaves parameters, memory and time unknown.
        base_fault: The reason if there is none.
    """
    steps_per_epoch = math.ceil(num_rows / train.rows_per_step)
    num_steps = train.max_steps or steps_per_epoch * train.num_epochs
    if base is None:
        return ExperimentEstimate(
            num_steps=num_steps, parameters=None, cards=[], unknown_because=base_fault
        )
    # The models, with which the stage would start seconds later.
    from higgs_pipe.higgs.parameters import count_parameters, memory_formula

    parameters = count_parameters(base, train)
    formulas = {
        is_compiled: memory_formula(base, train, parameters.trainable, is_compiled)
        for is_compiled in (False, True)
    }
    num_positions = round(num_steps / steps_per_epoch * num_rows * max_tokens * PACKED_FILL)
    return ExperimentEstimate(
        num_steps=num_steps,
        parameters=parameters,
        cards=[forecast(kind, formulas, train, max_tokens, num_positions) for kind in KINDS],
        unknown_because=None,
    )


def forecast(
    kind: GpuKind,
    formulas: dict[bool, MemoryFormula],
    train: TrainConfig,
    row_positions: int,
    num_positions: int,
) -> CardForecast:
    """Forecast a training on one kind of card.

    Args:
        kind: The card.
        formulas: Memory formulas of the model, with and without compiled layers.
        train: The settings.
        row_positions: Positions of a packed row.
        num_positions: Number of positions of the whole training, over all epochs and processes.
    """
    flops = kind.flops * REACHED_SHARE
    speed = flops / H200_FLOPS / formulas[True].relative_work
    is_compiled = will_compile(train, num_positions / train.num_processes, speed)
    formula = formulas[is_compiled]
    adapter = BYTES_PER_TRAINED_VALUE * formula.num_trained
    free = kind.memory_gb * GIB - CONTEXT_BYTES - formula.weights
    for_activations = USABLE_SHARE * free - adapter - formula.logits - WORKSPACE_BYTES
    plan, _, fits = choose_plan(
        formula, train, for_activations, row_positions, is_compiled, train.num_processes, flops
    )
    rate = positions_per_second(plan, formula, train, row_positions, flops)
    seconds = num_positions / train.num_processes / rate + SECONDS_AT_START
    seconds += COLD_SECONDS if is_compiled else 0
    positions = plan.rows_per_micro_batch * row_positions
    return CardForecast(
        card=kind.name,
        memory_gb=kind.memory_gb,
        fits=fits,
        rows_per_micro_batch=plan.rows_per_micro_batch,
        recomputed_layers=plan.recomputed_layers,
        is_compiled=plan.is_compiled,
        memory_gib=formula.memory(positions, plan.recomputed_layers),
        positions_per_second=rate,
        hours=seconds / 3600,
        dollars=seconds / 3600 * kind.dollars_per_hour * train.num_processes,
    )


def will_compile(train: TrainConfig, num_positions: float, speed: float) -> bool:
    """Return whether training on a GPU will compile its layers, if the tools are installed.

    Arguments as for :func:`higgs_pipe.higgs.compilation.choose_compilation`.
    """
    if train.compile != "auto":
        return train.compile
    is_plain = train.quantization is None and not train.lora.use_dora
    return is_plain and num_positions * SAVED_SECONDS_PER_POSITION / speed > COLD_SECONDS


def positions_per_second(
    plan: Plan, formula: MemoryFormula, train: TrainConfig, row_positions: int, flops: float
) -> float:
    """Estimate the positions that a process trains on in a second."""
    rows = rows_of_process(train, train.num_processes)
    seconds = micro_step_seconds(
        formula,
        plan.rows_per_micro_batch * row_positions,
        plan.recomputed_layers,
        plan.is_compiled,
        flops,
    )
    return rows * row_positions / (math.ceil(rows / plan.rows_per_micro_batch) * seconds)
