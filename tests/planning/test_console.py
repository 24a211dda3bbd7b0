"""Snakemake's lines on the terminal: one for each job."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from higgs_pipe.planning.console import SNAKEMAKE, TERMINAL, shorten

LOGGER = logging.getLogger(SNAKEMAKE)


class Lines(logging.Handler):
    """Collects the messages that it shows."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.set_name(name)
        self.shown: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.shown.append(record.getMessage())


@pytest.fixture
def handlers() -> Iterator[tuple[Lines, Lines]]:
    """Snakemake's terminal and its log file, with the terminal's lines shortened."""
    terminal, file = Lines(TERMINAL), Lines("DefaultLogFileHandler")
    for handler in (terminal, file):
        LOGGER.addHandler(handler)
    shorten()
    yield terminal, file
    for handler in (terminal, file):
        LOGGER.removeHandler(handler)


def log(message: str, event: str | None = None, **values: Any) -> None:
    LOGGER.error(message, extra={**values, **({"event": event} if event else {})})


def test_a_job_is_one_line_with_the_number_of_finished_jobs(handlers: tuple[Lines, Lines]) -> None:
    log("stats", "run_info", stats={"total": 30})
    log("block", "job_info", rule_name="list_rows", output=["rows"], wildcards={})
    log("1 of 31", "progress", done=1, total=31)
    shard = {"shard": "shard-00001"}
    log("block", "job_info", rule_name="measure_shard", output=["measured"], wildcards=shard)
    of_own = {"base": "", "model": "codec"}
    log("block", "job_info", rule_name="pin_model", output=["pinned"], wildcards=of_own)
    lines = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in handlers[0].shown]
    of_shard = "[1/31] measure_shard shard-00001"
    assert lines == ["[0/30] list_rows", of_shard, "[1/31] pin_model codec"]


def test_jobs_without_results_of_interest_are_not_shown(handlers: tuple[Lines, Lines]) -> None:
    of_train = {"stage": "train"}
    log("block", "job_info", rule_name="stage_config", output=["train.json"], wildcards=of_train)
    log("block", "job_info", rule_name="validate", output=[], wildcards={})
    log("Finished jobid: 1", "job_finished")
    log("Select jobs to execute...")
    assert handlers[0].shown == []


def test_errors_and_other_lines_are_shown_unchanged(handlers: tuple[Lines, Lines]) -> None:
    log("Error in rule pack", "job_error")
    log("Nothing to be done (all requested files are present and up to date).")
    log("new in another version", "some_event")
    assert len(handlers[0].shown) == 3


def test_the_log_file_keeps_every_line(handlers: tuple[Lines, Lines]) -> None:
    log("block", "job_info", rule_name="stage_config", wildcards={"stage": "train"})
    log("Select jobs to execute...")
    assert handlers[1].shown == ["block", "Select jobs to execute..."]


def test_a_dry_run_shows_the_jobs_of_each_rule_once_and_the_reasons() -> None:
    terminal = Lines(TERMINAL)
    LOGGER.addHandler(terminal)
    shorten(is_dry_run=True)
    log("Building DAG of jobs...")
    for _ in range(2):
        log("list_rows 1", "run_info", stats={"total": 1})
        log("block", "job_info", rule_name="list_rows", output=["rows"], wildcards={})
    log("Reasons:\n    (check individual jobs above for details)\n    list_rows")
    LOGGER.removeHandler(terminal)
    assert terminal.shown[0] == "list_rows 1"
    assert len(terminal.shown) == 2
    assert "snakemake -np shows each job" in terminal.shown[1]
    assert terminal.shown[1].endswith("list_rows")
