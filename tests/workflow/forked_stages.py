"""Stages in forks of a process that has imported them: start in 0.1 s instead of 5 s.

``forking_python()`` is a program that hands the command line of a stage, its folder, its
environment and its streams to that process, and ends with the exit code of the fork. The launcher
of a training is a fork, too, and so are the processes that it starts. Whatever else the program is
given it does as Python.

A signal that is sent to such a program does not reach the fork, which is killed if it ends. A
``Fork`` is the fork itself, which signals do reach, and so are the processes of a launcher.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import dropwhile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from helpers import python_path
from leftovers import MARK, name_of_fork, unmarked_environment
from workflow.forked_snakemake import run_and_end

from higgs_pipe.planning.stages import STAGES

ROOT = Path(__file__).parents[2]
MODULES = {f"higgs_pipe.{stage.module}" for stage in STAGES.values()}
MODULES |= {f"higgs_pipe.{name}" for name in ("training.launch", "verify", "prove_form", "speak")}
FORKED = MODULES | {str(ROOT / "tests/launched/train_cases.py")}
# What that program and the launcher import late.
LATER = ("pretended_gpu", "reference", "accelerate.commands.launch", "torch.distributed.run")
PYTHON = """#!{python} -SE
import array, json, os, socket, sys
words = sys.argv[1:]
while words[:1] in (["-u"], ["-m"]):
    del words[0]
if not words or words[0] not in {forked!r}:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    job = dict(words=words, cwd=os.getcwd(), environment=dict(os.environ))
    server.sendall(json.dumps(job).encode() + b"\\n")
    answer = server.makefile().readline()
sys.exit(int(answer or 1))
"""


@cache
def forking_python() -> Path:
    """Start the process that forks, which ends with this one; return the program that asks it.

    Its folder goes with it.
    """
    folder = tempfile.mkdtemp(prefix="stages-")
    address = f"{folder}/socket"
    program = Path(folder, "python")
    program.write_text(PYTHON.format(python=sys.executable, address=address, forked=FORKED))
    program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.forked_stages", address, str(program)],
        env=unmarked_environment()
        | {"PYTHONPATH": python_path(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,  # which ends with this process, however it ends
        stdout=subprocess.PIPE,
    )
    atexit.register(end, process)
    assert process.stdout.readline() == b"ready\n"
    return program


def end(process: subprocess.Popen[bytes]) -> None:
    """Let the process that forks end."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


class Fork:
    """A stage in a fork with a session of its own: what tests use of ``Popen``.

    It is killed if this process ends.
    """

    def __init__(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        job = {"words": [*words], "cwd": str(cwd), "environment": {**environment}, "session": True}
        self.returncode: int | None = None
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(str(forking_python().with_name("socket")))
        with open(os.devnull, "r+") as nothing:  # noqa: PTH123
            streams = [stream.fileno() for stream in (nothing, nothing, self.stderr)]
            socket.send_fds(self.server, [b"x"], streams)
        self.server.sendall(json.dumps(job).encode() + b"\n")
        self.answers = self.server.makefile()
        self.pid = int(self.answers.readline())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.server], [], [], 0)[0]:
            self.returncode = int(self.answers.readline())
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; return what it has written on stderr, after an empty stdout."""
        if self.poll() is None:
            self.server.settimeout(timeout)
            self.returncode = int(self.answers.readline())
        with self.server, self.answers, self.stderr:
            self.stderr.seek(0)
            return "", self.stderr.read()


class ProcessOfLauncher(subprocess.Popen):
    """A fork of the launcher, in place of a new process."""

    def _execute_child(self, *arguments: Any) -> None:
        """Fork as ``Popen`` would start a program with these arguments."""
        words, environment = arguments[0], arguments[6]
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, 1000)
            atexit._clear()
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            words = [*dropwhile(("-u", "-m").__contains__, words[1:])]
            job = {"words": words, "cwd": str(Path.cwd()), "environment": environment}
            run_and_end(partial(run_program, job))
        self._child_created = True


@pytest.fixture(scope="module")
def processes_as_forks() -> Iterator[None]:
    """What a test of a module starts by ``sys.executable`` is a fork if it is a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(forking_python()))
        yield


def serve(address: str) -> None:
    """Fork for each job."""
    gc.freeze()  # else collecting in a child copies all memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(client)
            client.close()
    shutil.rmtree(Path(address).parent)


def answer(client: socket.socket) -> NoReturn:
    """Run the job of a client in a child of this process; send back its exit code.

    If the client ends before, the child is killed.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(client, 1, 3)
    job = json.loads(client.makefile().readline())
    child = os.fork()
    if child == 0:
        if "session" in job:
            os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        client.close()
        run_and_end(partial(run_program, job))
    if "session" in job:
        client.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, client.fileno()], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        client.sendall(f"{code}\n".encode())
    os._exit(0)


def run_program(job: dict[str, Any]) -> None:
    """Run a module or a script as the interpreter would."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    if MARK in os.environ:  # /proc shows the environment in which the server was started
        Path("/proc/self/comm").write_text(name_of_fork(os.environ[MARK]))
    sys.argv = job["words"]
    if sys.argv[0] in MODULES:
        sys.modules.pop(sys.argv[0])  # else a warning
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    for module in (*MODULES, *LATER):
        importlib.import_module(module)
    sys.executable = sys.argv[2]  # of what a stage starts
    vars(subprocess_handler)["Popen"] = ProcessOfLauncher
    serve(sys.argv[1])
