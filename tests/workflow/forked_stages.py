"""Stages in forks of a process that has imported them: started within 0.1 s in place of 5.

``forking_python()`` is a program that hands the command line of a stage, its folder, its
environment and its streams to that process, and ends with the exit code of the fork. Whatever else
it is given, such as the launcher of a training, it does as Python.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from leftovers import unmarked_environment
from workflow.forked_snakemake import run_and_end

from higgs_pipe.cli import main
from higgs_pipe.planning.stages import STAGES

ROOT = Path(__file__).parents[2]
MODULES = {f"higgs_pipe.{stage.module}" for stage in STAGES.values()}
PYTHON = """#!{python} -SE
import array, json, os, socket, sys
words = sys.argv[1:]
if words[:1] != ["-m"] or words[1] not in {modules!r}:
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    job = dict(words=words[1:], cwd=os.getcwd(), environment=dict(os.environ))
    server.sendall(json.dumps(job).encode() + b"\\n")
    answer = server.makefile().readline()
sys.exit(int(answer or 1))
"""


@cache
def forking_python() -> Path:
    """Start the process that forks, which ends with this one; return the program that asks it."""
    folder = tempfile.mkdtemp(prefix="stages-")
    address = f"{folder}/socket"
    program = Path(folder, "python")
    program.write_text(PYTHON.format(python=sys.executable, address=address, modules=MODULES))
    program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.forked_stages", address],
        env=unmarked_environment()
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    atexit.register(process.kill)
    assert process.stdout.readline() == b"ready\n"
    return program


def serve(address: str) -> None:
    """Fork for each job."""
    gc.freeze()  # else collecting in a child copies all memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(client)
            client.close()


def answer(client: socket.socket) -> NoReturn:
    """Run the job of a client in a child of this process; tell its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(client, 1, 3)
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        job = json.loads(client.makefile().readline())
        client.close()
        run_and_end(partial(run_stage, job))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(f"{code}\n".encode())
    os._exit(0)


def run_stage(job: dict[str, Any]) -> None:
    """Run a stage as its command line would."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    module, *words = job["words"]
    sys.argv = [module, *words]
    main(importlib.import_module(module).run, words)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    serve(sys.argv[1])
