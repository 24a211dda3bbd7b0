"""Micro-steps captured and replayed as real CUDA graphs."""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
import torch
from pretended_gpu import run_out_of_memory_once
from torch import Tensor
from trainings import PackedCorpus, train

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedBatch, PackedRows
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.padding import Grid
from higgs_pipe.training import graphs
from higgs_pipe.training.graphs import Graphs, make_capture
from higgs_pipe.training.state import TrainingState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

GPU = torch.device("cuda")
SEGMENT_BYTES = 22 * 2**20  # the allocator takes memory from CUDA by 2 or 20 MiB
ON_GPU: dict[str, Any] = {
    "device": "cuda",
    "dtype": "bfloat16",
    "lora": {"dropout": 0.2},
    "preflight": False,
    "rows_per_step": 4,
    "rows_per_micro_batch": 2,
    "max_steps": 6,
    "log_steps": 3,
}


class MicroSteps(NamedTuple):
    """The plain micro-step of a small model, and batches to take it with."""

    plain: Callable[[PackedBatch, Tensor], Tensor]
    state: TrainingState
    batches: list[PackedBatch]  # padded, of several shapes
    weights: Tensor

    def result(self, micro_step: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The loss sums, and all gradients in one row."""
        self.state.clear_gradients()
        loss = micro_step(batch, self.weights)
        gradients = [p.grad.flatten().double() for p in self.state.parameters if p.grad is not None]
        return loss.clone(), torch.cat(gradients)


@pytest.fixture
def micro_steps(corpus: PackedCorpus) -> MicroSteps:
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.bfloat16)
    adapted = add_lora(base, LoraSettings(dropout=0.2), seed=0)
    model = DualLossModel(adapted, recomputed_layers=1).train().to(GPU)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    state = TrainingState(parameters, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    table = PackedRows(corpus.train_rows)
    grid = Grid.of_rows(table.sizes(), 2)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    batches = [grid.collate([table[i], table[j]], model.shape, [i, j]) for i, j in pairs]

    def plain(batch: PackedBatch, weights: Tensor) -> Tensor:
        sums, _ = model(batch.to(GPU), weights, predict=False)
        state.add_gradients(sums.objective)
        loss: Tensor = sums.total().loss.double()
        return loss

    return MicroSteps(plain, state, batches, label_weights(batches[0].label_counts()).to(GPU))


def test_replayed_micro_steps_match_eager_ones_across_updates(
    micro_steps: MicroSteps,
) -> None:
    replayed = Graphs(micro_steps.plain, make_capture(), GPU)
    for batch in 3 * micro_steps.batches:
        pinned = batch.pin_memory()
        pairs = zip(
            micro_steps.result(replayed, pinned),
            micro_steps.result(micro_steps.plain, batch),
            strict=True,
        )
        for found, expected in pairs:
            assert (found - expected).norm() <= 0.02 * expected.norm()
        micro_steps.state.optimizer.step()  # the next replays see other weights
    assert replayed.fault is None
    assert 2 <= len(replayed.graphs) <= graphs.MAX_GRAPHS


def test_graphs_of_several_shapes_share_one_memory_pool(micro_steps: MicroSteps) -> None:
    replayed = Graphs(micro_steps.plain, make_capture(), GPU)
    reserved: list[int] = []
    for batch in micro_steps.batches:
        num_before = len(replayed.graphs)
        for _ in range(2):
            micro_steps.result(replayed, batch)
        if len(replayed.graphs) > num_before:
            reserved.append(torch.cuda.memory_reserved())
    assert len(reserved) >= 4
    of_own_pools = (len(reserved) - 1) * SEGMENT_BYTES  # at least
    assert reserved[-1] - reserved[0] <= of_own_pools / 2


def test_a_step_that_cannot_be_captured_runs_eagerly(
    micro_steps: MicroSteps,
) -> None:
    def waiting(batch: PackedBatch, weights: Tensor) -> Tensor:
        loss = micro_steps.plain(batch, weights)
        loss.sum().item()  # no capture allows it
        return loss

    stream, batch = torch.cuda.current_stream(), micro_steps.batches[0]
    replayed = Graphs(waiting, make_capture(), GPU)
    expected_loss, expected = micro_steps.result(micro_steps.plain, batch)
    for _ in range(3):
        loss, gradients = micro_steps.result(replayed, batch)
        assert (loss - expected_loss).norm() <= 0.02 * expected_loss.norm()
        assert (gradients - expected).norm() <= 0.02 * expected.norm()
    assert replayed.fault is not None
    assert not replayed.graphs
    assert torch.cuda.current_stream() == stream


def test_another_thread_may_pin_memory_during_a_capture(micro_steps: MicroSteps) -> None:
    """The thread that builds the next step's input does this."""

    def beside_a_thread(batch: PackedBatch, weights: Tensor) -> Tensor:
        loss = micro_steps.plain(batch, weights)
        thread = Thread(target=lambda: torch.empty(10**7).pin_memory())
        thread.start()
        thread.join()
        return loss

    replayed = Graphs(beside_a_thread, make_capture(), GPU)
    for _ in range(2):
        micro_steps.result(replayed, micro_steps.batches[0])
    assert replayed.fault is None
    assert len(replayed.graphs) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": 1},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        {"rows_per_micro_batch": "auto", "gradient_checkpointing": "auto"},
    ],
)
@pytest.mark.parametrize("is_short", [False, True])
def test_training_with_graphs_matches_the_losses_of_one_without(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    is_short: bool,
) -> None:
    plain = train(corpus, tmp_path / "plain", **ON_GPU | settings)
    if is_short:
        run_out_of_memory_once(monkeypatch, step=2)
    logging.getLogger("higgs_pipe").propagate = True
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        replayed = train(corpus, tmp_path / "replayed", **ON_GPU | settings, cuda_graphs=True)
    assert "replayed as CUDA graphs; the first equals a plain one" in caplog.text
    assert "without CUDA graphs" not in caplog.text
    found, expected = (
        [line[key] for line in lines for key in ("loss", "eval_loss") if key in line]
        for lines in (replayed, plain)
    )
    assert found == pytest.approx(expected, rel=0.01)


def test_a_graph_that_reads_an_old_batch_is_not_used(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedBatch, "tensors", lambda _: [])
    metrics = train(corpus, tmp_path, **ON_GPU | {"max_steps": 1}, cuda_graphs=True)
    assert [line["is_padded"] for line in metrics if "is_padded" in line] == [True, False]
