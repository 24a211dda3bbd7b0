"""Runs of pytest on copies of the tree, each in a fork of this process.

What takes long to import is imported once, before the first fork; the package and its tests are
imported in each fork, from its copy.
"""

import gc
import json
import os
import py_compile
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest
from mutants.mistakes import Mistake

ROOT = Path(__file__).parents[2]
# Beside the sources: environments, results and caches.
NOT_COPIED = {"results", "resources", "logs", "benchmarks"}
COMPILED = ("higgs_pipe", "tests", "bench")
SLOW_IMPORTS = (
    "torch",
    "torch.nn.attention.varlen",
    "torch.utils.tensorboard",
    "accelerate",
    "peft",
    "transformers",
    "transformers.optimization",
    "transformers.models.auto.processing_auto",
    "transformers.models.dac.modeling_dac",
    "transformers.models.hubert.modeling_hubert",
    "transformers.models.higgs_audio_v2.modeling_higgs_audio_v2",
    "transformers.models.higgs_audio_v2.processing_higgs_audio_v2",
    "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.whisper.english_normalizer",
    "transformers.pipelines.automatic_speech_recognition",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "onnxruntime",
    "fontTools.unicodedata",
    "hypothesis",
    "jinja2",
    "jiwer",
    "jsonschema",
    "langcodes",
    "pandas",
    "pdb",
    "psutil",
    "pyarrow.parquet",
    "pydantic.dataclasses",
    "pydantic.fields",
    "pydantic.main",
    "pydantic.type_adapter",
    "pydantic.types",
    "pytest_timeout",
    "safetensors.torch",
    "scipy.signal",
    "soundfile",
    "soxr",
    "yaml",
)
PASSED, FAILED = 0, 1  # pytest's exit codes
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Job:
    """Tests to run on a copy of the tree, optionally after making a mistake in it."""

    tests: tuple[str, ...]
    max_seconds: float
    mistake: Mistake | None = None

    @property
    def title(self) -> str:
        """The mistake's title."""
        return "the tree as it is" if self.mistake is None else self.mistake.title


@dataclass(frozen=True)
class Outcome:
    """The end of a job."""

    job: Job
    code: int  # pytest's; negative: killed by a signal
    failed: list[str]  # tests
    output: str
    seconds: float
    cpu_seconds: float

    @property
    def fault(self) -> str | None:
        """Return why the outcome is not the wanted one, or None."""
        if self.code not in (PASSED, FAILED):
            return f"pytest ended with {self.code} after {self.seconds:.0f} s"
        if self.job.mistake is None:
            return f"{len(self.failed)} tests fail" if self.failed else None
        return None if self.failed else "survived"


class Failures:
    """A plugin of pytest that keeps the names of the tests that fail."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that fails, in its fixtures or itself."""
        if report.failed:
            self.names.append(report.nodeid)


@dataclass
class Run:
    """A job in its process."""

    job: Job
    tree: Path
    to_undo: ExitStack = field(default_factory=ExitStack)
    started: float = field(default_factory=time.monotonic)

    @property
    def scratch(self) -> Path:
        """The folder beside the tree for output and temporary files."""
        return self.tree.with_name(f"{self.tree.name}-scratch")

    def start(self) -> int:
        """Make the mistake and run the tests in a fork; return its process id."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        if self.job.mistake:
            self.to_undo.enter_context(self.job.mistake.made_in(self.tree))
        sys.stdout.flush()
        return os.fork() or self._test()

    def _test(self) -> NoReturn:
        """Run the tests in this process, and end it."""
        code = -1
        try:
            os.setsid()
            os.chdir(self.tree)
            with (self.scratch / "output").open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            # Looking for plugins and importing them takes a tenth of a second.
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            ours = {str(ROOT / "tests"), str(ROOT / "bench")}
            sys.path = [entry for entry in sys.path if entry not in ours]
            failures = Failures()
            options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
            options += ["--assert=plain"]  # pytest's own would compile the tests each time
            options += [f"--basetemp={self.scratch}/tmp", *(["-x"] if self.job.mistake else [])]
            code = int(pytest.main([*options, *self.job.tests], plugins=[failures]))
            (self.scratch / "failed").write_text(json.dumps(failures.names))
            sys.stdout.flush()
        finally:
            if code < 0:
                traceback.print_exc()
            os._exit(code & 0xFF)

    def ended(self, status: int, cpu_seconds: float) -> Outcome:
        """Undo the mistake and return what the ended process left."""
        self.to_undo.close()
        failed, output = self.scratch / "failed", self.scratch / "output"
        return Outcome(
            self.job,
            os.waitstatus_to_exitcode(status),
            json.loads(failed.read_text()) if failed.is_file() else [],
            output.read_text(errors="replace") if output.is_file() else "",
            time.monotonic() - self.started,
            cpu_seconds,
        )


def import_what_is_slow() -> None:
    """Import the libraries that the tests use, for all forks.

    No fork's garbage collector looks through their objects: pytest's five collections at its end
    would take longer than a short test.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as the package does before it imports onnxruntime
    for name in SLOW_IMPORTS:
        import_module(name)
    gc.collect()
    gc.freeze()


def copy_tree(tree: Path) -> None:
    """Copy the project's files.

    They are compiled so that Python compares the hash of a file, and not its time and size,
    which a small mistake may leave as they were.
    """
    for path in ROOT.iterdir():
        if path.is_dir() and path.name not in NOT_COPIED and path.name[0] != ".":
            shutil.copytree(path, tree / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            tree.mkdir(exist_ok=True)
            shutil.copy2(path, tree)
    for path in (path for name in COMPILED for path in (tree / name).rglob("*.py")):
        by_hash = py_compile.PycInvalidationMode.CHECKED_HASH
        py_compile.compile(str(path), invalidation_mode=by_hash, doraise=True)


def run_all(jobs: Sequence[Job], trees: Sequence[Path]) -> Iterator[Outcome]:
    """Yield the outcome of each job, running as many at once as there are copies of the tree."""
    waiting, free = deque(jobs), list(trees)
    running: dict[int, Run] = {}
    try:
        while waiting or running:
            while waiting and free:
                run = Run(waiting.popleft(), free.pop())
                running[run.start()] = run
            process, status, cpu_seconds = wait_for_one(running)
            run = running.pop(process)
            free.append(run.tree)
            yield run.ended(status, cpu_seconds)
    finally:
        for process in running:
            kill_group(process)


def wait_for_one(running: dict[int, Run]) -> tuple[int, int, float]:
    """Wait until a process ends, and kill those that take too long.

    Returns:
        Its id, its status, and the seconds of CPU that it and its children used.
    """
    while True:
        for process, run in running.items():
            ended, status, used = os.wait4(process, os.WNOHANG)
            if ended:
                kill_group(process)  # what a test may have left behind
                return process, status, used.ru_utime + used.ru_stime
            if time.monotonic() - run.started > run.job.max_seconds:
                kill_group(process)
        time.sleep(POLL_SECONDS)


def kill_group(process: int) -> None:
    """Kill every process that a job started."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
