"""Training checkpoints: whole or absent, and never resumed by a run that they do not belong to."""

import logging
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from higgs_pipe.data.files import written_aside

logger = logging.getLogger("higgs_pipe")

FILE_NAME = re.compile(r"step-(\d{8})\.pt")
SET_ASIDE = "set-aside"

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
        """Write aside, sync to disk, rename; then drop what exceeds the limit."""
        with written_aside(self.directory / f"step-{step:08d}.pt") as aside:
            torch.save({"identity": self.identity, "state": state}, aside)
        for path in self._newest_first()[self.total_limit :]:
            path.unlink()

    def load_latest(self) -> State | None:
        """The newest checkpoint of this run, or None.

        A damaged file is passed over and the one before is used; checkpoints of another run are
        set aside; the log says which and why.
        """
        for path in self._newest_first():
            try:
                saved = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, OSError, ValueError, UnpicklingError) as error:
                reason = type(error).__name__
                logger.warning("%s is damaged (%s); using the one before", path, reason)
                continue
            if saved["identity"] != self.identity:
                self._set_aside(self._differences(saved["identity"]))
                return None
            state: State = saved["state"]
            return state
        return None

    def clear(self) -> None:
        """Remove this run's checkpoints: it is complete."""
        for path in self._newest_first():
            path.unlink()

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
