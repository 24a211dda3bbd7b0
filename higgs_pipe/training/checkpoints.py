"""Training checkpoints: whole or absent, and never resumed by a run that they do not belong to."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from higgs_pipe.data.files import atomic_write
from higgs_pipe.errors import UserError

logger = logging.getLogger("higgs_pipe")

FILE_NAME = re.compile(r"step-(\d{8})\.pt")
LEFT_BEHIND = ".step-*.tmp"  # by a kill while one was written
SET_ASIDE = "set-aside"
TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter|inline_container|iostream")
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, UnpicklingError)

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run of training, one file a checkpoint.

    Args:
        directory: Where they lie; made when the first one is saved.
        identity: What decides the result of the run (settings, hashes of the data). A checkpoint
            with another identity is set aside, never resumed.
        total_limit: How many of the newest are kept.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], total_limit: int) -> None:
        self.directory = directory
        self.identity = identity
        self.total_limit = total_limit

    def save(self, step: int, state: State) -> None:
        """Write aside, sync to disk, rename; then drop what exceeds the limit.

        Raises:
            UserError: The disk does not take it; the checkpoints before are as they were.
        """
        path = self._path(step)
        with write_errors_named(path), atomic_write(path) as aside:
            torch.save({"identity": self.identity, "state": state}, aside)
        for path in self._newest_first()[self.total_limit :]:
            path.unlink()

    def load_latest(self) -> State | None:
        """The newest checkpoint of this run, or None.

        A damaged file is passed over and the one before is used; checkpoints of another run are
        set aside; the log says which and why.
        """
        for path in self.directory.glob(LEFT_BEHIND):
            path.unlink()
        for path in self._newest_first():
            try:
                saved = torch.load(path, map_location="cpu", weights_only=True)
            except DAMAGED as error:
                reason = type(error).__name__
                logger.warning("%s is damaged (%s); using the one before", path, reason)
                continue
            if saved["identity"] != self.identity:
                self._set_aside(self._differences(saved["identity"]))
                return None
            state: State = saved["state"]
            return state
        return None

    def load(self, step: int) -> State:
        """The checkpoint that another process found to be the newest of this run.

        Raises:
            UserError: This process cannot read it.
        """
        path = self._path(step)
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)["state"]
        except DAMAGED as error:
            raise UserError(
                f"{path}: process 0 can read this checkpoint, another process cannot ({error}). "
                "All machines of a training need the same folders."
            ) from None
        return state

    def clear(self) -> None:
        """Remove this run's checkpoints: it is complete."""
        for path in self._newest_first():
            path.unlink()

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.pt"

    def _newest_first(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        names = (path for path in self.directory.iterdir() if FILE_NAME.fullmatch(path.name))
        return sorted(names, reverse=True)

    def _set_aside(self, differences: list[str]) -> None:
        aside = self.directory / SET_ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in self._newest_first():
            path.rename(aside / path.name)
        logger.warning(
            "the checkpoints are of a run with other %s; they are set aside in %s and training "
            "starts anew",
            ", ".join(differences),
            aside,
        )

    def _differences(self, other: dict[str, Any]) -> list[str]:
        keys = sorted({*self.identity, *other})
        return [key for key in keys if self.identity.get(key) != other.get(key)]


@contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """A full disk, or another reason not to write ``path``, becomes a sentence.

    Raises:
        UserError: In place of the writer's own error.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not TORCH_CANNOT_WRITE.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be written ({reason}). Is the disk full? Make room and run snakemake "
            "again: training goes on from its last checkpoint, which is good."
        ) from error
