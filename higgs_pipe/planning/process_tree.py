"""The processes that started a job, which ends when one of them has ended.

Snakemake starts a shell, the shell the launcher or the stage, the launcher its processes. Each of
these that starts jobs adds itself to the environment, where each job reads which processes to
watch. A stage that is started by hand finds nothing there and watches none, so that ``nohup`` and a
closed terminal affect it like any other command.

This reads Linux's ``/proc``; on other systems a job watches nothing.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple, Self

VARIABLE = "HIGGS_PIPE_STARTED_BY"
POLL_SECONDS = 1.0


class Process(NamedTuple):
    """A process of any machine; no other equals it, although process ids are reused.

    Attributes:
        machine: The machine's boot, and the namespace of the process ids there.
        pid: Process id.
        started: Clock ticks from the machine's boot to the start of the process.
    """

    machine: str
    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the running process with this id on this machine, or None."""
        status, machine = _status_of(pid), this_machine()
        return None if status is None or machine is None else cls(machine, pid, status.started)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``str(process)``."""
        machine, pid, started = text.rsplit("/", 2)
        return cls(machine, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.machine}/{self.pid}/{self.started}"


class _Status(NamedTuple):
    parent_pid: int
    started: int


def _status_of(pid: int) -> _Status | None:
    """Return the status of a process from ``/proc``; None if it has ended, even as a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # after the command, which may hold anything
    return None if fields[0] in "ZX" else _Status(int(fields[1]), int(fields[19]))


@functools.cache
def this_machine() -> str | None:
    """Return the boot of this machine and the namespace of our process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return f"{boot},{namespace}"


def mark(environment: MutableMapping[str, str]) -> None:
    """Add this process to an environment, for the processes that it starts to watch."""
    if this := Process.of(os.getpid()):
        environment[VARIABLE] = " ".join([*environment.get(VARIABLE, "").split(), str(this)])


def marked(environment: Mapping[str, str]) -> list[Process]:
    """Return the processes of this machine that an environment names, the outermost first."""
    named = map(Process.parse, environment.get(VARIABLE, "").split())
    return [process for process in named if process.machine == this_machine()]


def ancestors(environment: Mapping[str, str]) -> list[Process]:
    """Return the processes that this one must not outlive.

    They are those that the environment names, and any between them and this one, such as a shell.
    If none of them started this process (tasks of ``srun`` are children of its daemon), they are
    only the named ones.
    """
    named = marked(environment)
    chain: list[Process] = []
    pid = os.getppid()
    while named and named[0] not in chain and (process := Process.of(pid)):
        chain.append(process)
        status = _status_of(pid)
        pid = 0 if status is None else status.parent_pid
    between = chain if named and named[0] in chain else []
    return list(dict.fromkeys([*named, *between]))


def children() -> list[int]:
    """Return the ids of the running processes that this one started."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    statuses = {pid: _status_of(pid) for pid in pids}
    return [pid for pid, status in statuses.items() if status and status.parent_pid == os.getpid()]


def end_with(watched: list[Process], tell: Callable[[Process], None] = lambda _: None) -> None:
    """Send SIGTERM to this process, once, when one of some others ends.

    Args:
        watched: The others.
        tell: Called from another thread, before the signal, with the process that ended.
    """

    def wait() -> None:
        while True:
            for process in watched:
                if Process.of(process.pid) != process:
                    tell(process)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            time.sleep(POLL_SECONDS)

    if watched:
        threading.Thread(target=wait, name="process-tree", daemon=True).start()
