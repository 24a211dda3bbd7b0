"""A test that leaves a process running fails, and the process is gone."""

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import wait_until
from leftovers import MARK, left_running, name_of_fork, running, unmarked_environment

TESTS = """
import subprocess, sys, time

def test_that_fails():
    subprocess.run(["bash", "-c", "setsid sleep 987 & exec setsid sleep 986 &"])
    assert False

def test_that_passes_and_leaves_its_child():
    subprocess.Popen(["sleep", "985"])

def test_that_leaves_nothing():
    subprocess.Popen(["sleep", "0.1"])
"""


def test_a_process_left_running_is_killed_and_fails_its_test(tmp_path: Path) -> None:
    """Also processes in sessions of their own, whose parents have ended."""
    (tmp_path / "leftovers_of.py").write_text(
        "import leftovers\nfrom leftovers import *\nleftovers.GRACE_SECONDS = 1.0\n"
    )
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "leftovers_of", "-p", "no:randomly", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": f"{Path(__file__).parent}:{tmp_path}", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 2 passed, 2 errors" in run.stdout, run.stdout + run.stderr
    killed = set(re.findall(r"^\d+: (sleep \d+)$", run.stdout, re.MULTILINE))
    assert sorted(killed) == ["sleep 985", "sleep 986", "sleep 987"]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [command for command in commands if re.match(rb"sleep\x0098[567]", command)]


def test_a_process_is_attributed_to_its_worker() -> None:
    before = running()  # with those of fixtures of wider scope
    started = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"], env=os.environ | {MARK: "1"})
    command_lines = [Path(f"/proc/{process.pid}/cmdline") for process in (started, other)]
    wait_until(lambda: all(path.read_bytes() for path in command_lines))  # which exec sets last
    left = left_running(before)
    for process in (started, other):
        process.kill()
        process.wait()
    assert left == {started.pid: "sleep 60"}


def test_a_fork_is_recognised_by_its_name() -> None:
    before = running()
    name = name_of_fork(str(os.getpid()))
    rename = f"echo -n {name} > /proc/$$/comm; read"
    command, environment = ["bash", "-c", rename], unmarked_environment()
    fork = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    wait_until(lambda: Path(f"/proc/{fork.pid}/comm").read_text().strip() == name)
    left = left_running(before)
    fork.communicate()
    assert left.keys() == {fork.pid}
