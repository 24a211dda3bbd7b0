"""Run the tests in a copy of the tree and list each line that none reaches, with the reason.

    PYTHONPATH=tests:bench:TOOLS python -m uncovered.run --page docs/proof.md

Child processes count: they find a ``sitecustomize.py`` by their PYTHONPATH. Reasons stand
in ``reasons.toml``. Ends with 1 where a test fails, a line has no reason, or a reason names
nothing.
``--report`` takes a report that coverage wrote before instead of running the tests.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from helpers import ROOT
from pages import machine_now, put_table

REASONS = Path(__file__).with_name("reasons.toml")
# They need a browser and a cluster, and run nothing that others do not.
LEFT_OUT = ("browser", "slurm")
NOT_COPIED = (".venv", "__pycache__", "results", ".snakemake", ".*_cache")
SITE = "import sys\nsys.path.append({tools!r})\nimport coverage\ncoverage.process_startup()\n"
SETTINGS = """[run]
source = {tree}/higgs_pipe
parallel = true
concurrency = thread, multiprocessing
patch = _exit, fork
data_file = {tree}/.coverage
[report]
exclude_also =
    if __name__ == "__main__":
    if TYPE_CHECKING:
    def __(repr|str)__
"""


@dataclass(frozen=True)
class Reason:
    """Why lines of a function, or of a whole file, are reached by no test."""

    file: str
    because: str
    function: str | None = None  # as coverage names it: Class.method

    def covers(self, file: str, function: str) -> bool:
        """Return whether the reason applies to this function."""
        return file == self.file and self.function in (None, function)

    def fault(self) -> str | None:
        """Return what it names that does not exist."""
        path = ROOT / self.file
        if not path.is_file():
            return f"{REASONS.name}: there is no {self.file}"
        if self.function is None or self.function in functions_of(path):
            return None
        return f"{REASONS.name}: {self.file} has no {self.function}"


@dataclass(frozen=True)
class Gap:
    """Lines of a function that no test reaches."""

    file: str
    function: str
    lines: tuple[int, ...]
    because: str | None

    @property
    def name(self) -> str:
        """``function 12-14, 20``."""
        return f"{self.function or 'module'} {spans(self.lines)}"


def functions_of(path: Path) -> set[str]:
    """Return the functions of a module: ``f``, ``Class.method``, and "" for the module itself."""

    def names(node: ast.AST, prefix: str) -> Iterable[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + child.name
                yield from names(child, f"{prefix}{child.name}.")
            else:
                yield from names(child, prefix)

    return {"", *names(ast.parse(path.read_text(encoding="utf-8")), "")}


def spans(lines: Sequence[int]) -> str:
    """Return line numbers as ``12-14, 20``."""
    runs = []
    for _, run in groupby(enumerate(lines), key=lambda item: item[1] - item[0]):
        numbers = [number for _, number in run]
        runs.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ", ".join(runs)


def read_reasons(path: Path = REASONS) -> list[Reason]:
    """Read the reasons."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Reason(**reason) for reason in table["reason"]]


def gaps_of(report: Mapping[str, Any], reasons: Sequence[Reason]) -> list[Gap]:
    """Return the lines that are not reached, by file and function.

    Args:
        report: What ``coverage json`` writes.
        reasons: Those of ``reasons.toml``; one for the function comes before one for its file.
    """
    gaps = []
    for file, found in sorted(report["files"].items()):
        for function, region in found["functions"].items():
            if not region["missing_lines"]:
                continue
            fitting = [reason for reason in reasons if reason.covers(file, function)]
            fitting.sort(key=lambda reason: reason.function is None)
            because = fitting[0].because if fitting else None
            gaps.append(Gap(file, function, tuple(region["missing_lines"]), because))
    return gaps


def run_tests(words: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Run the tests under coverage in a copy; return pytest's exit status and the report."""
    import coverage

    tools = str(Path(coverage.__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="uncovered-") as name:
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
        (tree / ".venv").symlink_to(ROOT / ".venv")
        site = Path(name) / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(tools=tools), encoding="utf-8")
        settings = site / "coveragerc"
        settings.write_text(SETTINGS.format(tree=tree), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": f"{site}:{tree}",
            "COVERAGE_PROCESS_START": str(settings),
        }
        left_out = [f"--ignore=tests/{folder}" for folder in LEFT_OUT]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
        command += ["--no-loadscope-reorder"]  # files with slow tests first
        tests = subprocess.run([*command, *left_out, *words], cwd=tree, env=environment)
        for action in (["combine", "--quiet"], ["json", "--quiet", "-o", "report.json"]):
            again = [sys.executable, "-m", "coverage", *action, f"--rcfile={settings}"]
            subprocess.run(again, cwd=tree, check=True)
        report: dict[str, Any] = json.loads((tree / "report.json").read_text(encoding="utf-8"))
    return tests.returncode, report


def table_of(report: Mapping[str, Any], gaps: Sequence[Gap]) -> list[str]:
    """Return lines of Markdown: the totals, and a line per module with a gap."""
    totals = report["totals"]
    whole = sum(not found["missing_lines"] for found in report["files"].values())
    lines = [
        f"{machine_now()}. {totals['covered_lines']:,} of {totals['num_statements']:,} lines, "
        f"{totals['percent_covered']:.1f} %; {whole} of {len(report['files'])} modules in full. "
        f"Left out: {', '.join(f'`tests/{folder}`' for folder in LEFT_OUT)}.",
        "",
        "| module | covered | lines that no test reaches | reason |",
        "|---|---:|---|---|",
    ]
    for file, of_file in groupby(gaps, key=lambda gap: gap.file):
        percent = report["files"][file]["summary"]["percent_covered"]
        for because, alike in groupby(of_file, key=lambda gap: gap.because):
            names = "; ".join(gap.name for gap in alike)
            shown = file.removeprefix("higgs_pipe/")
            lines.append(f"| `{shown}` | {percent:.0f} % | {names} | {because or '**none**'} |")
    return lines


def main() -> int:
    """Run, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--page", type=Path, help="page whose part is replaced")
    parser.add_argument("--report", type=Path, help="what coverage json wrote")
    parser.add_argument("tests", nargs="*", default=["tests"], help="more words for pytest")
    options = parser.parse_args()
    reasons = read_reasons()
    status, report = 0, {}
    if options.report:
        report = json.loads(options.report.read_text(encoding="utf-8"))
    else:
        status, report = run_tests(options.tests)
    gaps = gaps_of(report, reasons)
    lines = table_of(report, gaps)
    print("\n".join(lines))
    faults = [fault for reason in reasons if (fault := reason.fault())]
    faults += [f"{gap.file}: no reason for {gap.name}" for gap in gaps if gap.because is None]
    print("\n".join(faults), file=sys.stderr)
    if options.page:
        put_table(options.page, "coverage", lines)
    return 1 if status or faults else 0


if __name__ == "__main__":
    sys.exit(main())
