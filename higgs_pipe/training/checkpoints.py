"""Training checkpoints: complete or absent, and never resumed by a run of another identity."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from higgs_pipe.config.stages import TrainStage
from higgs_pipe.data.files import atomic_write
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import Ancestor
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.training.processes import from_main_process

logger = logging.getLogger("higgs_pipe")

State = dict[str, Any]

FILE_NAME = re.compile(r"step-(\d{8})\.pt")
LEFT_BEHIND = ".step-*.tmp"  # by a kill while one was written
SET_ASIDE = "set-aside"
BLOCK_BYTES = 2**20
TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter|inline_container|iostream")
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, UnpicklingError)
# Settings of launch and log, which do not change the result.
LAUNCH = {"num_processes", "num_machines", "main_process_ip", "main_process_port", "device"}
LAUNCH |= {"accelerate_config", "timeout_seconds"}
OF_ITS_OWN = {"init_adapter"}  # known by its weights
LOG = {"log_steps", "save_steps", "save_total_limit", "tracker", "preflight", "stop_on_alarm"}
# These change it only where the samples decide which adapter is kept.
SAMPLES = {"sample_steps", "num_samples", "sampling"}


class Checkpoints:
    """The checkpoints of one run, each a file.

    Args:
        directory: Their folder; made with the first checkpoint.
        identity: Everything that decides the result of the run (settings, hashes of the data). A
            checkpoint with another identity is set aside, never resumed.
        total_limit: Number of newest checkpoints to keep.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], total_limit: int) -> None:
        self.directory = directory
        self.identity = identity
        self.total_limit = total_limit

    def save(self, step: int, state: State) -> None:
        """Write atomically and sync to disk; then drop the checkpoints beyond the limit.

        Raises:
            UserError: The file cannot be written; earlier checkpoints are unchanged.
        """
        path = self._path(step)
        with write_errors_named(path), atomic_write(path) as aside:
            torch.save({"identity": self.identity, "state": state}, aside)
            digest = bytes.fromhex(sha256_of_file(aside))
            with aside.open("ab") as stream:
                stream.write(digest)
        for path in self._newest_first()[self.total_limit :]:
            path.unlink()

    def load_latest(self) -> State | None:
        """Return the state of this run's newest checkpoint, or None.

        A damaged file is skipped and the one before used; checkpoints of another run are set
        aside. The log names the files and reasons.
        """
        for path in self.directory.glob(LEFT_BEHIND):
            path.unlink()
        for path in self._newest_first():
            try:
                saved = _load(path)
            except DAMAGED as error:
                reason = type(error).__name__
                logger.warning("%s is damaged (%s); using the one before", path, reason)
                continue
            if saved["identity"] != self.identity:
                self._set_aside(self._differences(saved["identity"]))
                return None
            return cast(State, saved["state"])
        return None

    def load(self, step: int) -> State:
        """Return the state of the checkpoint that process 0 found to be this run's newest.

        Raises:
            UserError: This process cannot read it.
        """
        path = self._path(step)
        try:
            return cast(State, _load(path)["state"])
        except DAMAGED as error:
            raise UserError(
                f"{path}: process 0 can read this checkpoint, another process cannot ({error}). "
                "All machines of a training need the same folders."
            ) from None

    def clear(self) -> None:
        """Remove the checkpoints of this run, which is complete."""
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
            "the checkpoints belong to a run with other %s; they are moved to %s and training "
            "starts over",
            ", ".join(differences),
            aside,
        )

    def _differences(self, other: dict[str, Any]) -> list[str]:
        keys = sorted({*self.identity, *other})
        return [key for key in keys if self.identity.get(key) != other.get(key)]


def _load(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: ``identity`` and ``state``.

    Raises:
        ValueError: Its bytes are not those that were written, by the hash in the last 32 bytes.
        DAMAGED: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        left = path.stat().st_size - digest.digest_size
        while left > 0 and (block := stream.read(min(left, BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
        if stream.read() != digest.digest():
            raise ValueError("changed since it was written")
    return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))


@contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path``, such as a full disk, into a message.

    Raises:
        UserError: Instead of the writer's own error.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not TORCH_CANNOT_WRITE.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be written ({reason}). Is the disk full? Free space and run snakemake "
            "again: training resumes from its last checkpoint, which is intact."
        ) from error


def run_identity(
    stage: TrainStage,
    base: PinnedModel,
    train_rows: Path,
    eval_rows: Path,
    accelerator: Accelerator,
    ancestor: Ancestor | None = None,
) -> dict[str, str]:
    """Return what determines the result of a run, on every process; the main process hashes.

    An earlier adapter that it continues from counts by its weights, not by its folder.

    Raises:
        UserError: This process sees other tables than the main process.
    """
    sizes = [path.stat().st_size for path in (train_rows, eval_rows)]
    settings = stage.model_dump(mode="json", by_alias=True)
    samples = SAMPLES if stage.train.keep_best_by == "eval_loss" else set()
    neutral = LAUNCH | LOG | OF_ITS_OWN | samples
    settings["train"] = {k: v for k, v in settings["train"].items() if k not in neutral}
    identity: dict[str, str] = {}
    if accelerator.is_main_process:
        identity = {
            "settings": json.dumps(settings),
            "base weights": base.fingerprint,
            "base config": base.config_fingerprint,
            "training rows": sha256_of_file(train_rows),
            "held-out rows": sha256_of_file(eval_rows),
        }
        if ancestor is not None:
            identity["earlier adapter"] = ancestor.fingerprint
    identity, sizes_of_main = from_main_process((identity, sizes))
    if sizes != sizes_of_main:
        raise UserError(
            f"{train_rows} and {eval_rows} hold {sizes} bytes for process "
            f"{accelerator.process_index}, {sizes_of_main} for process 0. All machines of a "
            "training need the same folders."
        )
    return identity
