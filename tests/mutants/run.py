"""Make each small mistake in a copy of the tree, and see whether the tests named for it notice.

A mistake survives if all its tests pass. Before, the same tests run on the tree as it is, where all
must pass; a sample leaves that to ``make test``.

Exits with 1 if a mistake survives or cannot be made any more, or a test fails without it.
"""

import argparse
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutants.forks import ROOT, Job, Outcome, copy_tree, import_what_is_slow, run_all
from mutants.mistakes import Mistake, read_mistakes
from mutants.settings import read_groups
from pages import machine_now, put_table

MAX_SECONDS = 240.0  # per mistake
MAX_SECONDS_UNCHANGED = 1200.0
NUM_SHOWN = 3000  # last characters of pytest's output


def main() -> int:
    """Run the command; return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments = parse_arguments()
    everything = all_mistakes()
    if faults := [fault for mistake in everything for fault in mistake.faults(ROOT)]:
        print("\n".join(faults), file=sys.stderr)
        return 1
    chosen = choose(everything, arguments)
    jobs = [Job(mistake.tests, MAX_SECONDS, mistake) for mistake in chosen]
    if arguments.sample == 1:
        jobs = unchanged_jobs(chosen, arguments.jobs) + jobs
    started = time.monotonic()
    import_what_is_slow()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [Path(scratch) / f"{number}" for number in range(arguments.jobs)]
        for tree in trees:
            copy_tree(tree)
        for outcome in run_all(jobs, trees):
            print(line_of(outcome), flush=True)
            outcomes.append(outcome)
    faulty = [outcome for outcome in outcomes if outcome.fault]
    for outcome in faulty:
        shown = outcome.output[-NUM_SHOWN:]
        print(f"\n{outcome.job.title}: {outcome.fault}\n{shown}", file=sys.stderr)
    summary = summarize(len(chosen), len(everything), time.monotonic() - started)
    print(f"{summary}: {f'{len(faulty)} FAULTS' if faulty else 'each was noticed'}")
    if arguments.page and not faulty:
        put_table(arguments.page, "mutants", table(outcomes, summary))
    return 1 if faulty else 0


def all_mistakes() -> list[Mistake]:
    """Return the mistakes of every table."""
    return [*read_mistakes(), *(mistake for group in read_groups() for mistake in group.mistakes)]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=1, help="try one mistake in so many")
    parser.add_argument("--seed", default="0", help="decides which")
    parser.add_argument("--only", nargs="+", default=[], help="try those with a part of a title")
    # One more than cores: a fifth of the time is waiting.
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)) + 1)
    parser.add_argument("--page", type=Path, help="write the table into this page")
    return parser.parse_args()


def choose(mistakes: Sequence[Mistake], arguments: argparse.Namespace) -> list[Mistake]:
    """Return the mistakes to try."""
    if arguments.only:
        mistakes = [m for m in mistakes if any(part in m.title for part in arguments.only)]
    number = math.ceil(len(mistakes) / arguments.sample)
    indices = random.Random(arguments.seed).sample(range(len(mistakes)), number)
    return [mistakes[index] for index in sorted(indices)]


def unchanged_jobs(mistakes: Sequence[Mistake], num_jobs: int) -> list[Job]:
    """Return jobs that run all tests of the mistakes on the tree as it is, each file in one."""
    tests = sorted({test for mistake in mistakes for test in mistake.tests})
    files = sorted({test.partition("::")[0] for test in tests})
    parts = [files[number::num_jobs] for number in range(num_jobs)]
    return [
        Job(tuple(t for t in tests if t.partition("::")[0] in part), MAX_SECONDS_UNCHANGED)
        for part in parts
        if part
    ]


def line_of(outcome: Outcome) -> str:
    """Describe an outcome in a line: mistake, promise, and the test that noticed."""
    mistake, fault = outcome.job.mistake, outcome.fault
    seconds = f"({outcome.seconds:.0f} s, {outcome.cpu_seconds:.1f} of CPU time)"
    if mistake is None:
        found = fault or f"{len(outcome.job.tests)} named tests pass"
        return f"{outcome.job.title}: {found} {seconds}"
    found = f"FAULT: {fault}" if fault else f"noticed by {name_of(outcome.failed[0])}"
    return f"{mistake.title} | {mistake.promise} | {found} {seconds}"


def name_of(test: str) -> str:
    """Return the name of a test without its file and its parameters."""
    return test.partition("::")[2].partition("[")[0]


def summarize(num_tried: int, num_mistakes: int, seconds: float) -> str:
    """Say how many mistakes were tried, and how long that took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_minutes = (used.ru_utime + used.ru_stime) / 60
    return (
        f"{num_tried} of {num_mistakes} mistakes tried in {seconds / 60:.1f} minutes "
        f"({cpu_minutes:.1f} of CPU time)"
    )


def table(outcomes: Sequence[Outcome], summary: str) -> list[str]:
    """Return the table of all outcomes as lines of Markdown."""
    noticed = [(o.job.mistake, o.failed[0]) for o in outcomes if o.job.mistake]
    return [
        f"{machine_now()}: {summary}.",
        "",
        "| mistake | promise that it breaks | file | noticed by |",
        "|---|---|---|---|",
        *(
            f"| `{mistake.title}` | {mistake.promise} | `{mistake.file}` | `{name_of(test)}` |"
            for mistake, test in sorted(noticed, key=lambda pair: pair[0].title)
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
