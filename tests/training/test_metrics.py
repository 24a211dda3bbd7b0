"""The lines of a run: the file, the log and the tracker say the same, and a restart continues."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from higgs_pipe.training.alarms import Alarm
from higgs_pipe.training.hashed_lines import with_hash
from higgs_pipe.training.metrics import MetricsLog


class SignsOfZero:
    """Alarms that are raised by a loss of 0, and note the lines that they are shown again."""

    def __init__(self) -> None:
        self.replayed = ""

    def check(self, line: Any) -> list[Alarm]:
        is_zero = line.get("loss") == 0
        return [Alarm(line["step"], "zero", "nothing is lost")] if is_zero else []

    def replay(self, text: str) -> None:
        self.replayed += text


def log_of(folder: Path, is_main: bool = True) -> tuple[MetricsLog, list[Any], SignsOfZero]:
    tracked: list[Any] = []
    accelerator: Any = SimpleNamespace(
        is_main_process=is_main, log=lambda values, step: tracked.append((step, values))
    )
    alarms: Any = SignsOfZero()
    return MetricsLog(folder / "metrics.jsonl", alarms, accelerator, 40), tracked, alarms


def lines_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_in_file_log_and_tracker_and_its_alarm_follows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, tracked, _ = log_of(tmp_path)
    with caplog.at_level(logging.INFO, "higgs_pipe"):
        log.write(3, {"eval_loss": 2.5, "eval_stop_loss": 0.5, "speed": 9.0}, "a note")
        log.write(7, {"loss": 0.0})
    alarm = {"step": 7, "alarm": "zero", "message": "nothing is lost"}
    evaluated = {"eval_loss": 2.5, "eval_stop_loss": 0.5, "speed": 9.0}
    assert lines_of(tmp_path) == [{"step": 3, **evaluated}, {"step": 7, "loss": 0.0}, alarm]
    assert tracked == [(3, evaluated), (7, {"loss": 0.0})]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "step  3/40  eval_loss 2.5  eval_stop_loss 0.5  a note"),
        ("INFO", "step  7/40  loss 0"),
        ("WARNING", "step  7/40  alarm: zero: nothing is lost"),
    ]


def test_a_number_that_json_does_not_have_is_a_bug(tmp_path: Path) -> None:
    log, *_ = log_of(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        log.write(1, {"loss": float("nan")})


@pytest.mark.parametrize("is_main", [True, False])
def test_a_restored_log_goes_on_after_its_lines(tmp_path: Path, is_main: bool) -> None:
    before = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'
    (tmp_path / "metrics.jsonl").write_text("lost with the kill\n")
    log, _, alarms = log_of(tmp_path, is_main)
    log.restore(before)
    assert alarms.replayed == before
    log.finish(3, {"loss": 1.25})
    written = (tmp_path / "metrics.jsonl").read_text()
    if is_main:
        assert log.text() == before + '{"step": 3, "loss": 1.25}\n'
        assert written == with_hash(log.text()) != log.text()
    else:
        assert (log.text(), written) == ("", "lost with the kill\n")
