"""A lock that lets only one training at a time write into a folder."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator

from higgs_pipe.errors import UserError
from higgs_pipe.training.checkpoints import write_errors_named
from higgs_pipe.training.processes import from_main_process

logger = logging.getLogger("higgs_pipe")

FILE_NAME = ".lock"
# A training whose snakemake was killed ends after its step: worth waiting for.
WAIT_SECONDS = 20.0
POLL_SECONDS = 0.2
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def only_training_in(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a training's folder, which only one training has at a time.

    The main process holds it for all. It is a lock of the operating system, released when the
    process ends, even by ``kill -9``; it works across machines on NFS. The file stays, and names
    the owner of the lock.

    Args:
        output_dir: Folder of the training.
        accelerator: The Accelerator of this process.

    Raises:
        UserError: Another training has it, or it cannot be taken; on every process at once.
    """
    path = output_dir / FILE_NAME
    refusal = ""
    lock: TextIO | None = None
    try:
        if accelerator.is_main_process:
            try:
                with write_errors_named(path):
                    output_dir.mkdir(parents=True, exist_ok=True)
                    lock = path.open("a+", encoding="utf-8")
                    refusal = _acquire(lock, output_dir)
            except UserError as error:
                refusal = str(error)  # the others would wait for it until their timeout
        if refusal := from_main_process(refusal):
            raise UserError(refusal)
        yield
    finally:
        if lock is not None:
            lock.close()


def _acquire(lock: TextIO, folder: Path) -> str:
    """Take the lock and write its owner, or return the error message."""
    deadline = time.monotonic() + WAIT_SECONDS
    is_told = False
    while not _is_taken(lock):
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        if time.monotonic() > deadline:
            return (
                f"{folder}: {owner} trains into this folder. Let it finish, or stop it with "
                "kill, which saves a checkpoint; then run snakemake again."
            )
        if not is_told:
            logger.info("%s: waiting for %s, which trains into this folder", folder, owner)
            is_told = True
        time.sleep(POLL_SECONDS)
    lock.truncate(0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    lock.write(f"process {os.getpid()} on {socket.gethostname()} (since {since})\n")
    lock.flush()
    return ""


def _is_taken(lock: TextIO) -> bool:
    """Take the lock if it is free, and return whether this process may continue."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        logger.warning(
            "%s cannot be locked (%s): a second training into its folder would not be noticed",
            lock.name,
            os.strerror(error.errno),
        )
    return True
