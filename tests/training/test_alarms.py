"""Alarms: each fires on its symptom, none on healthy training, and a resumed run keeps them."""

import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainings
from trainings import PackedCorpus

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.training.alarms import Alarms, code_entropies

LN_V = math.log(1026)


def alarms(num_steps: int = 100) -> Alarms:
    """Alarms for two codebooks whose held-out codes have an entropy of 5 nats."""
    return Alarms([5.0, 5.0], codebook_size=1026, num_steps=num_steps)


def training_line(step: int, **values: float) -> dict[str, float]:
    losses = {"loss": 6.0, "audio_loss_codebook_0": 5.0, "audio_loss_codebook_1": 5.5}
    other = {"grad_norm": 1.0, "learning_rate": 1e-4, "epoch": 2.0, "adapter_norm": float(step)}
    return {"step": step, **losses, **other, **values}


def held_out_line(step: int, **values: float) -> dict[str, float]:
    losses = {"audio_loss_codebook_0": 5.0, "audio_loss_codebook_1": 5.5}
    lowered = {"loss": 6.0, "stop_loss": 3.0 - step / 100, **losses}
    return {"step": step, **{f"eval_{k}": v for k, v in lowered.items()}, **values}


def names(alarms: Alarms, lines: list[dict[str, float]]) -> list[tuple[int, str]]:
    """(step, name) of every alarm that the lines give."""
    return [(a.step, a.name) for line in lines for a in alarms.check(line)]


def test_healthy_metrics_raise_no_alarm() -> None:
    lines = [held_out_line(0), training_line(1, learning_rate=0.0, epoch=0.1)]
    lines += [f(step) for step in range(10, 101, 10) for f in (training_line, held_out_line)]
    assert names(alarms(), lines) == []


@pytest.mark.parametrize(
    ("line", "fires"),
    [
        (held_out_line(50, eval_audio_loss_codebook_1=0.003), True),
        (held_out_line(0, eval_audio_loss_codebook_1=0.003), True),
        (held_out_line(50, eval_audio_loss_codebook_1=0.24), True),  # 5 % of 5 nats is 0.25
        (held_out_line(50, eval_audio_loss_codebook_1=0.26), False),
        (training_line(5, audio_loss_codebook_0=0.003, epoch=0.5), True),
        (training_line(5, audio_loss_codebook_0=0.003, epoch=1.0), True),  # its last step
        (training_line(5, audio_loss_codebook_0=0.003, epoch=1.5), False),  # learnt by heart
    ],
)
def test_a_held_out_loss_below_the_floor_raises_an_alarm(line: Any, fires: bool) -> None:
    found = names(alarms(), [held_out_line(0), line][line["step"] == 0 :])
    assert found == ([(line["step"], "audio_loss_below_floor")] if fires else [])


def test_the_floor_alarm_names_only_the_codebooks_below_it() -> None:
    (alarm,) = alarms().check(held_out_line(0, eval_audio_loss_codebook_1=0.003))
    assert "codebook 1 at 0.0030 of 5.00" in alarm.message
    assert "codebook 0" not in alarm.message


@pytest.mark.parametrize(
    ("step", "stop_loss", "fires"),
    [
        (40, 3.0, False),  # too early
        (50, 3.0, True),
        (50, 2.95, True),  # 1.7 % lower
        (50, 2.9, False),
        (50, 9.0, True),
    ],
)
def test_an_eos_loss_that_does_not_fall_raises_an_alarm(
    step: int, stop_loss: float, fires: bool
) -> None:
    lines = [held_out_line(0), held_out_line(step, eval_stop_loss=stop_loss)]
    assert names(alarms(), lines) == ([(step, "stop_loss_not_falling")] if fires else [])


@pytest.mark.parametrize(("probability", "fires"), [(0.51, False), (0.49, True)])
def test_an_eos_loss_that_is_low_from_the_start_need_not_fall(
    probability: float, fires: bool
) -> None:
    loss = -math.log(probability)
    lines = [held_out_line(step, eval_stop_loss=loss) for step in (0, 50)]
    assert names(alarms(), lines) == ([(50, "stop_loss_not_falling")] if fires else [])


def test_a_short_training_gets_no_slow_eos_alarm() -> None:
    lines = [held_out_line(0), held_out_line(19, eval_stop_loss=3.0)]
    assert names(alarms(num_steps=19), lines) == []


@pytest.mark.parametrize(
    ("last_losses", "fires"),
    [
        ([LN_V + 0.04, LN_V - 0.04, LN_V, LN_V, LN_V], True),
        ([LN_V + 0.06, LN_V - 0.04, LN_V, LN_V, LN_V], False),  # it still moves
        ([LN_V, LN_V, LN_V, LN_V, LN_V - 0.06], False),
        ([LN_V + 0.06, LN_V, LN_V, LN_V, LN_V, LN_V], True),  # it moved once
    ],
)
def test_a_codebook_stuck_at_ln_v_raises_an_alarm(last_losses: Any, fires: bool) -> None:
    lines = [
        training_line(60 + i, audio_loss_codebook_1=loss) for i, loss in enumerate(last_losses)
    ]
    last = 59 + len(last_losses)
    assert names(alarms(), lines) == ([(last, "codebook_at_ln_v")] if fires else [])
    assert ("codebook 1 " in alarms_message(lines)) == fires


def alarms_message(lines: list[dict[str, float]]) -> str:
    fed = alarms()
    return "".join(a.message for line in lines for a in fed.check(line))


def test_nearly_random_codes_may_stay_at_ln_v() -> None:
    lines = [training_line(60 + i, audio_loss_codebook_1=LN_V) for i in range(10)]
    assert names(Alarms([5.0, LN_V - 0.01], 1026, 100), lines) == []


@pytest.mark.parametrize(
    ("grad_norm", "name"),
    [(0.0, "gradient_zero"), (101.0, "gradient_exploding"), (100.0, None), (0.001, None)],
)
def test_a_vanishing_or_exploding_gradient_raises_an_alarm(
    grad_norm: float, name: str | None
) -> None:
    lines = [training_line(step) for step in range(1, 6)]
    lines.append(training_line(6, grad_norm=grad_norm))
    assert names(alarms(), lines) == ([(6, name)] if name else [])


def test_no_gradient_counts_as_exploding_before_there_is_a_median() -> None:
    lines = [training_line(step, grad_norm=1000.0**step) for step in range(1, 5)]
    assert names(alarms(), lines) == []


def test_a_gradient_after_zeros_is_not_called_exploding() -> None:
    lines = [training_line(step, grad_norm=0.0) for step in range(1, 6)]
    assert names(alarms(), [*lines, training_line(6)]) == [(1, "gradient_zero")]


def test_a_gradient_is_compared_with_the_median_and_not_the_mean() -> None:
    """The mean before the last is 18.8."""
    norms = [1.0, 1.0, 1.0, 1.0, 90.0, 150.0]
    lines = [training_line(step, grad_norm=norm) for step, norm in enumerate(norms, start=1)]
    assert names(alarms(), lines) == [(6, "gradient_exploding")]


def test_an_adapter_that_does_not_change_raises_an_alarm() -> None:
    lines = [
        training_line(1, adapter_norm=7.5, learning_rate=0.0),
        training_line(2, adapter_norm=7.5, learning_rate=0.0),  # warm-up starts at a rate of 0
        training_line(3, adapter_norm=7.5),
        training_line(4, adapter_norm=7.6),
        training_line(5, adapter_norm=7.6),
    ]
    assert names(alarms(), lines) == [(3, "adapter_unchanged"), (5, "adapter_unchanged")]


def test_an_alarm_repeats_only_after_the_condition_clears() -> None:
    norms = [1.0, 0.0, 0.0, 1.0, 0.0]
    lines = [training_line(step, grad_norm=norm) for step, norm in enumerate(norms, start=1)]
    assert names(alarms(), lines) == [(2, "gradient_zero"), (5, "gradient_zero")]


def test_alarm_state_is_restored_from_the_metrics_lines() -> None:
    lines = [held_out_line(0), *(training_line(step) for step in range(1, 6))]
    lines.append(training_line(6, grad_norm=0.0))
    fed, text = alarms(), ""
    for line in lines:
        text += json.dumps(line) + "\n"
        text += "".join(json.dumps(alarm.as_line()) + "\n" for alarm in fed.check(line))
    assert text.count("gradient_zero") == 1
    replayed = alarms()
    replayed.replay(text)
    assert replayed.active == fed.active != {}
    for line in (training_line(7, grad_norm=0.0), training_line(8, grad_norm=500.0)):
        assert replayed.check(line) == fed.check(line)


def test_entropy_is_computed_from_the_frequencies_of_the_labels() -> None:
    """Codebook 0: four codes, equally often; codebook 1: one code; labels of -100 do not count."""
    labels = [np.array([[0, 9], [1, 9], [-100, -100]]), np.array([[2, 9], [3, 9]])]
    assert code_entropies(labels) == pytest.approx([math.log(4), 0.0])


def test_entropy_of_a_packed_table_matches_a_plain_computation(corpus: PackedCorpus) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(corpus.eval_rows)["audio_labels"].to_pylist()
    codes = [frame[3] for row in rows for frame in row if frame[3] != -100]
    shares = [codes.count(code) / len(codes) for code in set(codes)]
    expected = -sum(share * math.log(share) for share in shares)
    found = code_entropies(np.array(row, np.int16) for row in rows)
    assert found[3] == pytest.approx(expected)


def train(corpus: PackedCorpus, output: Path, **settings: Any) -> list[dict[str, Any]]:
    """Train for 24 steps; returns the lines of metrics.jsonl."""
    few = {"rows_per_step": 2, "num_epochs": 8, "log_steps": 4, "eval_steps": 8}
    return trainings.train(corpus, output, **few | settings)


def given(metrics: list[dict[str, Any]]) -> dict[str, int]:
    """Name of each alarm of the metrics, and its step."""
    return {line["alarm"]: line["step"] for line in metrics if "alarm" in line}


def test_a_healthy_tiny_training_raises_no_alarm(corpus: PackedCorpus, tmp_path: Path) -> None:
    metrics = train(corpus, tmp_path, learning_rate=5e-3)
    assert metrics[-1]["step"] == 24
    assert given(metrics) == {}


def test_a_negligible_learning_rate_raises_two_alarms(
    corpus: PackedCorpus,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="higgs_pipe"):
        metrics = train(corpus, tmp_path, learning_rate=1e-30)
    assert given(metrics) == {"adapter_unchanged": 4, "stop_loss_not_falling": 24}
    assert re.search(r"step +4/24  alarm: adapter_unchanged: .*step 1", caplog.text)
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


@pytest.fixture
def shrunken_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is divided by its count twice."""
    sound = DualLossModel.forward

    def forward(self: DualLossModel, *arguments: Any, **options: Any) -> Any:
        sums, predictions = sound(self, *arguments, **options)
        return replace(sums, loss=sums.loss / 1000), predictions

    monkeypatch.setattr(DualLossModel, "forward", forward)


def test_the_preflight_stops_a_wrong_training_loss(
    corpus: PackedCorpus, tmp_path: Path, shrunken_loss: None
) -> None:
    with pytest.raises(UserError, match=r"training loss: codebook 0: 0\.00\d+ nats"):
        train(corpus, tmp_path)


def test_stop_on_alarm_saves_a_checkpoint_and_ends_with_the_alarm(
    corpus: PackedCorpus, tmp_path: Path, shrunken_loss: None
) -> None:
    shrunken = {"preflight": False, "stop_on_alarm": True}
    expected = r"after step 1 by train\.stop_on_alarm.*\n  audio_loss_below_floor: "
    with pytest.raises(UserError, match=expected):
        train(corpus, tmp_path, **shrunken)
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved == ["step-00000001.pt"]
    with pytest.raises(UserError, match=expected):  # a rerun does not slip past it
        train(corpus, tmp_path, **shrunken)

    metrics = train(corpus, tmp_path, **shrunken | {"stop_on_alarm": False})
    assert not (tmp_path / "checkpoints/set-aside").exists()  # it went on from the checkpoint
    assert metrics[-1]["step"] == 24
    assert [line["step"] for line in metrics if "loss" in line][:2] == [1, 4]
    assert given(metrics) == {"audio_loss_below_floor": 0}
