"""How a launch ends: its last message and exit code."""

import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import LostProcessError, SilentProcessError, UserError
from higgs_pipe.higgs.devices import pick_device
from higgs_pipe.training.launch import cause, main, port_fault
from higgs_pipe.training.processes import (
    caught_signals,
    lost_process_named,
    make_accelerator,
)


@pytest.fixture
def failure(tmp_path: Path) -> Any:
    """A torchrun ``ProcessFailure`` as far as we read it."""

    def make(rank: int, exitcode: int, message: str = "", kind: str = "UserError") -> Any:
        error_file = tmp_path / str(rank) / "error.json"
        if message:
            error_file.parent.mkdir(exist_ok=True)
            error_file.write_text(json.dumps({"message": message, "kind": kind}))
        return SimpleNamespace(local_rank=rank, exitcode=exitcode, error_file=str(error_file))

    return make


def test_a_message_of_the_first_process_is_not_repeated(failure: Any) -> None:
    nan = [failure(rank, 2, "loss is nan") for rank in (0, 1)]
    assert cause(dict(enumerate(nan))) == ("", 2)
    assert cause({1: nan[1]}) == ("", 2)


def test_the_cause_from_another_process_is_shown(failure: Any) -> None:
    lost = failure(0, 2, "another process ended", kind="LostProcessError")
    full = failure(1, 2, "the disk is full")
    assert cause({0: lost, 1: full}) == ("the disk is full", 2)


def test_a_killed_process_is_named_rather_than_those_waiting_for_it(failure: Any) -> None:
    lost = failure(0, 2, "another process ended", kind="LostProcessError")
    sentence, exit_code = cause({0: lost, 1: failure(1, -9)})
    assert "SIGKILL" in sentence
    assert "process 1" in sentence
    assert exit_code == 128 + 9


@pytest.mark.parametrize("exit_code", [-15, 143])
def test_a_process_that_torchrun_ended_does_not_hide_the_killed_one(
    failure: Any, exit_code: int
) -> None:
    """Its SIGTERM may come before the process has said that it lost its peer."""
    sentence, code = cause({1: failure(1, -9), 0: failure(0, exit_code)})
    assert "SIGKILL" in sentence
    assert "process 1" in sentence
    assert code == 128 + 9


def test_a_sigterm_that_came_first_is_the_cause(failure: Any) -> None:
    lost = failure(0, 2, "another process ended", kind="LostProcessError")
    sentence, code = cause({1: failure(1, -15), 0: lost})
    assert "SIGTERM" in sentence
    assert "process 1" in sentence
    assert code == 143


def test_a_hung_process_is_not_reported_as_killed(failure: Any) -> None:
    """Torchrun kills the hung process in the end; the one that waited for it knows the cause."""
    silent = failure(1, 2, "no answer for 10 s", kind="SilentProcessError")
    assert cause({0: failure(0, -9), 1: silent}) == ("no answer for 10 s", 2)


def test_bugs_and_signals_keep_their_exit_code_without_another_message(failure: Any) -> None:
    assert cause({1: failure(1, 1)}) == ("", 1)
    assert cause({0: failure(0, 143), 1: failure(1, 143)}) == ("", 143)


def test_a_signal_received_twice_at_once_counts_once() -> None:
    """As from Slurm, and passed on by the launcher."""
    with caught_signals() as caught:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert caught == [signal.SIGTERM, signal.SIGTERM]


def test_signal_handlers_are_restored_and_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for handler in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGHUP, handler)
            others = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            with caught_signals():
                assert (signal.getsignal(signal.SIGHUP) == handler) == (handler == signal.SIG_IGN)
            assert signal.getsignal(signal.SIGHUP) == handler
            assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == others
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("num_processes", "message", "kind"),
    [
        (1, "gloo: Connection closed by peer", RuntimeError),
        (2, "gloo: Connection closed by peer", LostProcessError),
        (2, "NCCL: Timed out", SilentProcessError),
        (2, "shapes differ", RuntimeError),
    ],
)
def test_a_failed_collective_tells_a_lost_process_from_a_silent_one(
    num_processes: int, message: str, kind: type[Exception]
) -> None:
    accelerator: Any = SimpleNamespace(num_processes=num_processes)
    with pytest.raises(kind) as raised, lost_process_named(accelerator, 7.5):
        raise RuntimeError(message)
    assert raised.type is kind
    assert ("7.5 s" in str(raised.value)) == (kind is SilentProcessError)


def test_a_second_signal_later_on_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_pipe.training.processes.SAME_SIGNAL_SECONDS", -1.0)
    # A shell starts what runs in its background with SIGINT ignored, and so may these tests.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with caught_signals() as caught:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launch_that_shards_the_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=f"{kind}.*MULTI_GPU or 'NO'"):
        make_accelerator(TrainConfig(), tmp_path)


def test_mixed_precision_is_refused_in_favour_of_train_dtype(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match=r"bf16.*train\.dtype.*mixed_precision: 'no'"):
        make_accelerator(TrainConfig(), tmp_path)


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_a_user_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tracker: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"pip install {tracker}"):
        make_accelerator(TrainConfig(tracker=tracker), tmp_path)


def test_a_port_in_use_is_named_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))  # the launcher marks its own
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("higgs_pipe.planning.process_tree.end_with", lambda _: None)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        words = ["--config_file", str(ROOT / "workflow/accelerate.yaml"), "--multi_gpu"]
        words += ["--num_processes", "2", "--main_process_port", str(port), "-m", "no.such.module"]
        assert main(words) == 2
        assert f"train.main_process_port: {port} " in capsys.readouterr().err
        assert port_fault(port, machine_rank=1) is None  # that of another machine
    assert port_fault(port, machine_rank=0) is None
    assert port_fault(0, machine_rank=0) is None


@pytest.mark.parametrize(("num_gpus", "is_refused"), [(1, True), (2, False)])
def test_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, is_refused: bool
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert pick_device("cpu").type == "cpu"
    if not is_refused:
        assert pick_device("auto").type == "cuda"
        return
    with pytest.raises(UserError, match=r"2 processes .* 1 GPU\."):
        pick_device("auto")
