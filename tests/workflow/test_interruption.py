"""Snakemake is stopped or killed during training: its jobs save and end too."""

import os
import pty
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faults.page import Record
from helpers import environment_with, wait_until
from leftovers import kill, left_running
from workflow.stub_checkout import make_stub_checkout, snakemake, snakemake_command

pytestmark = pytest.mark.slow

SNAKEMAKE = "`snakemake`, in training by two processes"

# A training that lasts until it is asked to stop, and then takes its time to save.
TRAINING = """
import os, signal, sys, time
from pathlib import Path
from higgs_pipe.cli import main
def run(output_dir: Path) -> None:
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: caught.append(number))
    rank = os.environ.get("RANK", "0")
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / f"running-{rank}").write_text("")
    while not caught:
        time.sleep(0.02)
    time.sleep(0.5)
    (output_dir / f"saved-{rank}").write_text("")
    sys.exit(128 + caught[0])
main(run, ["--output-dir", sys.argv[sys.argv.index("--output-dir") + 1]])
"""


def heed_signals() -> None:
    """Start a process with default signal handling, even if the tests run with signals ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Workflow:
    """A run of Snakemake in a session of its own, which trains by two processes."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.folder = checkout / "results/experiments/default/train"
        words = ("--cores", "2", "train", "--config", "train={num_processes: 2, device: cpu}")
        self.command = snakemake_command(checkout, *words)
        self.popen: subprocess.Popen | None = None

    def start(self) -> psutil.Process:
        """Start it and wait for both processes of the training."""
        self.popen = subprocess.Popen(
            self.command,
            cwd=self.checkout,
            env=environment_with(),
            start_new_session=True,
            preexec_fn=heed_signals,
            stderr=subprocess.DEVNULL,
        )
        self.wait_for("running")
        return psutil.Process(self.popen.pid)

    def start_in_terminal(self) -> int:
        """Start it as a shell does in a terminal; return the terminal."""
        environment = environment_with()
        pid, terminal = pty.fork()
        if pid == 0:
            heed_signals()
            os.chdir(self.checkout)
            shell = ["bash", "-c", f"{shlex.join(self.command)}; true"]
            os.execvpe("bash", shell, environment)
        self.wait_for("running")
        return terminal

    def wait_for(self, state: str) -> None:
        wait_until(lambda: all((self.folder / f"{state}-{i}").is_file() for i in (0, 1)))

    def job(self, module: str) -> psutil.Process:
        found = left_running().items()
        return psutil.Process(next(number for number, c in found if f"higgs_pipe.{module} " in c))

    def wait_for_end(self) -> None:
        wait_until(lambda: left_running() == {})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of stubs, with all results up to packing; its training waits for a signal."""
    folder = tmp_path_factory.mktemp("run") / "check out"
    checkout = make_stub_checkout(folder, has_launcher=True)
    run = snakemake(checkout, "pack", checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    (checkout / "higgs_pipe/train.py").write_text(TRAINING)
    return checkout


@pytest.fixture
def workflow(packed: Path) -> Iterator[Workflow]:
    workflow = Workflow(packed)
    yield workflow
    kill(left_running().keys())
    if workflow.popen is not None:
        workflow.popen.wait()
    for path in workflow.folder.glob("*-[01]"):
        path.unlink()
    shutil.rmtree(packed / ".snakemake/locks", ignore_errors=True)


def is_locked(workflow: Workflow) -> bool:
    locks = workflow.checkout / ".snakemake/locks"
    return locks.is_dir() and any(locks.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_only_to_snakemake_lets_training_save(
    workflow: Workflow, number: signal.Signals, record: Record
) -> None:
    workflow.start().send_signal(number)
    workflow.wait_for("saved")
    assert workflow.popen.wait(200) == 1
    workflow.wait_for_end()
    assert not is_locked(workflow)
    record(f"{number.name} to it alone", SNAKEMAKE, equal=1)


def test_a_second_run_in_a_locked_folder_ends_with_what_to_do(
    workflow: Workflow, record: Record
) -> None:
    workflow.start()
    second = snakemake(workflow.checkout, "train", checkout=workflow.checkout)
    assert second.returncode == 1
    assert "Directory cannot be locked" in second.stderr
    assert "--unlock" in second.stderr
    assert workflow.popen.poll() is None
    record("a second one in its folder", SNAKEMAKE, refused=1)


def test_training_saves_and_ends_when_snakemake_is_killed(
    workflow: Workflow, record: Record
) -> None:
    workflow.start().kill()
    workflow.wait_for("saved")
    workflow.popen.wait(200)
    workflow.wait_for_end()
    record("SIGKILL to it alone", SNAKEMAKE, equal=1)


def test_training_saves_and_ends_when_the_launcher_is_killed(
    workflow: Workflow, record: Record
) -> None:
    workflow.start()
    workflow.job("training.launch").kill()
    workflow.wait_for("saved")
    assert workflow.popen.wait(200) == 1
    workflow.wait_for_end()
    record("SIGKILL to the launcher of its training", SNAKEMAKE, equal=1)


def test_ctrl_c_on_the_whole_workflow_lets_training_save(
    workflow: Workflow, record: Record
) -> None:
    terminal = workflow.start_in_terminal()
    os.write(terminal, b"\x03")
    workflow.wait_for("saved")
    workflow.wait_for_end()
    os.close(terminal)
    assert not is_locked(workflow)
    record("Ctrl-C in its terminal", SNAKEMAKE, equal=1)


def test_closing_the_terminal_lets_training_save(workflow: Workflow, record: Record) -> None:
    terminal = workflow.start_in_terminal()
    os.close(terminal)
    workflow.wait_for("saved")
    workflow.wait_for_end()
    assert not is_locked(workflow)
    record("a closed terminal", SNAKEMAKE, equal=1)


def test_under_nohup_a_hangup_ends_nothing(
    packed: Path, workflow: Workflow, record: Record
) -> None:
    workflow.command = ["nohup", *workflow.command]
    workflow.start()
    os.killpg(workflow.popen.pid, signal.SIGHUP)
    time.sleep(3)
    assert not list(workflow.folder.glob("saved-*"))
    assert workflow.popen.poll() is None
    record("SIGHUP to all, under nohup", SNAKEMAKE, equal=1)


def test_a_stage_without_signal_handling_ends_with_its_snakemake(workflow: Workflow) -> None:
    """One that catches no signal by itself."""
    source = workflow.checkout / "higgs_pipe/estimate.py"
    stub = source.read_text()
    source.write_text(
        "import time\nfrom pathlib import Path\nfrom higgs_pipe.cli import main\n"
        "def run(config: Path, validation: Path, clips: Path, estimate: Path) -> None:\n"
        "    Path('running').write_text('')\n"
        "    try:\n        time.sleep(60)\n"
        "    finally:\n        Path('cleaned').write_text('')\nmain(run)\n"
    )
    workflow.command = snakemake_command(workflow.checkout, "--cores", "2", "validate")
    popen = subprocess.Popen(
        workflow.command, cwd=workflow.checkout, env=environment_with(), stderr=subprocess.DEVNULL
    )
    wait_until((workflow.checkout / "running").is_file)
    popen.kill()
    wait_until((workflow.checkout / "cleaned").is_file)
    popen.wait()
    workflow.wait_for_end()
    source.write_text(stub)
