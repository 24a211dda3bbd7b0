"""The lock of a training folder: if the main process cannot acquire it, every process ends."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from higgs_pipe.errors import UserError
from higgs_pipe.training import lock


def enter(folder: Path, is_main_process: bool) -> None:
    process: Any = SimpleNamespace(is_main_process=is_main_process)
    with lock.only_training_in(folder, process):
        pytest.fail("it trains")


def without_flock(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr("higgs_pipe.training.lock.fcntl.flock", refuse)


def in_place_of_a_folder(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.write_text("")


@pytest.mark.parametrize("broken", [without_flock, in_place_of_a_folder])
def test_a_lock_that_cannot_be_acquired_ends_every_process_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., None]
) -> None:
    sent: list[str] = []

    def broadcast(value: str) -> str:
        sent.append(value)
        return value

    monkeypatch.setattr(lock, "from_main_process", broadcast)
    broken(tmp_path / "out", monkeypatch)
    with pytest.raises(UserError, match=r"out/\.lock cannot be written \("):
        enter(tmp_path / "out", is_main_process=True)
    monkeypatch.setattr(lock, "from_main_process", lambda _: sent[0])
    with pytest.raises(UserError, match=r"out/\.lock cannot be written \("):
        enter(tmp_path / "out", is_main_process=False)
