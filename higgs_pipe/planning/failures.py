"""The summary of a failed run: each failed stage's message, its log and the next step."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from higgs_pipe.planning.recordings import FileState, state_of

NUM_CAUSES_SHOWN = 5
NUM_LINES_SHOWN = 30
# As higgs_pipe.cli writes it; the message may go on over further lines.
FAILURE = re.compile(r"^[\d-]+ [\d:,]+ (ERROR|CRITICAL) ", re.MULTILINE)


def log_states(logs_dir: Path) -> dict[Path, FileState]:
    """Return the size and time of each log, to recognise those that a run writes.

    Times alone do not suffice: the clock may be set back, or be another machine's.
    """
    return {log: state_of(str(log)) for log in logs_dir.rglob("*.log")}


def failure_lines(logs_dir: Path, before: Mapping[Path, FileState]) -> list[str]:
    """Return the errors in the logs of a run, equal ones once, and the next step.

    Args:
        logs_dir: Folder of the jobs' logs.
        before: :func:`log_states` before the run; a log that is unchanged since then is not read.

    Returns:
        Lines to print at the end; none if no log has an error, as after Ctrl-C.
    """
    logs_by_cause: dict[str, list[Path]] = {}
    for log, state in sorted(log_states(logs_dir).items()):
        if state != before.get(log):
            text = log.read_text(encoding="utf-8", errors="replace")
            if found := FAILURE.search(text):
                logs_by_cause.setdefault(text[found.end() :].rstrip(), []).append(log)
    if not logs_by_cause:
        return []
    lines = [
        line
        for cause in list(logs_by_cause.items())[:NUM_CAUSES_SHOWN]
        for line in _cause_lines(*cause)
    ]
    if len(logs_by_cause) > NUM_CAUSES_SHOWN:
        lines += ["", f"... and {len(logs_by_cause) - NUM_CAUSES_SHOWN} other errors"]
    return [*lines, "", "Then run the same command again; finished results are kept."]


def _cause_lines(cause: str, logs: list[Path]) -> Iterator[str]:
    """Yield the lines on one cause: the last ones of its message, and the logs that have it."""
    lines = cause.splitlines()
    yield ""
    if len(lines) > NUM_LINES_SHOWN:
        yield "..."
    yield from lines[-NUM_LINES_SHOWN:]
    others = f" (and {len(logs) - 1} more)" if len(logs) > 1 else ""
    yield f"log: {logs[0]}{others}"
