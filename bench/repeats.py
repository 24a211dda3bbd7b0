"""Repeat tests on a busy machine and count, per test, how often it fails and how slow it gets.

``make repeats TIMES=50`` repeats the tests marked slow, ``TESTS="tests/slurm"`` others. They run on
a copy of the tree, so that edits meanwhile change nothing, beside processes that do nothing but
keep the cores busy. A Ctrl-C ends it after the round; what was counted is kept in ``--counts``, to
which a later call adds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pages import machine_now, put_table

ROOT = Path(__file__).parents[1]
RAN = (0, 1)  # pytest's exit codes: all passed, some failed
NUM_SHOWN = 4000  # last characters of pytest's output


@dataclass
class Count:
    """How often a test ran and failed, and its slowest run in seconds."""

    runs: int = 0
    failures: int = 0
    slowest_seconds: float = 0.0

    def add(self, has_failed: bool, seconds: float) -> None:
        """Count a run."""
        self.runs += 1
        self.failures += has_failed
        self.slowest_seconds = max(self.slowest_seconds, seconds)


def main() -> int:
    """Run the command; return its exit status."""
    arguments = parse_arguments()
    counts = read_counts(arguments.counts)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    with tempfile.TemporaryDirectory(prefix="repeats-") as scratch:
        tree = copy_tree(Path(scratch) / "tree")
        with busy_neighbours(arguments.neighbours):
            for round_ in range(1, arguments.times + 1):
                started = time.monotonic()
                report = Path(scratch) / "report.xml"
                output = run_tests(tree, arguments.tests, arguments.options, report)
                failed = count_report(report, counts)
                write_counts(arguments.counts, counts)
                seconds = time.monotonic() - started
                print(f"round {round_}: {seconds:.0f} s, failed: {failed or 'none'}", flush=True)
                if failed:
                    print(output[-NUM_SHOWN:], flush=True)
                if stopped:
                    break
    if arguments.page:
        beside = arguments.beside or f"{arguments.neighbours} processes that keep the cores busy"
        put_table(arguments.page, "repeats", table(counts, beside))
    return 1 if any(count.failures for count in counts.values()) else 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", default=["-m", "slow"], help="files or tests")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--options", default="", help="more options of pytest")
    parser.add_argument("--neighbours", type=int, default=2 * len(os.sched_getaffinity(0)))
    parser.add_argument("--beside", help="what else kept the machine busy, for the page")
    parser.add_argument("--counts", type=Path, default=Path("repeats.json"))
    parser.add_argument("--page", type=Path, help="write the table to this page")
    return parser.parse_args()


def copy_tree(target: Path) -> Path:
    """Copy the files that Git knows of; return the folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@contextmanager
def busy_neighbours(number: int) -> Iterator[None]:
    """Keep so many processes busy meanwhile; they end with this one."""
    program = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10**5))"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_tests(tree: Path, tests: Sequence[str], options: str, report: Path) -> str:
    """Run tests once, in a session of their own that a Ctrl-C does not reach.

    Returns
    -------
    What pytest printed.

    Raises
    ------
    RuntimeError
        Pytest itself failed, or found no test.
    """
    words = [*options.split(), "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *tests]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        start_new_session=True,
    )
    if finished.returncode not in RAN:
        raise RuntimeError(finished.stdout)
    return finished.stdout


def count_report(report: Path, counts: dict[str, Count]) -> list[str]:
    """Count each test of a report in JUnit's form; return those that failed."""
    has_failed: dict[str, bool] = {}
    seconds: dict[str, float] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        name = f"{case.get('classname')}::{case.get('name')}"
        is_bad = case.find("failure") is not None or case.find("error") is not None
        has_failed[name] = has_failed.get(name, False) or is_bad
        seconds[name] = max(seconds.get(name, 0.0), float(case.get("time", 0)))
    for name, bad in has_failed.items():
        counts.setdefault(name, Count()).add(bad, seconds[name])
    return [name for name, bad in has_failed.items() if bad]


def read_counts(path: Path) -> dict[str, Count]:
    """Read what earlier calls counted."""
    with suppress(FileNotFoundError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Count(**values) for name, values in found.items()}
    return {}


def write_counts(path: Path, counts: dict[str, Count]) -> None:
    """Write what was counted."""
    content = {name: asdict(count) for name, count in sorted(counts.items())}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(counts: dict[str, Count], beside: str) -> list[str]:
    """Return the table: a line per test, those that failed first, then the slowest."""
    rows = sorted(counts.items(), key=lambda item: (-item[1].failures, -item[1].slowest_seconds))
    total = sum(count.runs for _, count in rows)
    failures = sum(count.failures for _, count in rows)
    return [
        f"{machine_now()}, beside {beside}: tests {len(rows)}, runs {total}, failures {failures}.",
        "",
        "| test | runs | failures | slowest, s |",
        "|---|---|---|---|",
        *(
            f"| `{name.replace('|', '/')}` | {c.runs} | {c.failures} | {c.slowest_seconds:.1f} |"
            for name, c in rows
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
