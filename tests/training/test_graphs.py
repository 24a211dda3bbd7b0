"""Micro-steps replayed from graphs of few shapes, with a pretended capture."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_gpu import (
    PretendedCapture,
    PretendedCard,
    pretend_to_capture,
    run_out_of_memory_once,
)
from safetensors.torch import load_file
from trainings import PackedCorpus, train

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.higgs import packed_body
from higgs_pipe.higgs.attention import packed_attention
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.training import graphs, planner
from higgs_pipe.training.plan import Plan
from higgs_pipe.training.planner import Planner

EXACT: dict[str, Any] = {
    "dtype": "float64",
    "lora": {"dropout": 0.2},
    "preflight": False,
    "rows_per_step": 3,
    "max_steps": 6,
    "learning_rate": 5e-3,
}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[PretendedCapture], None]:
    """Lets a CPU capture by what it is given."""
    return lambda capture: pretend_to_capture(monkeypatch, capture)


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def assert_close(found: Path, expected: Path) -> None:
    of_expected = adapter(expected)
    for name, tensor in adapter(found).items():
        assert (tensor - of_expected[name]).norm() <= 1e-6 * of_expected[name].norm(), name


def is_padded(metrics: list[dict[str, Any]]) -> list[bool]:
    return [line["is_padded"] for line in metrics if "is_padded" in line]


def test_padded_and_replayed_micro_steps_train_the_same_adapter(
    corpus: PackedCorpus, tmp_path: Path, pretend: Callable[[PretendedCapture], None]
) -> None:
    train(corpus, tmp_path / "plain", **EXACT)
    padded = train(corpus, tmp_path / "padded", **EXACT, cuda_graphs=True)
    assert is_padded(padded) == [True]
    assert_close(tmp_path / "padded", tmp_path / "plain")
    capture = PretendedCapture()
    pretend(capture)
    replayed = train(corpus, tmp_path / "replayed", **EXACT, cuda_graphs=True)
    assert is_padded(replayed) == [True]
    assert 1 <= len(capture.captured) <= graphs.MAX_GRAPHS
    # 18 micro-batches, a plain one for the log of step 1, at most one plain per shape.
    num_replays = capture.num_replays - 3  # of the check
    assert num_replays >= 18 - 1 - 2 * len(capture.captured)
    assert_close(tmp_path / "replayed", tmp_path / "plain")


@pytest.mark.parametrize(("failing", "expected"), [(0, [True, False]), (1, [True])])
def test_a_failed_capture_falls_back_to_eager_micro_steps_with_a_warning(
    corpus: PackedCorpus,
    tmp_path: Path,
    pretend: Callable[[PretendedCapture], None],
    caplog: pytest.LogCaptureFixture,
    failing: int,
    expected: list[bool],
) -> None:
    """The first capture belongs to the check; the second one happens during training."""
    train(corpus, tmp_path / "plain", **EXACT)
    pretend(PretendedCapture(failing))
    logging.getLogger("higgs_pipe").propagate = True
    with caplog.at_level(logging.WARNING, logger="higgs_pipe"):
        metrics = train(corpus, tmp_path / "failed", **EXACT, cuda_graphs=True)
    assert is_padded(metrics) == expected
    assert "without CUDA graphs: operation not permitted" in caplog.text
    assert "line 7" not in caplog.text
    assert_close(tmp_path / "failed", tmp_path / "plain")


def test_no_capture_is_retried_after_a_failed_one(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for the smaller plan after memory ran out: the allocator may be in a bad state."""
    capture = PretendedCapture(failing=1)
    pretend_to_capture(monkeypatch, capture)
    run_out_of_memory_once(monkeypatch, step=5)
    metrics = train(corpus, tmp_path, **EXACT | {"max_steps": 8}, cuda_graphs=True)
    assert is_padded(metrics) == [True, True]
    assert capture.num_tried == 2


@pytest.mark.parametrize("fault", ["old inputs", "old bounds", "no gradient"])
def test_a_graph_that_computes_a_different_result_is_not_used(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: Callable[[PretendedCapture], None],
    fault: str,
) -> None:
    pretend(PretendedCapture())
    if fault == "old inputs":  # as if an address had been baked in
        monkeypatch.setattr(PackedBatch, "tensors", lambda _: [])
    elif fault == "old bounds":
        monkeypatch.setattr(packed_body, "packed_attention", packed_attention)
    else:
        micro_step = Planner._micro_step
        calls: list[int] = []

        def without_gradient(self: Planner, *inputs: Any) -> torch.Tensor:
            loss = micro_step(self, *inputs)
            calls.append(1)
            if len(calls) == 3:  # plain, seen, then the first replay
                self.state.clear_gradients()
            return loss

        monkeypatch.setattr(Planner, "_micro_step", without_gradient)
    metrics = train(corpus, tmp_path, **EXACT | {"max_steps": 1}, cuda_graphs=True)
    assert is_padded(metrics) == [True, False]


def test_a_graph_that_exceeds_memory_is_not_used(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: Callable[[PretendedCapture], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend(PretendedCapture())
    micro_step = Planner._micro_step
    calls: list[int] = []

    def in_little_memory(self: Planner, *inputs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:  # after the plain one
            raise torch.OutOfMemoryError("pretended")
        return micro_step(self, *inputs)

    monkeypatch.setattr(Planner, "_micro_step", in_little_memory)
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    metrics = train(corpus, tmp_path, **EXACT | {"max_steps": 1}, cuda_graphs=True)
    assert is_padded(metrics) == [True, False]
    assert "memory does not suffice for a graph" in caplog.text


def test_the_number_of_captured_graphs_is_limited(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: Callable[[PretendedCapture], None],
) -> None:
    capture = PretendedCapture()
    pretend(capture)
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 1)
    train(corpus, tmp_path / "one", **EXACT | {"max_steps": 4}, cuda_graphs=True)
    assert len(capture.captured) == 1


@pytest.mark.parametrize(
    ("rows", "flops", "num_processes", "expected"),
    [
        (1, 790e12, 1, True),
        (1, 790e12, 2, False),
        (1, 790e9, 1, False),  # a slow card, which the host keeps busy
        (3, 790e12, 1, False),  # which do not fit
    ],
)
def test_auto_uses_graphs_for_small_micro_batches_of_one_process(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: Callable[[PretendedCapture], None],
    rows: int,
    flops: float,
    num_processes: int,
    expected: bool,
) -> None:
    pretend(PretendedCapture())
    card = PretendedCard(4e9 if rows == 1 else 0.9e9)
    monkeypatch.setattr(card, "flops", lambda: flops)
    monkeypatch.setattr(planner, "card_of", lambda _: card)
    will_graph = Planner._will_graph

    def among(self: Planner, *choices: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(type(self.accelerator), "num_processes", num_processes)
            return will_graph(self, *choices)

    monkeypatch.setattr(Planner, "_will_graph", among)
    settings = EXACT | {"max_steps": 1, "rows_per_micro_batch": rows, "gradient_checkpointing": 0}
    assert is_padded(train(corpus, tmp_path, **settings)) == [expected]


@pytest.mark.parametrize(("setting", "num_processes"), [("auto", 1), ("auto", 2), (True, 2)])
def test_a_run_resumed_with_more_processes_decides_on_graphs_again(
    setting: Any, num_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "card_of", lambda _: None)
    parts: Any = SimpleNamespace
    accelerator = parts(num_processes=num_processes, device=torch.device("cpu"))
    state = parts(plan=Plan(1, 0, is_compiled=False, is_padded=True), progress=parts(step=3))
    followed: list[bool] = []
    inputs = parts(rows_per_process=4, follow=lambda _, is_padded: followed.append(is_padded))
    resumed = Planner(parts(), TrainConfig(cuda_graphs=setting), inputs, state, accelerator)
    resumed.can_capture = False
    monkeypatch.setattr(resumed, "_compile", lambda _: False)
    resumed.plan(lambda *_: None)
    assert followed == [setting is True or num_processes == 1]


def test_rows_per_micro_batch_beyond_a_step_is_capped_at_the_step(
    corpus: PackedCorpus, tmp_path: Path, pretend: Callable[[PretendedCapture], None]
) -> None:
    pretend(PretendedCapture())
    settings = EXACT | {"max_steps": 2, "rows_per_micro_batch": 64}
    train(corpus, tmp_path / "plain", **settings, cuda_graphs=False)
    metrics = train(corpus, tmp_path / "replayed", **settings, cuda_graphs=True)
    assert is_padded(metrics) == [True]
    assert_close(tmp_path / "replayed", tmp_path / "plain")


def test_on_a_cpu_auto_pads_nothing(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings = EXACT | {"max_steps": 1}
    assert is_padded(train(corpus, tmp_path, **settings, cuda_graphs="auto")) == [False]
