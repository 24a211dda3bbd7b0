"""The last words of a run that failed: what each failed stage said, its log and the next step."""

import re
from collections.abc import Iterator
from pathlib import Path

NUM_CAUSES_SHOWN = 5
NUM_LINES_SHOWN = 30
# As higgs_pipe.cli writes it; the message may go on over further lines.
FAILURE = re.compile(r"^[\d-]+ [\d:,]+ (ERROR|CRITICAL) ", re.MULTILINE)


def failure_lines(logs_dir: Path, since: float) -> list[str]:
    """Return the errors in the logs of a run, equal ones once, and the next step.

    Args:
        logs_dir: Folder of the jobs' logs.
        since: Time (in seconds since the epoch) at which the run started; older logs are not read.

    Returns:
        Lines to print last; none if no log has an error, as after Ctrl-C.
    """
    logs_by_cause: dict[str, list[Path]] = {}
    for log in sorted(logs_dir.rglob("*.log")):
        if log.stat().st_mtime >= since:
            text = log.read_text(encoding="utf-8", errors="replace")
            if found := FAILURE.search(text):
                logs_by_cause.setdefault(text[found.end() :].rstrip(), []).append(log)
    if not logs_by_cause:
        return []
    lines = [
        line for cause in list(logs_by_cause.items())[:NUM_CAUSES_SHOWN] for line in _told(*cause)
    ]
    if len(logs_by_cause) > NUM_CAUSES_SHOWN:
        lines += ["", f"... and {len(logs_by_cause) - NUM_CAUSES_SHOWN} other errors"]
    return [*lines, "", "Then run the same command again; what is finished stays."]


def _told(cause: str, logs: list[Path]) -> Iterator[str]:
    """Yield the lines on one cause: its last ones, and the logs that have it."""
    lines = cause.splitlines()
    yield ""
    if len(lines) > NUM_LINES_SHOWN:
        yield "..."
    yield from lines[-NUM_LINES_SHOWN:]
    others = f" (and {len(logs) - 1} more)" if len(logs) > 1 else ""
    yield f"log: {logs[0]}{others}"
