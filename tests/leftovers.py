"""A plugin of pytest: a test that leaves a process running fails, and the process is killed.

Processes that tests start are known by a variable in their environment, which they inherit however
they are started and whoever has adopted them. What fixtures of wider scope start before a test may
live on; what starts later and shall live on is started with ``unmarked_environment()``.
"""

import os
import signal
import time
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path

import pytest

MARK = "HIGGS_PIPE_TEST"
# So long a process may take to end of which a test has seen that it ends.
GRACE_SECONDS = 10.0
# Libraries start these once and use them until the end.
OF_LIBRARIES = (b"multiprocessing.resource_tracker", b"compile_worker")

os.environ[MARK] = str(os.getpid())  # of this worker


def unmarked_environment() -> dict[str, str]:
    """The environment for a process that outlives the test that starts it."""
    return {name: value for name, value in os.environ.items() if name != MARK}


def name_of_fork(mark: str) -> str:
    """Return the name a fork gives itself, since ``/proc`` shows the environment of its parent."""
    return f"test-{mark}"


def running() -> set[int]:
    """Return the ids of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - quicker


def left_running(before: Set[int] = frozenset()) -> dict[int, str]:
    """Return the command lines of processes started by tests of this worker, by process id."""
    marked = f"{MARK}={os.getpid()}".encode()
    found = {}
    for process in running() - before - {os.getpid()}:
        with suppress(OSError):  # it has ended
            folder = Path(f"/proc/{process}")
            command = (folder / "cmdline").read_bytes()
            is_of_library = any(name in command for name in OF_LIBRARIES)
            is_marked = marked in (folder / "environ").read_bytes().split(b"\0")
            is_fork = (folder / "comm").read_text() == f"{name_of_fork(str(os.getpid()))}\n"
            if (is_marked or is_fork) and not is_of_library:
                found[process] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def kill(processes: Set[int]) -> None:
    """Kill processes that may have ended by themselves."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test if a process it started is still running, even if it has already failed."""
    before = running()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while left := left_running(before):
        if time.monotonic() > deadline:
            kill(left.keys())
            lines = "\n".join(f"{process}: {command}" for process, command in left.items())
            pytest.fail(f"The test has left processes running:\n{lines}", pytrace=False)
        time.sleep(0.02)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill the processes that fixtures of wider scope have left."""
    if not session.config.getoption("numprocesses", default=None):  # else its workers, marked, too
        kill(left_running().keys())
