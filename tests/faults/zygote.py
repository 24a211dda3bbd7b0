"""A process that has imported the stages and forks a child per run, which starts within 0.1 s.

Reads a JSON object per line: ``module``, ``arguments``, ``stderr`` (a path), ``num_copies`` (that
run at once), ``end_by``, ``at_write``, ``after_seconds`` and ``fault``, each null or:

- ``end_by``: the number of a signal that it gets just before its write number ``at_write``, or
  ``after_seconds``;
- ``fault``: ``full`` (no file may exceed 1 kB), ``readonly`` (root may not write against
  permissions) or ``clock`` (the time of day jumps by hours, forth and back).

Answers with the exit codes once all have ended, and how many writes there were: files opened for
writing, renamed or removed, folders made or removed.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

MODULES = (
    "list_rows",
    "measure",
    "validate",
    "tokenize_audio",
    "pack",
    "train",
    "evaluate",
    "package",
    "verify",
    "report",
    "speak",
)
MAX_BYTES = 1000
PR_SET_PDEATHSIG = 1
CAPABILITY_VERSION = 0x20080522
# Root reads and writes whatever the permissions say.
OVERRIDES = ~(1 << 1 | 1 << 2 | 1 << 3) & 0xFFFFFFFF


def heed_permissions() -> None:
    """Give up root's right to write where permissions forbid it."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = struct.pack("=II", CAPABILITY_VERSION, 0)
        found = ctypes.create_string_buffer(24)
        libc.capget(header, found)
        sets = [value & OVERRIDES for value in struct.unpack("=6I", found.raw[:24])]
        if libc.capset(header, struct.pack("=6I", *sets)) != 0:
            raise OSError(ctypes.get_errno(), "capset")


# Of Python's audit events.
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
JUMPS_HOURS = (0, 30, -5, 26, -30, 3)


class Writes:
    """Counts the writes of this process, and sends it a signal before one of them."""

    def __init__(self, at_write: int | None, end_by: int | None) -> None:
        self.process = os.getpid()
        self.at_write = at_write
        self.end_by = end_by
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_open = event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING
        if (is_open or event in CHANGES) and os.getpid() == self.process:
            self.count += 1
            if self.count == self.at_write and self.end_by is not None:
                os.kill(self.process, self.end_by)


def let_time_jump() -> None:
    """Let the time of day jump by hours from call to call."""
    now, jumps = time.time, itertools.cycle(JUMPS_HOURS)
    time.time = lambda: now() + 3600 * next(jumps)


start_process = subprocess.run


def start_as_fork(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run what ``run_in_fresh_process`` would start as a fork: 0.1 s instead of 8 s."""
    if command[:2] != [sys.executable, "-m"]:
        return start_process(command, **options)
    reading, writing = os.pipe()
    _, _, module, *arguments = command
    child = os.fork()
    if child == 0:
        # It ends with its parent, as jobs of a workflow do by watching their starters.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(writing, 2)
        os.closerange(3, 1000)  # locks among them
        end_with_code(partial(run_stage, module, arguments))
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return subprocess.CompletedProcess(command, code, None, said)


def run_stage(module: str, arguments: list[str]) -> None:
    from higgs_pipe.cli import main

    main(importlib.import_module(module).run, arguments)


def end_with_code(run: Callable[[], None]) -> NoReturn:
    """End this process as the interpreter would after ``run``."""
    code = 0
    try:
        run()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(job: dict[str, Any], writes: int) -> None:
    """Run a stage; write its number of writes to a descriptor."""
    descriptor = os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    match job["fault"]:
        case "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
        case "readonly":
            heed_permissions()
        case "clock":
            let_time_jump()
    subprocess.run = start_as_fork  # type: ignore[assignment]
    counter = Writes(job["at_write"], job["end_by"])
    sys.addaudithook(counter)
    try:
        run_stage(f"higgs_pipe.{job['module']}", job["arguments"])
    finally:
        os.write(writes, b"%d\n" % counter.count)


def answer(job: dict[str, Any]) -> list[int]:
    """Run a stage in processes of its own; return their exit codes and the most writes."""
    reading, writing = os.pipe()
    children = []
    for _ in range(job["num_copies"]):
        if (child := os.fork()) == 0:
            end_with_code(partial(run, job, writing))
        children.append(child)
    os.close(writing)
    timer = threading.Timer(job["after_seconds"] or 0, os.kill, (children[0], job["end_by"]))
    if job["after_seconds"] is not None:
        timer.start()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    timer.cancel()
    with os.fdopen(reading) as stream:
        counts = [int(line) for line in stream]
    return [*codes, max(counts, default=0)]


def serve() -> None:
    for module in MODULES:
        importlib.import_module(f"higgs_pipe.{module}")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
