"""Training speed, and where the time goes."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Phase = Literal["data", "forward", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer")


class Telemetry:
    """Time and throughput of the steps since the last line, on this process.

    On CUDA, events mark the phases without making the host wait; :meth:`line` reads them.
    ``data`` is the host's wait for the input.

    Args:
        device: The model's.
        longest_row: Positions of the longest packed row; ``fill`` is a share of it.
        frame_rate_hz: Codec frames per second.
    """

    def __init__(self, device: torch.device, longest_row: int, frame_rate_hz: float) -> None:
        self.device = device
        self.longest_row = longest_row
        self.frame_rate_hz = frame_rate_hz
        self._restart()

    def _restart(self) -> None:
        self._spans: list[tuple[Phase, Any, Any]] = []
        self._num_steps = self._num_tokens = self._num_rows = self._num_frames = 0
        self._step_seconds = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a whole optimizer step, including its input."""
        start = time.perf_counter()
        yield
        self._step_seconds += time.perf_counter() - start
        self._num_steps += 1

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Measure a part of a step; parts of the same name add up."""
        on_device = self.device.type == "cuda" and phase != "data"
        start = self._mark(on_device)
        yield
        self._spans.append((phase, start, self._mark(on_device)))

    def count(self, num_rows: int, num_tokens: int, num_frames: int) -> None:
        """Add a step's throughput, over all processes.

        Args:
            num_rows: Packed rows.
            num_tokens: Their positions, text and audio.
            num_frames: Codec frames with labels; frames of reference voices have none.
        """
        self._num_rows += num_rows
        self._num_tokens += num_tokens
        self._num_frames += num_frames

    def line(self) -> dict[str, float]:
        """Return the figures of the steps since the last call; seconds are means per step.

        ``fill`` is the mean row's share of the longest row. ``peak_memory_gb`` is this process's
        peak since its start: of GPU memory, or of the resident set on a CPU.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = dict.fromkeys(PHASES, 0.0)
        for phase, start, end in self._spans:
            seconds[phase] += _seconds_between(start, end)
        line = {
            "step_seconds": self._step_seconds / self._num_steps,
            **{f"{phase}_seconds": seconds[phase] / self._num_steps for phase in PHASES},
            "tokens_per_second": self._num_tokens / self._step_seconds,
            "audio_seconds_per_second": self._num_frames / self.frame_rate_hz / self._step_seconds,
            "fill": self._num_tokens / (self._num_rows * self.longest_row),
            "peak_memory_gb": peak_memory_bytes(self.device) / 1e9,
        }
        self._restart()
        return line

    def _mark(self, on_device: bool) -> Any:
        if not on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in PyTorch
        event.record()
        return event


def _seconds_between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1000


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: allocated on its GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
