"""Progress lines: a stage that would be silent logs its progress every ten seconds.

::

    with activity("measuring", total=len(files), unit="recordings") as measuring:
        for file in files:
            ...
            measuring.advance()

logs ``measuring: 3,000 of 50,000 recordings, 12 min left``, but only after ten seconds without any
other line. In a long activity the lines become less frequent. They go to the terminal and to the
log file of the main process, like all others.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("higgs_pipe")

SILENT_SECONDS = 10.0
SHARE_OF_ELAPSED = 0.02  # in the first eight minutes ten seconds, after an hour seventy


class _LastLine(logging.Filter):
    """Remembers when the last line was logged."""

    at = time.monotonic() - time.process_time()  # about when the process began

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.INFO:  # the others go to the log file alone
            self.at = time.monotonic()
        return True


_last_line = _LastLine()
logger.addFilter(_last_line)
_open: list["Activity"] = []  # the innermost one last, which alone logs


class Activity:
    """A long activity.

    Args:
        name: A participle: measuring, speaking.
        total: Number of units, if they are counted.
        unit: Name of the units, in the plural.
        done: Units done by an earlier run.
    """

    def __init__(self, name: str, total: int | None, unit: str, done: int) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = done
        self._done_before = done
        self._started = time.monotonic()
        self._ended = threading.Event()

    def advance(self, number: int = 1) -> None:
        """Count units as done."""
        self.done += number

    def left(self) -> str:
        """Return the time left at the pace so far, as ``3 min left``.

        It is empty as long as no unit is done.
        """
        num_done = self.done - self._done_before
        if self.total is None or num_done == 0:
            return ""
        seconds = self._elapsed() / num_done * max(0, self.total - self.done)
        return f"{duration(seconds)} left"

    def line(self) -> str:
        """Return the progress as a line."""
        if self.total is None:
            elapsed = self._elapsed()
            return f"{self.name}: {duration(elapsed)} so far" if elapsed > 1 else self.name
        parts = [f"{self.name}: {self.done:,} of {self.total:,} {self.unit}", self.left()]
        return ", ".join(filter(None, parts))

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _log_in_silence(self) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            longest = max(SILENT_SECONDS, SHARE_OF_ELAPSED * self._elapsed())
            if _open[-1] is self and time.monotonic() - _last_line.at >= longest:
                logger.info("%s", self.line())
                _last_line.at = time.monotonic()  # also where the level hides the line
            wait = max(_last_line.at + longest - time.monotonic(), SILENT_SECONDS / 10)


@contextmanager
def activity(
    name: str, total: int | None = None, unit: str = "", done: int = 0
) -> Iterator[Activity]:
    """Log the block's progress while nothing else is logged; arguments as for :class:`Activity`."""
    running = Activity(name, total, unit, done)
    thread = threading.Thread(target=running._log_in_silence, daemon=True)
    _open.append(running)
    thread.start()
    try:
        yield running
    finally:
        running._ended.set()
        thread.join()
        _open.remove(running)


def duration(seconds: float) -> str:
    """Render a duration as text: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
