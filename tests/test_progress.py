"""Signs of life of a stage that would be silent."""

import logging
import time
from collections.abc import Iterator

import pytest

from higgs_pipe import progress
from higgs_pipe.progress import activity, duration, logger


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines of the log; a silence is too long after 0.2 s."""
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.2)
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_silent_activity_reports_its_progress(lines: list[str]) -> None:
    logger.info("before")
    with activity("measuring", total=4000, unit="files") as measuring:
        measuring.advance(1000)
        time.sleep(0.5)
    lines.remove("before")
    assert lines[0].startswith("measuring: 1,000 of 4,000 files, ")
    assert lines[0].endswith(" s left")


def test_an_activity_that_logs_gets_no_extra_progress_line(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 1.5)
    logger.info("before")
    with activity("training"):
        for step in range(20):  # over two seconds
            logger.info("step %d", step)
            time.sleep(0.1)
    assert lines == ["before", *(f"step {step}" for step in range(20))]


def test_a_debug_line_does_not_count_as_a_sign_of_life(lines: list[str]) -> None:
    logger.info("before")
    with activity("loading"):
        for _ in range(5):
            logger.debug("detail")
            time.sleep(0.1)
    assert "loading" in lines


def test_the_innermost_of_nested_activities_is_reported(lines: list[str]) -> None:
    logger.info("before")
    with activity("training"):
        with activity("speaking"):
            time.sleep(0.5)
        assert {line.split(":")[0] for line in lines} == {"before", "speaking"}


def test_steps_of_an_earlier_run_do_not_count_for_the_remaining_time() -> None:
    with activity("training", total=100, unit="steps", done=90) as training:
        assert training.left() == ""
        time.sleep(0.1)
        training.advance(5)
        assert training.left() == "0 s left"
        assert training.line() == "training: 95 of 100 steps, 0 s left"


def test_a_hidden_progress_line_is_not_retried_endlessly(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.setLevel(logging.WARNING)
    tried: list[progress.Activity] = []

    def line(asked: progress.Activity) -> str:
        tried.append(asked)
        return ""

    monkeypatch.setattr(progress.Activity, "line", line)
    with activity("loading"):
        time.sleep(0.5)
    assert lines == []
    assert len(tried) < 50


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s"), (100, "2 min"), (5999, "1 h 40 min"), (7500, "2 h 5 min")]
)
def test_durations_are_shown_in_readable_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
