"""Inputs of each optimizer step: the order of the rows, and this process's share, built ahead."""

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.higgs.batch import PackedBatch, PackedRows, collate
from higgs_pipe.higgs.padding import Grid
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.training.plan import rows_of_process

NUM_STEPS_AHEAD = 2

Planned = TypeVar("Planned")
Built = TypeVar("Built")


class PlannedStep(NamedTuple):
    """An optimizer step before its rows are read."""

    step: int  # from 1
    epoch: int  # from 0
    rows: list[int]  # over all processes


class MicroBatch(NamedTuple):
    """Rows of one forward pass of a process; the weight is 0 if it has none of its own."""

    rows: list[int]
    weight: float
    batch: PackedBatch


class MicroBatches(NamedTuple):
    """Rows of each micro-batch, and its padding."""

    num_rows: int  # at most
    grid: Grid | None  # None: not padded


@dataclass(frozen=True)
class StepInput:
    """An optimizer step's rows, ready for this process."""

    planned: PlannedStep
    laid_out_by: MicroBatches
    num_tokens: int  # positions of the rows, over all processes
    micro_batches: list[MicroBatch]
    label_counts: Tensor  # (2 + K,) float64, of this process

    def sample_ids(self) -> list[str]:
        """List the samples of this process, for messages."""
        return [name for micro in self.micro_batches for name in micro.batch.sample_ids]


def planned_steps(
    num_rows: int, rows_per_step: int, num_steps: int, seed: int, done: int = 0
) -> Iterator[PlannedStep]:
    """Plan the steps after ``done``, epoch after epoch."""
    step = 0
    for epoch in itertools.count():
        for rows in epoch_steps(num_rows, rows_per_step, seed, epoch):
            step += 1
            if step > num_steps:
                return
            if step > done:
                yield PlannedStep(step, epoch, rows)


def epoch_steps(num_rows: int, rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the rows of each optimizer step of an epoch, in an order that depends on the seed.

    The last step takes the remaining rows.
    """
    generator = torch.Generator().manual_seed(combined_seed(seed, epoch))
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return [order[i : i + rows_per_step] for i in range(0, num_rows, rows_per_step)]


def combined_seed(*parts: int) -> int:
    """Combine several numbers into one seed, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big")


class StepInputs:
    """The optimizer steps of a run, and this process's share of each.

    Args:
        rows: The packed training rows.
        config: The base's.
        settings: Numbers of rows, steps and epochs; the seed.
        accelerator: The Accelerator of this process.
    """

    def __init__(
        self, rows: PackedRows, config: BaseShape, settings: TrainConfig, accelerator: Accelerator
    ) -> None:
        self.rows = rows
        self.config = config
        self.settings = settings
        self.accelerator = accelerator
        self.row_lengths = rows.row_lengths()  # positions
        self.steps_per_epoch = math.ceil(len(rows) / settings.rows_per_step)
        self.num_steps = settings.max_steps or self.steps_per_epoch * settings.num_epochs
        self.follow(rows_per_micro_batch=1, is_padded=False)  # until the run is planned
        self.positions_per_step = sum(self.row_lengths) / self.steps_per_epoch

    @property
    def rows_per_process(self) -> int:
        """Rows of a step that a process takes, at most."""
        return rows_of_process(self.settings, self.accelerator.num_processes)

    @property
    def rows_per_micro_batch(self) -> int:
        """Rows of a micro-batch, at most."""
        return self._micro_batches.num_rows

    def follow(self, rows_per_micro_batch: int, is_padded: bool) -> None:
        """Build the next steps of micro-batches of this size.

        Args:
            rows_per_micro_batch: At most.
            is_padded: Whether to pad them to few shapes.
        """
        num_rows = min(rows_per_micro_batch, self.rows_per_process)
        grid = Grid.of_rows(self.rows.sizes(), num_rows) if is_padded else None
        self._micro_batches = MicroBatches(num_rows, grid)

    def padded(self, rows: Sequence[int], seeds: Sequence[int]) -> PackedBatch:
        """Return rows as a micro-batch of one of the shapes."""
        grid = cast(Grid, self._micro_batches.grid)
        return grid.collate([self.rows[row] for row in rows], self.config, seeds)

    def after(self, done: int) -> Generator[StepInput, None, None]:
        """Yield the inputs of the steps after ``done``, built ahead in a thread."""
        settings = self.settings
        steps = planned_steps(
            len(self.rows), settings.rows_per_step, self.num_steps, settings.seed, done
        )
        return built_ahead(self.build, steps)

    def build(self, planned: PlannedStep) -> StepInput:
        """Read and collate this process's share of a step; safe in a thread of its own.

        A process without rows takes the step's first row with weight 0, so that it still takes
        part in the exchange of gradients.
        """
        mine = planned.rows[self.accelerator.process_index :: self.accelerator.num_processes]
        weight = 1.0 if mine else 0.0
        mine = mine or [planned.rows[0]]
        # From page-locked memory the host need not wait for the copy to a GPU.
        is_pinned = self.accelerator.device.type == "cuda"
        micro_batches = []
        layout = self._micro_batches  # another thread may make them smaller
        for start in range(0, len(mine), layout.num_rows):
            rows = mine[start : start + layout.num_rows]
            seeds = [combined_seed(self.settings.seed, planned.epoch, row) for row in rows]
            lay = collate if layout.grid is None else layout.grid.collate
            batch = lay([self.rows[row] for row in rows], self.config, seeds)
            micro_batches.append(
                MicroBatch(rows, weight, batch.pin_memory() if is_pinned else batch)
            )
        counts = torch.stack([m.batch.label_counts() * m.weight for m in micro_batches]).sum(0)
        return StepInput(
            planned=planned,
            laid_out_by=layout,
            num_tokens=sum(self.row_lengths[row] for row in planned.rows),
            micro_batches=micro_batches,
            label_counts=counts.pin_memory() if is_pinned else counts,
        )

    def fitted(self, step_input: StepInput) -> StepInput:
        """Return the step's input in micro-batches of the size and padding that are in force."""
        if step_input.laid_out_by is self._micro_batches:
            return step_input
        return self.build(step_input.planned)


def built_ahead(
    build: Callable[[Planned], Built], plans: Iterable[Planned], num_ahead: int = NUM_STEPS_AHEAD
) -> Generator[Built, None, None]:
    """Yield ``map(build, plans)``, built up to ``num_ahead`` items ahead in a background thread.

    The items come in the order of their plans. An error in the thread is raised here unchanged, at
    its item. Closing the iterator ends the thread.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-inputs") as worker:
        waiting: deque[Future[Built]] = deque()
        try:
            for plan in plans:
                waiting.append(worker.submit(build, plan))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            worker.shutdown(cancel_futures=True)
