"""The state changed by an optimizer step, with gradients that are always allocated."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from higgs_pipe.training import state as state_module
from higgs_pipe.training.hashed_lines import LINES_HASH, with_hash
from higgs_pipe.training.plan import Plan
from higgs_pipe.training.state import Progress, TrainingState


def state_of(*parameters: Parameter) -> TrainingState:
    """AdamW with a rate of 0.1 and a decay of 0.5."""
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    schedule: Any = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return TrainingState(list(parameters), optimizer, schedule)


def test_a_parameter_without_gradient_still_decays() -> None:
    """With several processes, a zero gradient is exchanged for it."""
    reached, unreached = Parameter(torch.ones(2)), Parameter(torch.ones(3))
    state = state_of(reached, unreached)
    state.add_gradients(reached.sum())
    state.update()
    assert unreached.tolist() == pytest.approx([1 - 0.1 * 0.5] * 3)
    assert reached.tolist() == pytest.approx([1 - 0.1 * 0.5 - 0.1] * 2)


def test_gradients_accumulate_in_place_until_the_update() -> None:
    parameter = Parameter(torch.ones(2))
    state = state_of(parameter)
    place = parameter.grad.data_ptr()
    for _ in range(3):
        state.add_gradients(2 * parameter.sum())
    assert parameter.grad.tolist() == [6, 6]
    state.update()
    assert parameter.grad.tolist() == [0, 0]
    assert parameter.grad.data_ptr() == place


def test_the_norm_covers_all_parameters() -> None:
    parameters = Parameter(torch.tensor([3.0])), Parameter(torch.tensor([0.0, 4.0]))
    assert state_of(*parameters).parameter_norm() == pytest.approx(5)


def test_patience_counts_from_the_lowest_loss_and_not_from_the_previous() -> None:
    progress = Progress(step=1)
    counts = []
    for loss in (5.0, 6.0, 5.5, 4.9):
        progress.note(loss)
        counts.append(progress.num_evaluations_without_better)
    assert counts == [0, 1, 2, 0]


def test_a_resumed_run_restores_progress_plan_and_weights() -> None:
    kept: dict[str, Any] = {}
    checkpoints: Any = SimpleNamespace(
        save=lambda step, state: kept.update(copy.deepcopy(state)), load_latest=lambda: kept
    )
    log: Any = SimpleNamespace(text=lambda: "lines", restore=lambda text: kept.update(log=text))
    main: Any = SimpleNamespace(is_main_process=True)
    state, resumed = (state_of(Parameter(torch.tensor([value]))) for value in (1 / 3, 2.0))
    state.plan = Plan(2, 3, is_compiled=True, is_padded=True)
    state.progress = Progress(step=7, seconds=5.0, lowest_eval_loss=1.5, best_score=(1.5,))
    state.progress.best_step, state.progress.num_evaluations_without_better = 4, 3
    state.save(checkpoints, log, main)
    resumed.resume(checkpoints, log, main)
    assert (resumed.progress, resumed.plan) == (state.progress, state.plan)
    assert torch.equal(resumed.parameters[0], state.parameters[0])
    assert kept["log"] == "lines"


@pytest.mark.parametrize("lines", ["", "{}\n", "{}\n{", "{}\n[]\n"])
def test_lines_that_are_not_json_objects_have_no_hash(lines: str) -> None:
    assert with_hash(lines) == ""
    assert LINES_HASH in with_hash("{}\n{}\n")


def test_the_first_of_equally_good_adapters_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "adapter_state", lambda adapter: {"of": adapter})
    progress, kept = Progress(), []
    adapters: Any = {10: (2.0,), 20: (1.0,), 30: (1.0,), 40: (1.5,)}
    for progress.step, score in adapters.items():
        adapter: Any = progress.step
        kept.append(progress.keep_if_best(score, adapter))
    assert kept == [True, True, False, False]
    best: object = progress.best_adapter
    assert (progress.best_step, best) == (20, {"of": 20})
