"""Snakemake's lines on the terminal: one per job; the stages log the rest.

A dry run (``-n``) shows how many jobs of each rule would run and why, on one screen. Snakemake's
own log, whose path it prints at the end, has every line. ``--printshellcmds`` and ``--verbose``
bring them back to the terminal.
"""

import logging
import time
from typing import Any

SNAKEMAKE = "snakemake.logging"
TERMINAL = "DefaultStreamHandler"

# As Snakemake 9.27 names and words them. What another version renames is shown again.
HIDDEN_EVENTS = {
    "job_finished",
    "job_started",
    "progress",
    "resources_info",
    "run_info",
    "shellcmd",
    "workflow_started",
}
HIDDEN_BEGINNINGS = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Conda environments: ignored",
    "DAG of jobs will be updated",
    "Finished retrieval",
    "Finished upload",
    "Removing local copy of storage file",
    "Retrieving from storage",
    "Select jobs to execute",
    "Storing in storage",
    "Updating checkpoint dependencies",
    "Using shell",
    "Using workflow specific profile",
)
# In the reasons of a dry run, and what stands there.
DETAILS_ABOVE = "(check individual jobs above for details)"
DETAILS = "(snakemake -np shows each job, its own reason and its command)"
# Take no time, and nobody waits for what they make.
SETTINGS_RULES = ("stage_config", "stage_config_other")


def shorten(is_dry_run: bool = False) -> None:
    """Show a line per job on the terminal instead of Snakemake's blocks; in a dry run, none."""
    for handler in logging.getLogger(SNAKEMAKE).handlers:
        if handler.get_name() == TERMINAL:
            handler.addFilter(PlanLines() if is_dry_run else JobLines(handler))


class PlanLines(logging.Filter):
    """Drops the lines of a dry run except reasons and the jobs of each rule, which come twice."""

    def __init__(self) -> None:
        super().__init__()
        self._has_sums = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is shown."""
        event = vars(record).get("event")
        if event == "run_info" and not self._has_sums:
            self._has_sums = True
            return True
        is_hidden = str(record.msg).startswith(HIDDEN_BEGINNINGS) and not event
        if DETAILS_ABOVE in str(record.msg):
            record.msg = str(record.msg).replace(DETAILS_ABOVE, DETAILS)
        return event not in {*HIDDEN_EVENTS, "job_info"} and not is_hidden


class JobLines(logging.Filter):
    """Drops Snakemake's lines that are not about the work, and replaces each block by a line.

    The line has the time, the numbers of finished and of all jobs, the rule and its wildcards:
    ``17:00:43  [19/30] measure_shard shard-00001``.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._done = 0
        self._total: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is shown unchanged."""
        fields: dict[str, Any] = vars(record)
        event = fields.get("event")
        if event == "run_info" and isinstance(fields.get("stats"), dict):
            self._total = fields["stats"].get("total")
        if event == "progress":
            self._done, self._total = fields["done"], fields["total"]
        if event == "job_info" and "rule_name" in fields:
            makes_files = bool(fields.get("output"))  # a target makes none
            if makes_files and fields["rule_name"] not in SETTINGS_RULES:
                line = {"msg": self._line(fields), "levelno": record.levelno}
                self._handler.handle(logging.makeLogRecord({**line, "levelname": record.levelname}))
            return False
        is_hidden = str(record.msg).startswith(HIDDEN_BEGINNINGS) and not event
        return event not in HIDDEN_EVENTS and not is_hidden

    def _line(self, fields: dict[str, Any]) -> str:
        count = "" if self._total is None else f"[{self._done}/{self._total}] "
        wildcards = [str(value) for value in dict(fields.get("wildcards") or {}).values()]
        words = [fields["rule_name"], *filter(None, wildcards)]  # the base's may be empty
        return f"{time.strftime('%H:%M:%S')}  {count}{' '.join(words)}"
