"""Output of a run: ``metrics.jsonl``, the log, the tracker's curves, alarms, a progress bar."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from higgs_pipe.data.files import write_text
from higgs_pipe.training.alarms import Alarms
from higgs_pipe.training.checkpoints import write_errors_named

logger = logging.getLogger("higgs_pipe")

SHOWN = [f"{p}{n}" for p in ("", "eval_") for n in ("loss", "text_loss", "audio_loss", "stop_loss")]


@dataclass(frozen=True)
class MetricsLog:
    """Log of a run: every process feeds its alarms, the main process alone writes."""

    path: Path  # metrics.jsonl
    alarms: Alarms
    accelerator: Accelerator  # with its trackers

    def text(self) -> str:
        """Return everything written so far."""
        return self.path.read_text(encoding="utf-8")

    def restore(self, text: str) -> None:
        """Begin with these lines, and with the alarms that they lead to."""
        self.alarms.replay(text)
        if self.accelerator.is_main_process:
            with write_errors_named(self.path):
                write_text(self.path, text)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line, and each alarm that it sets off."""
        alarms = self.alarms.check({"step": step, **values})
        if not self.accelerator.is_main_process:
            return
        self._append({"step": step, **values})
        with write_errors_named(self.path):
            self.accelerator.log(values, step=step)
        names = [name for name in SHOWN if name in values] or values
        shown = "  ".join(f"{name} {values[name]:.5g}" for name in names)
        logger.info("step %d  %s", step, shown)
        for alarm in alarms:
            self._append(alarm.as_line())
            logger.warning("step %d  alarm: %s: %s", alarm.step, alarm.name, alarm.message)

    def _append(self, line: Mapping[str, Any]) -> None:
        with write_errors_named(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")


@contextmanager
def progress_bar(done: int, total: int, is_main_process: bool) -> Iterator[tqdm]:
    """Show a bar of steps with the log's lines above it, on the main process's terminal."""
    is_shown = is_main_process and sys.stderr.isatty()
    with (
        logging_redirect_tqdm([logger]),
        tqdm(initial=done, total=total, unit="step", disable=not is_shown) as bar,
    ):
        yield bar
