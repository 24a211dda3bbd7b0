"""What each optimizer step takes: the order of the rows, and this process's share, built ahead."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from higgs_pipe.higgs.batch import PackedBatch, PackedRows, collate

NUM_STEPS_AHEAD = 2

Plan = TypeVar("Plan")
Built = TypeVar("Built")


class PlannedStep(NamedTuple):
    """An optimizer step before its rows are read."""

    step: int  # from 1
    epoch: int  # from 0
    rows: list[int]  # over all processes


class MicroBatch(NamedTuple):
    """Rows that a process takes at once; a weight of 0 is for a process that has none."""

    rows: list[int]
    weight: float
    batch: PackedBatch


@dataclass(frozen=True)
class StepInput:
    """An optimizer step's rows, ready for this process."""

    planned: PlannedStep
    micro_batches: list[MicroBatch]
    label_counts: Tensor  # (2 + K,) float64, of this process

    def sample_ids(self) -> list[str]:
        """The samples that this process takes, for messages."""
        return [name for micro in self.micro_batches for name in micro.batch.sample_ids]


def planned_steps(
    num_rows: int, rows_per_step: int, num_steps: int, seed: int, done: int = 0
) -> Iterator[PlannedStep]:
    """The steps after ``done``, epoch after epoch."""
    step = 0
    for epoch in itertools.count():
        for rows in epoch_steps(num_rows, rows_per_step, seed, epoch):
            step += 1
            if step > num_steps:
                return
            if step > done:
                yield PlannedStep(step, epoch, rows)


def epoch_steps(num_rows: int, rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of each optimizer step of an epoch, in an order that only the seed decides.

    The last step takes what is left.
    """
    generator = torch.Generator().manual_seed(combined_seed(seed, epoch))
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return [order[i : i + rows_per_step] for i in range(0, num_rows, rows_per_step)]


def combined_seed(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def build_step(
    planned: PlannedStep,
    table: PackedRows,
    config: Any,
    rows_per_micro_batch: int,
    share: tuple[int, int],
    pin_memory: bool = False,
) -> StepInput:
    """Read and collate a process's share of a step.

    A process without rows takes the step's first row with weight 0, so that it still takes part
    in the exchange of gradients.

    Args:
        planned: The step.
        table: The packed rows.
        config: The model's config.
        rows_per_micro_batch: Rows that a process takes at once.
        share: (index of this process, number of processes).
        pin_memory: Page-locked, so that the copy to a GPU does not hold up the host.
    """
    index, num_processes = share
    mine = planned.rows[index::num_processes]
    weight = 1.0 if mine else 0.0
    mine = mine or [planned.rows[0]]
    micro_batches = []
    for start in range(0, len(mine), rows_per_micro_batch):
        rows = mine[start : start + rows_per_micro_batch]
        batch = collate([table[row] for row in rows], config)
        micro_batches.append(MicroBatch(rows, weight, batch.pin_memory() if pin_memory else batch))
    counts = torch.stack([m.batch.label_counts() * m.weight for m in micro_batches]).sum(0)
    return StepInput(planned, micro_batches, counts.pin_memory() if pin_memory else counts)


def built_ahead(
    build: Callable[[Plan], Built], plans: Iterable[Plan], num_ahead: int = NUM_STEPS_AHEAD
) -> Generator[Built, None, None]:
    """``map(build, plans)``, up to ``num_ahead`` items ahead in one background thread.

    The items come in the order of their plans. An error in the thread is raised here, at its
    item, as it was. Closing the iterator ends the thread.
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
