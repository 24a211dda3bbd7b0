"""Micro-steps replayed as CUDA graphs: the host launches one graph instead of every kernel.

A graph repeats the kernels of its capture with their addresses and sizes, so it serves one shape of
micro-batch (:mod:`higgs_pipe.higgs.padding`), reads its batch from tensors at fixed addresses, and
adds to gradients at fixed addresses. Graphs share one pool of memory: each is done with it before
the next begins.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from higgs_pipe.higgs.attention import has_varlen
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.training.state import TrainingState

logger = logging.getLogger("higgs_pipe")

MAX_GRAPHS = 24
# Relative, of loss sums and of the norm of all gradients. Atomic additions make a backward pass in
# bfloat16 differ from itself.
TOLERANCE = 0.02

# Adds the gradients of a batch on the device, given the weights of its labels; returns its loss
# sums, (2 + K,) float64.
MicroStep: TypeAlias = Callable[[PackedBatch, Tensor], Tensor]


class Replay(Protocol):
    """A captured function without arguments; its result is in the tensor made at capture."""

    def replay(self) -> None:
        """Run it again."""


class Capture(Protocol):
    """Captures functions without running them; tests can simulate this."""

    def __call__(self, function: Callable[[], Any]) -> Replay:
        """Capture ``function``."""


class CudaCapture:
    """Captures CUDA graphs that share a pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> Replay:
        """Capture the kernels of ``function``, while other threads may use the device."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                function()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails would leave PyTorch in its own
        return graph


def make_capture() -> Capture:
    """Return the capture for this machine."""
    return CudaCapture()


class Graph:
    """The micro-step of one shape."""

    def __init__(
        self, micro_step: MicroStep, capture: Capture, batch: PackedBatch, weights: Tensor
    ) -> None:
        self.batch, self.weights = batch.clone(), weights.clone()
        self.loss = torch.zeros_like(weights)
        self.captured = capture(lambda: self.loss.copy_(micro_step(self.batch, self.weights)))

    def __call__(self, batch: PackedBatch, weights: Tensor) -> Tensor:
        """Do the micro-step of a batch of this shape, from the device or page-locked memory."""
        for mine, given in zip(self.batch.tensors(), batch.tensors(), strict=True):
            mine.copy_(given, non_blocking=True)
        self.weights.copy_(weights)
        self.captured.replay()
        return self.loss.clone()


class Graphs:
    """Micro-steps by graphs: at most ``MAX_GRAPHS``, for the first shapes that occur twice.

    The first batch of a shape is computed without a graph, which compiles and loads what a capture
    cannot. If a capture fails, training continues without graphs.

    Args:
        micro_step: The function to capture.
        capture: Captures it.
        device: The model's.
    """

    def __init__(self, micro_step: MicroStep, capture: Capture, device: torch.device) -> None:
        self.micro_step = micro_step
        self.capture = capture
        self.device = device
        self.graphs: dict[Hashable, Graph] = {}
        self.seen: set[Hashable] = set()
        self.fault: str | None = None

    def __call__(self, batch: PackedBatch, weights: Tensor) -> Tensor:
        """Do the micro-step of a padded batch, which may still be on the CPU."""
        shape = batch.layout.num_text, *(tensor.shape for tensor in batch.tensors())
        is_new = shape not in self.graphs and len(self.graphs) < MAX_GRAPHS
        if is_new and shape in self.seen and self.fault is None:
            self._capture(shape, batch.to(self.device), weights)
        self.seen.add(shape)
        graph = self.graphs.get(shape)
        if graph is not None:
            return graph(batch, weights)
        return self.micro_step(batch.to(self.device), weights)

    def _capture(self, shape: Hashable, batch: PackedBatch, weights: Tensor) -> None:
        try:
            self.graphs[shape] = Graph(self.micro_step, self.capture, batch, weights)
        except RuntimeError as error:  # of the kernel or library that cannot be captured
            self.fault = str(error).partition("\n")[0]
            self.graphs.clear()
            logger.warning("training continues without CUDA graphs: %s", self.fault)


def obstacle_to_graphs(model: DualLossModel, device: torch.device) -> str | None:
    """Return a known reason why micro-steps cannot be captured, or None."""
    if device.type != "cuda":
        return f"a {device.type} has none"
    body = model.body
    attention = body.layers[0].self_attn
    if attention.attention_dropout > 0 or not has_varlen(
        device, body.norm.weight.dtype, attention.head_dim
    ):
        return "attention is one call per sample here"
    return None


def difference_of_graphs(
    graphs: Graphs, state: TrainingState, batch: PackedBatch, weights: Tensor
) -> str | None:
    """Return what is wrong with a replayed micro-step, or None: it is compared with a plain one.

    Gradients are zero before and after.

    Args:
        graphs: The graphs, none captured yet.
        state: The state; micro-steps add to its gradients.
        batch: A padded batch, on the device.
        weights: The weights of its labels.
    """
    other = _changed(batch)  # shows whether a replay reads its own batch
    try:
        for each, its_weights in ((batch, weights), (other, 2 * weights)):
            plain = _result(graphs.micro_step, state, each, its_weights)
            for _ in range(2):  # seen, then captured; both replayed
                replayed = _result(graphs, state, each, its_weights)
            if graphs.fault is not None:
                return graphs.fault
            for name, found, expected in zip(("loss", "gradient"), replayed, plain, strict=True):
                error = ((found - expected).norm() / expected.norm()).item()
                if not error <= TOLERANCE:
                    return f"the {name} of a replayed micro-step is off by {error:.1%}"
    except torch.OutOfMemoryError:
        return "memory does not suffice for a graph in addition to a plain micro-step"
    finally:
        state.clear_gradients()
    return None


def _changed(batch: PackedBatch) -> PackedBatch:
    """Return a batch of the same shape with other frames, and another end of its first sample."""
    samples = batch.layout.samples
    first, second, *others = samples.lengths
    moved = -1 if first > second else 1
    offsets = samples.offsets.clone()
    offsets[1] += moved
    samples = samples._replace(lengths=(first + moved, second - moved, *others), offsets=offsets)
    return replace(
        batch,
        audio_input_ids=batch.audio_input_ids.roll(1, dims=1),
        layout=batch.layout._replace(samples=samples),
    )


def _result(
    micro_step: MicroStep, state: TrainingState, batch: PackedBatch, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss sums (2 + K,) and all gradients in one row, float64."""
    state.clear_gradients()
    loss = micro_step(batch, weights)
    gradients = [parameter.grad.flatten().double() for parameter in state.parameters]  # type: ignore[union-attr]
    return loss, torch.cat(gradients)
