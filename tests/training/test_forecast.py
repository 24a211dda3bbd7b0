"""The estimate of steps, hours and dollars, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from real_shape import real_shape
from transformers import AutoConfig

from higgs_pipe.config.settings import PackConfig, TaskMix, TrainConfig
from higgs_pipe.data.clips.results import Share, ValidationSummary
from higgs_pipe.estimate import Amount, amount_of
from higgs_pipe.higgs.compilation_costs import COLD_SECONDS
from higgs_pipe.higgs.memory import MemoryFormula
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.higgs.text_tokens import TextTokens
from higgs_pipe.training import forecast as forecasting
from higgs_pipe.training.forecast import (
    CardForecast,
    ExperimentEstimate,
    GpuKind,
    estimate_experiment,
    forecast,
    will_compile,
)
from higgs_pipe.training.plan import Plan, micro_step_seconds

H100 = 4  # of the cards that are listed


@pytest.fixture(scope="module")
def miniature(tiny_base: Path) -> Any:
    return AutoConfig.from_pretrained(tiny_base)


def estimated(base: Any, **settings: Any) -> tuple[ExperimentEstimate, CardForecast]:
    """A thousand rows of 2048 positions, in steps of eight."""
    train = TrainConfig(**{"rows_per_step": 8, "compile": True, **settings})
    found = estimate_experiment(train, 1000, 2048, base, None)
    return found, found.cards[H100]


@pytest.mark.parametrize(
    ("settings", "num_steps", "num_processes"),
    [({"num_epochs": 2}, 250, 1), ({"max_steps": 5}, 5, 1), ({"num_processes": 4}, 250, 4)],
)
def test_hours_and_dollars_cover_all_steps_and_processes(
    miniature: Any, settings: dict[str, Any], num_steps: int, num_processes: int
) -> None:
    found, card = estimated(miniature, **settings)
    assert found.num_steps == num_steps
    num_positions = num_steps * 8 * 2048 * 0.99
    seconds = num_positions / num_processes / card.positions_per_second + 60 + COLD_SECONDS
    assert card.hours == pytest.approx(seconds / 3600, rel=1e-6)
    assert card.dollars == pytest.approx(2.5 * card.hours * num_processes)


def test_the_last_step_of_an_epoch_may_have_fewer_rows(miniature: Any) -> None:
    found, _ = estimated(miniature, rows_per_step=16, num_epochs=2)
    assert found.num_steps == 2 * 63


@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_memory_forecast_depends_on_whether_layers_are_compiled(
    miniature: Any, is_compiled: bool
) -> None:
    found, card = estimated(miniature, compile=is_compiled)
    assert found.parameters is not None
    train = TrainConfig(rows_per_step=8, compile=is_compiled)
    formula = memory_formula(miniature, train, found.parameters.trainable, is_compiled)
    num_positions = card.rows_per_micro_batch * 2048
    assert card.memory_gib == formula.memory(num_positions, card.recomputed_layers)


@pytest.mark.parametrize("num_processes", [1, 3, 4])
@pytest.mark.parametrize("rows_at_once", [1, 2, 8])
def test_the_speed_is_computed_from_the_rows_of_one_process(
    miniature: Any, num_processes: int, rows_at_once: int
) -> None:
    settings = {"num_processes": num_processes, "rows_per_micro_batch": rows_at_once}
    _, card = estimated(miniature, **settings)
    rows = {1: 8, 3: 3, 4: 2}[num_processes]  # of a process in a step of eight
    num_positions = min(rows_at_once, rows) * 2048
    formula = memory_formula(miniature, TrainConfig(), 10**5, is_compiled=True)
    seconds = micro_step_seconds(formula, num_positions, card.recomputed_layers, True, 780e12)
    expected = rows * 2048 / (math.ceil(rows / min(rows_at_once, rows)) * seconds)
    assert card.positions_per_second == pytest.approx(expected, rel=0.02)


def test_a_card_fits_exactly_from_the_required_number_of_gibibytes(tiny_base: Path) -> None:
    """A row of 2048, every layer recomputed: PyTorch can use 95 % of what CUDA leaves."""
    formula = memory_formula(real_shape(tiny_base), TrainConfig(), 10**9, is_compiled=True)
    held = 16 * 10**9 + 64e6 + 0.19e9 + formula.activations(2048, 28)
    needed = math.ceil((formula.weights + 0.6e9 + held / 0.95) / 2**30)
    train = TrainConfig(compile=True)
    for memory_gb, fits in ((needed - 1, False), (needed, True)):
        kind = GpuKind("a card", memory_gb, 989e12, 1.0)
        assert forecast(kind, {True: formula}, train, 2048, 10**6).fits == fits


def test_the_plan_depends_on_memory_and_speed_of_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A card of half an H200's rate, and a model of half the 3B model's work."""
    sizes: dict[str, Any] = {"num_layers": 8, "num_trained": 1000, "logits": 1e8}
    sizes |= {"layer_input": 10, "layer_kept": 100, "working": 50, "relative_work": 0.5}
    formulas = {
        is_compiled: MemoryFormula(weights=2e9 if is_compiled else 3e9, **sizes)
        for is_compiled in (True, False)
    }
    asked: list[Any] = []

    def choose(*arguments: Any) -> Any:
        asked.append(arguments)
        return Plan(rows_per_micro_batch=3, recomputed_layers=5, is_compiled=False), None, True

    def compiles(_: TrainConfig, num_positions: float, speed: float) -> bool:
        asked.append((num_positions, speed))
        return True

    monkeypatch.setattr(forecasting, "choose_plan", choose)
    monkeypatch.setattr(forecasting, "will_compile", compiles)
    train = TrainConfig(num_processes=4, rows_per_step=8)
    kind = GpuKind("a card", 10, 989e12 / 2, 1.0)
    card = forecast(kind, formulas, train, 2048, 10**6)
    (num_positions, speed), (formula, settings, free, *others) = asked
    assert (num_positions, speed) == (250_000, pytest.approx(1))
    assert (formula, settings) == (formulas[True], train)
    usable = 0.95 * (10 * 2**30 - 0.6e9 - 2e9)
    assert free == pytest.approx(usable - 16 * 1000 - 1e8 - 0.19e9, rel=1e-3)
    assert others == [2048, True, 4, pytest.approx(790e12 / 2)]
    assert card.memory_gib == formulas[True].memory(3 * 2048, 5)
    assert (card.rows_per_micro_batch, card.recomputed_layers) == (3, 5)
    assert (card.is_compiled, card.fits) == (False, True)
    seconds = micro_step_seconds(formulas[True], 3 * 2048, 5, False, 790e12 / 2)
    assert card.positions_per_second == pytest.approx(2 * 2048 / seconds)  # two rows of eight
    line = f"{card.memory_gib.total:.1f} GiB, 3 rows at once, not compiled, 5 layers recomputed;"
    assert line in card.as_text()


def test_the_line_for_a_card_states_fit_and_recomputed_layers(tiny_base: Path) -> None:
    formula = memory_formula(real_shape(tiny_base), TrainConfig(), 10**9, is_compiled=True)
    train = TrainConfig(compile=True)
    small, recomputing, large = (
        forecast(GpuKind("a card", size, 989e12, 1.0), {True: formula}, train, 2048, 10**6)
        for size in (8, 32, 1000)
    )
    assert small.as_text().endswith("8 GB (a card): does not fit")
    assert recomputing.recomputed_layers > 0
    assert f"{recomputing.recomputed_layers} layers recomputed" in recomputing.as_text()
    assert "recomputed" not in large.as_text()


def test_a_run_that_cannot_or_need_not_compile_is_forecast_as_eager() -> None:
    assert will_compile(TrainConfig(), 1e12, 1.0)
    assert not will_compile(TrainConfig(), 1e3, 1.0)  # it would not pay
    for settings in ({"quantization": "4bit"}, {"lora": {"use_dora": True}}):
        assert not will_compile(TrainConfig.model_validate(settings), 1e12, 1.0)
    assert will_compile(TrainConfig(), 1.1 * COLD_SECONDS / 12e-6, 1.0)
    assert not will_compile(TrainConfig(), 1.1 * COLD_SECONDS / 12e-6, 2.0)  # a faster card
    for is_on in (True, False):
        assert will_compile(TrainConfig(compile=is_on), 1e3 if is_on else 1e12, 1.0) == is_on


def test_compiling_must_pay_for_the_positions_of_one_process(
    miniature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def answer(train: TrainConfig, num_positions: float, speed: float) -> bool:
        asked.append(num_positions)
        return False

    monkeypatch.setattr(forecasting, "will_compile", answer)
    estimated(miniature, compile="auto", num_processes=4, max_steps=100)
    assert asked == [pytest.approx(100 * 8 * 2048 * 0.99 / 4)] * 6  # a card each


def test_a_trainable_token_adds_one_embedding_row(miniature: Any) -> None:
    plain, more = (
        count_parameters(miniature, TrainConfig.model_validate({"lora": settings}))
        for settings in ({}, {"trainable_tokens": ["<a>", "<b>"]})
    )
    assert more.trainable - plain.trainable == 2 * 64


def test_the_forecast_counts_the_training_split_and_its_references() -> None:
    """Two of ten clips bring a reference; of the eight others, a quarter draws one."""
    splits = {
        "train": Share(num_clips=10, seconds=40.0, hours=40 / 3600),
        "eval": Share(num_clips=7, seconds=700.0, hours=700 / 3600),
    }
    parts: dict[str, Any] = {"splits": splits}
    summary = ValidationSummary.model_construct(**parts)
    pack = PackConfig.model_validate({"max_tokens": 135, "tasks": {"speech": 3, "cloning": 1}})
    tokens = TextTokens(texts=100, per_sample=30, per_reference=13)
    found = amount_of(summary, tokens, pack, 25.0, frames_around=9, num_references=2)
    # Half a frame is the mean of what rounding up to whole frames adds.
    num_audio_frames = round(1.4 * (40 * 25 + 10 * (0.5 + 9)))
    num_text_tokens = round(1.4 * 100 + 10 * (30 + 0.4 * 13))
    num_rows = math.ceil((num_audio_frames + num_text_tokens) / (0.99 * 135))
    assert found == Amount(
        num_clips=10,
        num_audio_frames=num_audio_frames,
        num_text_tokens=num_text_tokens,
        num_packed_rows=num_rows,
    )
    assert num_rows == 16
    spoken_alone = pack.model_copy(update={"tasks": TaskMix(speech=1, cloning=0)})
    found = amount_of(summary, tokens, spoken_alone, 25.0, frames_around=9, num_references=2)
    assert found.num_audio_frames == 40 * 25 + 10 * (0.5 + 9)  # no reference is used
