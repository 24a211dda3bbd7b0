"""A pretended GPU for training on a CPU: its memory, its graphs and their failures."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from higgs_pipe.higgs import packed_body
from higgs_pipe.higgs.attention import SampleBounds, packed_attention
from higgs_pipe.training import planner
from higgs_pipe.training.step import Stepper


class PretendedCard:
    """A card with this many free bytes and this peak in a probe."""

    def __init__(self, num_bytes: float, peak: float | None = 0.3e9) -> None:
        self.num_bytes = num_bytes
        self.peak = peak

    def available_bytes(self) -> float:
        return self.num_bytes

    def flops(self) -> float:
        return 790e12

    def peak_bytes(self, work: Callable[[], Any]) -> float | None:
        work()
        return self.peak


class Repeated:
    """In place of a CUDA graph: capturing runs nothing, a replay runs the function."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        self.function()


class PretendedCapture:
    """Records what it captures, and fails at the given capture."""

    def __init__(self, failing: int | None = None) -> None:
        self.captured: list[Repeated] = []
        self.failing = failing
        self.num_tried = 0

    def __call__(self, function: Callable[[], Any]) -> Repeated:
        self.num_tried += 1
        if len(self.captured) == self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nat line 7")
        self.captured.append(Repeated(function))
        return self.captured[-1]

    @property
    def num_replays(self) -> int:
        return sum(each.num_replays for each in self.captured)


def pretend_to_capture(patch: pytest.MonkeyPatch, capture: PretendedCapture) -> None:
    """Lets a CPU capture: attention takes the bounds of samples from a tensor, as on CUDA."""

    def attention(q: Any, k: Any, v: Any, samples: SampleBounds, dropout: float) -> torch.Tensor:
        lengths = tuple(length for length in samples.offsets.diff().tolist() if length)
        return packed_attention(q, k, v, samples._replace(lengths=lengths), dropout)

    patch.setattr(planner, "obstacle_to_graphs", lambda *_: None)
    patch.setattr(planner, "make_capture", lambda: capture)
    patch.setattr(packed_body, "packed_attention", attention)


def trace_only(patch: pytest.MonkeyPatch, backend: Any = "eager") -> None:
    """Makes ``torch.compile`` trace everything and compile nothing: seconds, not minutes."""
    torch._dynamo.reset()
    patch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def run_out_of_memory_once(patch: pytest.MonkeyPatch, step: int) -> None:
    """Lets the last process's first micro-batch of this step run out of memory, once."""
    micro_step = Stepper._micro_step
    failed: list[int] = []

    def limited(self: Stepper, *args: Any) -> Any:
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        if rank == num_processes - 1 and self.state.progress.step + 1 == step and not failed:
            failed.append(step)
            raise torch.OutOfMemoryError("pretended")
        return micro_step(self, *args)

    patch.setattr(Stepper, "_micro_step", limited)


def pretend_a_gpu(patch: pytest.MonkeyPatch) -> PretendedCapture:
    """A large card that compiles, captures, and runs out of memory once, in step 2."""
    capture = PretendedCapture()
    patch.setattr(planner, "card_of", lambda _: PretendedCard(4e9))
    pretend_to_capture(patch, capture)
    trace_only(patch)
    run_out_of_memory_once(patch, step=2)
    return capture
