"""Speed and time per phase, measured with a manual clock."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from higgs_pipe.training.telemetry import Telemetry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 100.0

    monkeypatch.setattr("higgs_pipe.training.telemetry.time.perf_counter", lambda: Clock.now)
    return Clock


def step(measured: Telemetry, clock: Any, **seconds: float) -> None:
    phase: Any
    with measured.step():
        for phase, spent in seconds.items():
            with measured.phase(phase):
                clock.now += spent
        clock.now += 0.5  # between the phases


def test_rates_and_shares_cover_the_steps_since_the_last_line(clock: Any) -> None:
    measured = Telemetry(torch.device("cpu"), longest_row=1000, frame_rate_hz=25)
    step(measured, clock, data=9, forward=9, backward=9, optimizer=9)
    measured.count(num_rows=9, num_tokens=9, num_frames=9)
    measured.line()

    clock.now += 1000  # an evaluation: no part of a step
    step(measured, clock, data=0.5, forward=2, backward=3, optimizer=1)
    step(measured, clock, data=0.5, forward=4, backward=5, optimizer=2)
    measured.count(num_rows=2, num_tokens=1700, num_frames=950)
    measured.count(num_rows=2, num_tokens=1900, num_frames=950)
    line = measured.line()
    assert line.pop("peak_memory_gb") > 0.01
    assert line == {
        "step_seconds": 9.5,
        "data_seconds": 0.5,
        "forward_seconds": 3.0,
        "backward_seconds": 4.0,
        "optimizer_seconds": 1.5,
        "tokens_per_second": 3600 / 19,
        "audio_seconds_per_second": 1900 / 25 / 19,
        "fill": 0.9,
    }


def test_gpu_milliseconds_are_logged_as_seconds(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Event:
        def elapsed_time(self, _: "Event") -> float:
            return 1500.0

    measured = Telemetry(torch.device("cpu"), longest_row=512, frame_rate_hz=25)
    monkeypatch.setattr(measured, "_mark", lambda on_device: Event())
    step(measured, clock, forward=2)
    measured.count(num_rows=1, num_tokens=512, num_frames=100)
    assert measured.line()["forward_seconds"] == 1.5


def test_phase_times_of_micro_batches_add_up_within_a_step(clock: Any) -> None:
    measured = Telemetry(torch.device("cpu"), longest_row=1, frame_rate_hz=25)
    with measured.step():
        for _ in range(3):
            with measured.phase("forward"):
                clock.now += 2
    measured.count(1, 1, 1)
    assert measured.line()["forward_seconds"] == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_the_forward_phase_takes_measurable_time() -> None:
    measured = Telemetry(torch.device("cuda"), longest_row=1, frame_rate_hz=25)
    matrix = torch.zeros(4096, 4096, device="cuda")
    with measured.step(), measured.phase("forward"):
        for _ in range(20):
            matrix @ matrix
    measured.count(1, 1, 1)
    assert measured.line()["forward_seconds"] > 0


def test_peak_memory_on_a_cpu_is_the_peak_resident_set_in_gb(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(ru_maxrss=2_000_000)  # KiB, on Linux
    monkeypatch.setattr("higgs_pipe.training.telemetry.resource.getrusage", lambda _: usage)
    measured = Telemetry(torch.device("cpu"), longest_row=1, frame_rate_hz=25)
    step(measured, clock, forward=2)
    measured.count(1, 1, 1)
    assert measured.line()["peak_memory_gb"] == pytest.approx(2.048)
