"""Atomic writes: a file is complete or absent; leftovers of killed processes are removed."""

import errno
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError
from higgs_pipe.planning.user_files import KINDS

# Errors of a file that cannot grow: a full disk, a quota, a limit on its size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# .NAME.PID@HOST.tmp, locked by its process; a folder by the file LOCK in it.
TEMPORARY = re.compile(r"\..+\.(?P<process>\d+)(?:@(?P<host>.+))?\.tmp")
LOCK = ".lock"
# Where locks of other machines do not show, their files are left alone for so long.
OTHER_HOST_SECONDS = 24 * 3600.0


def prepare_for(path: Path) -> None:
    """Create the folder of a file that is written later, after long work.

    Raises:
        UserError: ``path`` is a folder or a device, or its own folder cannot be created or written
            to.
    """
    _check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {path.parent} cannot be created ({os.strerror(error.errno or 0)}); "
            "name another one."
        ) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"the folder {path.parent} is read-only; name another one.")


def _check_replaceable(path: Path) -> None:
    """Check that a file may replace what is at a path: /dev/null, once replaced, is gone for all.

    Raises:
        UserError: It is something else than a file.
    """
    kind = stat.S_IFMT(path.stat().st_mode) if path.exists() else stat.S_IFREG
    if kind != stat.S_IFREG:
        raise UserError(f"{path} is {KINDS.get(kind, 'of an unknown kind')}; name a file.")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Raises:
        UserError: ``path`` is a folder or a device.
    """
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with _locked(temporary):
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
    except OSError as error:  # of a write: it does not say to which file
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; it replaces the folder ``path`` if the block succeeds."""
    with temporary_folder(path) as aside:
        folder = aside / path.name
        folder.mkdir()
        yield folder
        _replace_folder(path, folder, aside)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; remove it in the end."""
    folder = _temporary(path)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        with _locked(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace_folder(path: Path, folder: Path, aside: Path) -> None:
    """Rename ``folder`` to ``path``, and anything already there into ``aside``.

    If that fails, what was there stays.
    """
    for number in count():
        before = aside / f"before-{number}"
        with suppress(FileNotFoundError):
            path.rename(before)
        try:
            folder.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(FileNotFoundError):
                    before.rename(path)
                raise
        else:  # no other process has put its own there in between
            return


def _temporary(path: Path) -> Path:
    """Return the path of a temporary file, after removing leftovers of killed processes."""
    clear_left_behind(path.parent)
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")


@functools.cache
def clear_left_behind(folder: Path) -> None:
    """Remove unfinished files of killed processes from a folder, once per process."""
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and _is_left_behind(path, int(match["process"]), match["host"]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_left_behind(path: Path, process: int, host: str | None) -> bool:
    """Return whether the process that wrote a temporary file or folder has ended."""
    is_of_this_host = host == socket.gethostname()
    if is_of_this_host and _is_running(process):  # it may not have locked yet what it has made
        return False
    try:
        with (path / LOCK if path.is_dir() else path).open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            age_seconds = time.time() - os.fstat(stream.fileno()).st_mtime
    except OSError:  # it lives, has just finished, or the file system has no locks
        return False
    return is_of_this_host or age_seconds > OTHER_HOST_SECONDS


def _is_running(process: int) -> bool:
    """Return whether a process with this id runs on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which is created; it ends with the process, even by a kill."""
    with path.open("ab") as stream:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def full_disk_named(path: Path, what: str = "it") -> Iterator[None]:
    """Turn the error of a file that cannot grow into a message.

    Args:
        path: The file or its folder, for the message.
        what: Description of the content.

    Raises:
        UserError: The disk is full, a quota is used up, or the file exceeds a limit on its size.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{path}: no room to write {what} ({os.strerror(error.errno)}); free some space, or "
            "move the results with pathvars, and run again."
        ) from None


def check_free_space(directory: Path, num_bytes: int, what: str) -> None:
    """Check that the disk has room before a stage begins to write.

    Raises:
        UserError: Fewer than ``num_bytes`` are free on the disk of ``directory``.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise UserError(
            f"{directory}: {what} takes {num_bytes / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are "
            "free; free some space, or put the results on a larger disk."
        )


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: ``value`` holds NaN or infinity.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_checksum(path: Path) -> None:
    """Write the hash of a file to ``NAME.sha256`` beside it, as ``sha256sum`` does."""
    write_text(_checksum_of(path), f"{sha256_of_file(path)}  {path.name}\n")


def has_changed(path: Path) -> bool:
    """Return whether a file differs from its :func:`write_checksum`; without one it does not."""
    try:
        written = _checksum_of(path).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return False
    return path.is_file() and written.split(" ")[0] != sha256_of_file(path)


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
