"""Output of a run: ``metrics.jsonl``, the log, the tracker's curves, alarms."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from higgs_pipe.data.files import write_text
from higgs_pipe.training.alarms import Alarms
from higgs_pipe.training.checkpoints import write_errors_named
from higgs_pipe.training.hashed_lines import with_hash

logger = logging.getLogger("higgs_pipe")

SHOWN = [f"{p}{n}" for p in ("", "eval_") for n in ("loss", "text_loss", "audio_loss", "stop_loss")]


@dataclass(frozen=True)
class MetricsLog:
    """Log of a run: every process feeds its alarms, only the main process writes.

    The lines are also kept in memory: while a job that is ending saves its checkpoint, the workflow
    may already remove the file.
    """

    path: Path  # metrics.jsonl
    alarms: Alarms
    accelerator: Accelerator  # with its trackers
    num_steps: int
    lines: list[str] = field(default_factory=list)  # of the main process

    def text(self) -> str:
        """Return everything written so far by the main process."""
        return "".join(self.lines)

    def restore(self, text: str) -> None:
        """Begin with these lines, and with the alarms that they lead to."""
        self.alarms.replay(text)
        if self.accelerator.is_main_process:
            self.lines[:] = text.splitlines(keepends=True)
            with write_errors_named(self.path):
                write_text(self.path, text)

    def write(self, step: int, values: Mapping[str, float], note: str = "") -> None:
        """Append a line, and each alarm that it raises; the note goes only to the log."""
        alarms = self.alarms.check({"step": step, **values})
        if not self.accelerator.is_main_process:
            return
        self._append({"step": step, **values})
        with write_errors_named(self.path):
            self.accelerator.log(values, step=step)
        names = [name for name in SHOWN if name in values] or values
        shown = [f"{name} {values[name]:.4g}" for name in names]
        logger.info("%s", "  ".join([self._place(step), *shown, *filter(None, [note])]))
        for alarm in alarms:
            self._append(alarm.as_line())
            place = self._place(alarm.step)
            logger.warning("%s  alarm: %s: %s", place, alarm.name, alarm.message)

    def finish(self, step: int, values: Mapping[str, float]) -> None:
        """Append the last line, with a hash of all lines for the report to check."""
        self.write(step, values)
        if self.accelerator.is_main_process:
            with write_errors_named(self.path):
                write_text(self.path, with_hash(self.text()))

    def _place(self, step: int) -> str:
        return f"step {step:>{len(str(self.num_steps))}}/{self.num_steps}"

    def _append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False) + "\n"
        self.lines.append(text)
        with write_errors_named(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)
