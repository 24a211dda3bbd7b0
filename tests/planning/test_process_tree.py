"""Processes that end with the process that started them, and those that do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import environment_with, has_ended, wait_until
from leftovers import kill, left_running

from higgs_pipe.planning import process_tree
from higgs_pipe.planning.process_tree import VARIABLE, Process

Start = Callable[..., tuple[psutil.Process, psutil.Process]]

# Writes its process id, and sleeps for a minute unless a process that it watches ends.
JOB = """
import os, sys, time
from higgs_pipe.planning import process_tree
process_tree.end_with(process_tree.ancestors(os.environ))
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
# Marks itself, and runs a command until it has ended.
STARTER = """
import os, subprocess, sys
from higgs_pipe.planning import process_tree
process_tree.mark(os.environ)
subprocess.run(sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program that runs the job; returns both processes."""
    started = []

    def run(*command: str, **variables: str) -> tuple[psutil.Process, psutil.Process]:
        note = tmp_path / "pid"
        starter = subprocess.Popen(
            [*command, sys.executable, "-c", JOB, str(note)],
            env=environment_with(**variables),
            start_new_session=True,
        )
        started.append(starter)
        wait_until(lambda: note.is_file() and note.read_text() != "")
        return psutil.Process(starter.pid), psutil.Process(int(note.read_text()))

    yield run
    for starter in started:
        starter.kill()
        starter.wait()
    kill(left_running().keys())  # jobs that have outlived it


def test_a_job_ends_when_its_starter_is_killed(start: Start) -> None:
    starter, job = start(sys.executable, "-c", STARTER)
    starter.kill()
    wait_until(lambda: has_ended(job))


def test_a_job_ends_when_an_intermediate_shell_is_killed(start: Start) -> None:
    starter, job = start(sys.executable, "-c", STARTER, "bash", "-c", '"$@"; true', "-")
    job.parent().kill()
    wait_until(lambda: has_ended(job))
    wait_until(lambda: has_ended(starter))


def test_a_job_started_by_hand_outlives_its_shell(start: Start) -> None:
    shell, job = start("bash", "-c", '"$@"; true', "-")
    shell.kill()
    time.sleep(3 * process_tree.POLL_SECONDS)
    assert not has_ended(job)


def test_a_starter_on_another_machine_is_not_watched(start: Start) -> None:
    elsewhere = f"another-boot,pid:[1]/{os.getpid()}/1"
    _, job = start("env", **{VARIABLE: elsewhere})
    time.sleep(3 * process_tree.POLL_SECONDS)
    assert not has_ended(job)
    assert process_tree.ancestors({VARIABLE: elsewhere}) == []


def test_a_starter_that_is_not_an_ancestor_is_the_only_one_watched(start: Start) -> None:
    """As a task of srun, which Slurm's daemon starts."""
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    named = Process.of(other.pid)
    assert process_tree.ancestors({VARIABLE: str(named)}) == [named]
    _, job = start("env", **{VARIABLE: str(named)})
    other.kill()  # nobody waits for it: it stays as a zombie
    wait_until(lambda: has_ended(job))
    other.wait()


def test_a_reused_process_id_is_another_process() -> None:
    this = Process.of(os.getpid())
    assert this is not None
    assert this == Process.parse(str(this))
    assert this != this._replace(started=this.started - 1)


def test_every_ancestor_up_to_the_marked_one_is_watched() -> None:
    parent, named = os.getppid(), Process.of(psutil.Process().parents()[1].pid)
    assert process_tree.ancestors({VARIABLE: str(named)}) == [named, Process.of(parent)]


def test_children_lists_the_running_children_of_this_process() -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert child.pid in process_tree.children()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.pid not in process_tree.children()
