"""Snakemake in forks of a process that has imported it: starts in 0.05 s instead of 1.5 s.

As a program, reads a JSON object per line (``words``, ``cwd``, ``environment``, ``python``,
``stdout`` and ``stderr``, which are paths) and answers with the exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil

# What a run imports beside its command line, and which is no part of this project.
LATER = (
    "jsonschema",
    "smart_open",
    "snakemake.dag",
    "snakemake.linting.snakefiles",
    "snakemake_interface_report_plugins.registry",
    "snakemake.executors.local",
)


@cache
def parent() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one."""
    from leftovers import unmarked_environment  # which the program below does not find

    process = subprocess.Popen(
        [sys.executable, __file__],
        env=unmarked_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(end, process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Kill the process that forks and the run that it may be waiting for."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.communicate()


def run_snakemake(
    words: list[str],
    cwd: Path,
    environment: Mapping[str, str] = os.environ,
    python: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake to its end, as ``python -m snakemake`` in a folder would.

    Jobs find its ``python`` first.
    """
    process = parent()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.callback(parent.cache_clear)
        stack.callback(end, process)
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        job: dict[str, Any] = {"words": words, "cwd": str(cwd), "environment": dict(environment)}
        job |= {stream.name: str(stream) for stream in streams} | {"python": python}
        process.stdin.write(f"{json.dumps(job)}\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        stdout, stderr = (stream.read_text(encoding="utf-8") for stream in streams)
        stack.pop_all()  # the answer is there: it can be asked again
    return subprocess.CompletedProcess(words, code, stdout, stderr)


def serve() -> None:
    """Fork for each job."""
    gc.freeze()  # else collecting in a child copies all memory
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            run_and_end(snakemake.cli.main)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(job: dict[str, Any]) -> None:
    """Take the folder, the environment, the streams and the command line of a job."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.executable = job["python"]
    sys.path[0] = job["cwd"]
    sys.argv = [snakemake.cli.__file__, *job["words"]]


def run_and_end(run: Callable[[], object]) -> NoReturn:
    """Run a program and end as the interpreter does, but for tearing down its modules: a second."""
    code = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # joins the threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import snakemake.cli

    snakemake.cli.get_argument_parser()  # imports the plugins
    for module in LATER:
        importlib.import_module(module)
    serve()
