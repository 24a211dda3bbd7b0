"""The order of rows, and the thread that builds the next steps."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainings import PackedCorpus

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.training.step_inputs import (
    PlannedStep,
    StepInputs,
    built_ahead,
    combined_seed,
    epoch_steps,
    planned_steps,
)


def test_an_epoch_takes_every_row_once_in_an_order_set_by_the_seed() -> None:
    steps = epoch_steps(10, 4, seed=0, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(row for step in steps for row in step) == list(range(10))
    assert steps == epoch_steps(10, 4, seed=0, epoch=0)
    assert steps != epoch_steps(10, 4, seed=0, epoch=1)
    assert steps != epoch_steps(10, 4, seed=1, epoch=0)


def test_combined_seeds_differ_whenever_their_parts_do() -> None:
    seeds = {combined_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert combined_seed(1, 2) == combined_seed(1, 2) != combined_seed(2, 1)


def test_steps_span_epochs_up_to_num_steps_and_can_resume() -> None:
    steps = list(planned_steps(num_rows=5, rows_per_step=2, num_steps=5, seed=0))
    assert [(s.step, s.epoch, len(s.rows)) for s in steps] == [
        *[(1, 0, 2), (2, 0, 2), (3, 0, 1)],
        *[(4, 1, 2), (5, 1, 2)],
    ]
    assert [list(planned_steps(5, 2, 5, 0, done=n)) for n in range(6)] == [
        steps[n:] for n in range(6)
    ]


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("num_processes", "expected"), [(1, 3), (2, 2)])
def test_a_micro_batch_is_at_most_the_rows_of_a_process_per_step(
    corpus: PackedCorpus, is_padded: bool, num_processes: int, expected: int
) -> None:
    accelerator: Any = SimpleNamespace(num_processes=num_processes)
    config: Any = None
    inputs = StepInputs(
        PackedRows(corpus.train_rows), config, TrainConfig(rows_per_step=3), accelerator
    )
    inputs.follow(64, is_padded)
    assert inputs.rows_per_micro_batch == expected


@pytest.mark.parametrize(("process", "share"), [(0, [4]), (1, [1]), (2, [])])
def test_a_process_without_rows_adds_nothing_to_a_step(
    corpus: PackedCorpus, tiny_base: Path, process: int, share: list[int]
) -> None:
    accelerator: Any = SimpleNamespace(
        num_processes=3, process_index=process, device=torch.device("cpu")
    )
    shape = renderer_of(Pretrained("base", str(tiny_base))).shape
    settings = TrainConfig(rows_per_step=2)
    inputs = StepInputs(PackedRows(corpus.train_rows), shape, settings, accelerator)
    built = inputs.build(PlannedStep(step=1, epoch=0, rows=[4, 1]))
    [micro_batch] = built.micro_batches
    assert (micro_batch.rows, micro_batch.weight) == (share or [4], float(bool(share)))
    expected = micro_batch.batch.label_counts() * len(share)
    assert built.label_counts.tolist() == expected.tolist()
    lengths = inputs.row_lengths
    assert built.num_tokens == lengths[4] + lengths[1]  # of all processes
    assert inputs.positions_per_step == sum(lengths) / 3  # 5 rows, in 3 steps


def test_items_are_built_in_order_and_at_most_two_ahead() -> None:
    asked: list[int] = []

    def plans() -> Iterator[int]:
        for plan in range(6):
            asked.append(plan)
            yield plan

    built = built_ahead(lambda plan: plan * plan, plans(), num_ahead=2)
    assert next(built) == 0
    assert asked == [0, 1, 2]
    assert list(built) == [1, 4, 9, 16, 25]


def test_items_are_built_in_a_thread_that_ends_with_the_iterator() -> None:
    built = built_ahead(lambda _: threading.current_thread(), range(9))
    worker = next(built)
    assert worker is not threading.current_thread()
    built.close()
    assert not worker.is_alive()


def test_an_error_in_the_builder_thread_is_raised_at_its_item() -> None:
    built = built_ahead(lambda plan: 1 // plan, [2, 1, 0, 1])
    assert [next(built), next(built)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="integer division"):
        next(built)
