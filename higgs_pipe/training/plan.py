"""The plan of a run: rows per micro-batch and recomputed layers, by memory and time.

A plan changes speed and memory. Losses and gradients are sums over the same labels.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.higgs.compilation_costs import H200_FLOPS
from higgs_pipe.higgs.memory import LAYERS_3B, MemoryFormula

USABLE_SHARE = 0.95  # of free memory; the allocator cannot use every byte
MAX_ROWS = 64
NEARLY_AS_FAST = 1.03  # of the shortest time
PADDING_SHARE = 0.02  # of the positions of a micro-batch (higgs/padding.py)
# Fitted to docs/performance.md (one H200, 28 layers of the 3B model). The host sets a lower limit
# for each micro-step; the device needs a constant and a time per position. The host's times of
# compiled layers are from before they had LoRA's gradients, and were not measured since.
HOST_SECONDS = {False: 0.28, True: 0.18}
HOST_SECONDS_RECOMPUTED = {False: 0.33, True: 0.10}  # more, where every layer is recomputed
HOST_SECONDS_GRAPHED = 0.005  # assumed
DEVICE_SECONDS = 0.012
DEVICE_SECONDS_PER_POSITION = {False: 37.5e-6, True: 27.5e-6}
# More, for a second forward pass; compiled in the same proportion, which was not measured.
DEVICE_SECONDS_PER_POSITION_RECOMPUTED = {False: 25.5e-6, True: 18.7e-6}


@dataclass(frozen=True)
class Plan:
    """Size of the micro-batches and number of recomputed layers; the same on every process."""

    rows_per_micro_batch: int
    recomputed_layers: int  # the first ones
    is_compiled: bool
    is_padded: bool = False  # to few shapes, each of which can be replayed as a CUDA graph

    @classmethod
    def read(cls, saved: dict[str, Any] | None) -> Self | None:
        """Return the plan of a checkpoint; None if it holds none."""
        return cls(**saved) if saved else None

    def as_dict(self) -> dict[str, Any]:
        """Return the values for a checkpoint and for a line of ``metrics.jsonl``."""
        return asdict(self)

    def halved(self) -> Self | None:
        """Return the plan with half the rows per micro-batch; None below one row."""
        if self.rows_per_micro_batch == 1:
            return None
        return replace(self, rows_per_micro_batch=self.rows_per_micro_batch // 2)


class Choice(NamedTuple):
    """A plan, the seconds that a step takes with it, and whether its activations fit."""

    plan: Plan
    seconds: float
    fits: bool


def micro_step_seconds(
    formula: MemoryFormula,
    num_positions: float,
    num_recomputed: int,
    is_compiled: bool,
    flops: float = H200_FLOPS,
    is_graphed: bool = False,
) -> float:
    """Estimate the seconds of forward and backward, from those of the 3B model.

    The host's time grows with the layers, the device's with their matrix products.

    Args:
        formula: The memory formula of the model.
        num_positions: Number of positions of the micro-batch.
        num_recomputed: Layers that are recomputed.
        is_compiled: Whether the layers are compiled.
        flops: Operations per second of the GPU in a large matrix product.
        is_graphed: Whether a CUDA graph takes the place of the host.
    """
    recomputed_share = num_recomputed / formula.num_layers
    host = HOST_SECONDS[is_compiled] + HOST_SECONDS_RECOMPUTED[is_compiled] * recomputed_share
    host *= formula.num_layers / LAYERS_3B
    host = HOST_SECONDS_GRAPHED if is_graphed else host
    per_position = DEVICE_SECONDS_PER_POSITION[is_compiled]
    per_position += DEVICE_SECONDS_PER_POSITION_RECOMPUTED[is_compiled] * recomputed_share
    per_position *= formula.relative_work
    device = (DEVICE_SECONDS + per_position * num_positions) * H200_FLOPS / flops
    return max(host, device)


def recomputed_layers(train: TrainConfig, num_layers: int) -> int | None:
    """Return how many layers to recompute by the config; None is auto."""
    setting = train.gradient_checkpointing
    if setting == "auto":
        return None
    if isinstance(setting, bool):
        return num_layers if setting else 0
    return min(setting, num_layers)


def rows_of_process(train: TrainConfig, num_processes: int) -> int:
    """Return how many rows of a step a process takes, at most."""
    return math.ceil(train.rows_per_step / num_processes)


def plan_without_card(train: TrainConfig, num_layers: int, is_compiled: bool) -> Plan:
    """Return the plan on a CPU: ``auto`` is one row, and nothing recomputed."""
    rows = train.rows_per_micro_batch
    return Plan(
        rows_per_micro_batch=1 if rows == "auto" else rows,
        recomputed_layers=recomputed_layers(train, num_layers) or 0,
        is_compiled=is_compiled,
        is_padded=train.cuda_graphs is True,
    )


def choose_plan(
    formula: MemoryFormula,
    train: TrainConfig,
    num_bytes: float,
    row_positions: int,
    is_compiled: bool,
    num_processes: int = 1,
    flops: float = H200_FLOPS,
    is_graphed: bool = False,
) -> Choice:
    """Choose the fastest plan whose activations fit.

    Among plans that are nearly as fast, it is the one with the fewest rows. If nothing fits, it is
    one row with every layer recomputed, or as the config says.

    Args:
        formula: The memory formula of the model.
        train: Settings; a number instead of ``auto`` is kept.
        num_bytes: Memory for activations.
        row_positions: Positions of the longest packed row.
        is_compiled: Whether the layers are compiled.
        num_processes: Number of processes of the run.
        flops: Operations per second of the GPU in a large matrix product.
        is_graphed: Whether micro-steps are replayed as CUDA graphs, whose pool holds activations a
            second time and whose batches are padded.
    """
    row_size = row_positions * (1 + PADDING_SHARE) if is_graphed else row_positions
    num_bytes = num_bytes / 2 if is_graphed else num_bytes
    rows_per_process = rows_of_process(train, num_processes)
    rows, layers = train.rows_per_micro_batch, recomputed_layers(train, formula.num_layers)
    most_rows = min(rows_per_process, MAX_ROWS if rows == "auto" else rows)
    numbers = range(1 if rows == "auto" else most_rows, most_rows + 1)
    found: list[Choice] = []
    for num_rows in numbers:
        num_positions = num_rows * row_size
        fewest = formula.fewest_recomputed(num_positions, num_bytes)
        if fewest is None or (layers is not None and layers < fewest):
            continue
        plan = Plan(num_rows, fewest if layers is None else layers, is_compiled, is_graphed)
        seconds = micro_step_seconds(
            formula, num_positions, plan.recomputed_layers, is_compiled, flops, is_graphed
        )
        found.append(Choice(plan, math.ceil(rows_per_process / num_rows) * seconds, fits=True))
    if found:
        enough = NEARLY_AS_FAST * min(choice.seconds for choice in found)
        return next(choice for choice in found if choice.seconds <= enough)
    plan = Plan(
        rows_per_micro_batch=numbers[0],
        recomputed_layers=formula.num_layers if layers is None else layers,
        is_compiled=is_compiled,
        is_padded=is_graphed,
    )
    return Choice(plan, math.inf, fits=False)
