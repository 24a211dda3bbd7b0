"""The plan of a run: close to measurements, chosen for pretended cards, and reduced on failure."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_gpu import PretendedCard
from real_shape import real_shape
from safetensors.torch import load_file
from trainings import PackedCorpus, train

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.memory import WORKSPACE_BYTES, MemoryFormula
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.training import planner
from higgs_pipe.training.card import card_of
from higgs_pipe.training.forecast import KINDS, forecast
from higgs_pipe.training.plan import (
    Choice,
    Plan,
    choose_plan,
    micro_step_seconds,
    plan_without_card,
    rows_of_process,
)
from higgs_pipe.training.state import Progress, TrainingState

# docs/performance.md, one H200, the middle of each range: compiled, recomputed layers, positions,
# peak GB of a micro-step, positions per second (None: not measured). Compiled, the peaks are those
# of the run in its table of goals, without the optimizer's moments.
MEASURED = [
    (False, 0, 2048, 21.9, 7700),
    (False, 28, 2048, 12.9, 3450),
    (False, 0, 16_257, 90.7, 25_000),
    (False, 28, 16_257, 18.4, 15_600),
    (True, 0, 2048, 15.7, 10_624),
    (True, 10, 8192, 23.5, None),  # its speed: below
    (True, 0, 16_384, 44.3, 34_730),
]
BASE_GB = 11.7


def test_running_out_of_memory_while_compiling_is_a_user_error(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> bool:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(planner, "compile_where_it_pays", run_out)
    with pytest.raises(UserError, match=r"one packed row of \d+ positions with 0 of 2 layers"):
        train(corpus, tmp_path, preflight=False, max_steps=1)


@pytest.fixture(scope="module")
def formulas(tiny_base: Path) -> dict[bool, MemoryFormula]:
    """Formulas of the published 3B model, eager and compiled."""
    shape, settings = real_shape(tiny_base), TrainConfig()
    num_trained = count_parameters(shape, settings).trainable
    return {c: memory_formula(shape, settings, num_trained, c) for c in (False, True)}


@pytest.mark.parametrize(("is_compiled", "recomputed", "positions", "peak_gb", "rate"), MEASURED)
def test_memory_and_time_are_within_15_percent_of_measurements(
    formulas: dict[bool, MemoryFormula],
    is_compiled: bool,
    recomputed: int,
    positions: int,
    peak_gb: float,
    rate: float | None,
) -> None:
    formula = formulas[is_compiled]
    gradients = 4 * formula.num_trained  # the optimizer was not measured
    assert formula.weights + gradients == pytest.approx(BASE_GB * 1e9, rel=0.01)
    around = formula.logits + WORKSPACE_BYTES + gradients
    above_base = around + formula.activations(positions, recomputed)
    assert above_base == pytest.approx((peak_gb - BASE_GB) * 1e9, rel=0.15)
    seconds = micro_step_seconds(formula, positions, recomputed, is_compiled)
    assert rate is None or positions / seconds == pytest.approx(rate, rel=0.15)


def test_the_slowdown_by_recomputing_is_within_15_percent_of_the_measurement(
    formulas: dict[bool, MemoryFormula],
) -> None:
    """In one hour on one card: 23,706 positions/s with 10 layers recomputed, 30,565 with none."""
    seconds = micro_step_seconds(formulas[True], 8192, 10, True)
    seconds_without = micro_step_seconds(formulas[True], 16_384, 0, True)
    ratio = (8192 / seconds) / (16_384 / seconds_without)
    assert ratio == pytest.approx(23_706 / 30_565, rel=0.15)


@pytest.mark.parametrize(("is_compiled", "rate"), [(False, 22_900), (True, 29_900)])
def test_the_time_of_a_graph_is_within_15_percent_of_measurements(
    formulas: dict[bool, MemoryFormula], is_compiled: bool, rate: float
) -> None:
    """Measured on a captured row; the eager one had no dropout."""
    formula = formulas[is_compiled]
    seconds = micro_step_seconds(formula, 2048, 0, is_compiled, is_graphed=True)
    assert 2048 / seconds == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(
    ("compiled", "expected"),
    [
        # memory_gb: (rows of 2048 at once, recomputed layers); 4.8 MB a position, 2.0 compiled.
        (False, {16: (1, 19), 24: (1, 0), 40: (2, 0), 48: (2, 0), 80: (4, 0), 141: (4, 0)}),
        (True, {16: (1, 3), 24: (2, 0), 40: (4, 0), 48: (4, 0), 80: (8, 0), 141: (8, 0)}),
    ],
)
def test_each_card_gets_a_plan_that_fits_its_memory(
    formulas: dict[bool, MemoryFormula], compiled: bool, expected: dict[int, tuple[int, int]]
) -> None:
    settings = TrainConfig(compile=compiled)
    found = [forecast(kind, formulas, settings, 2048, 10**7) for kind in KINDS]
    plans = {card.memory_gb: (card.rows_per_micro_batch, card.recomputed_layers) for card in found}
    assert plans == expected
    assert all(card.fits and card.memory_gib.total < card.memory_gb - 0.5 for card in found)


@pytest.mark.parametrize(
    ("measured", "factor", "fits"),
    [(1.25, 1.25, True), (0.1, 0.5, False)],  # 0.5 at least
)
def test_the_weakest_card_and_the_highest_peak_decide_the_plan(
    formulas: dict[bool, MemoryFormula],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    measured: float,
    factor: float,
    fits: bool,
) -> None:
    """The other of two processes has less memory, a slower card and a higher peak.

    The probe is the longest row, and a plan that may not fit is warned of.
    """
    formula, num_trained = formulas[False], 10**8
    activations = formula.activations(2048, 0)
    peak = measured * activations + 4 * num_trained  # with the gradients
    of_other = iter([70e9, peak, 100e12])
    found: list[Any] = []

    def choose(scaled: MemoryFormula, _: Any, num_bytes: float, *rest: Any) -> Choice:
        found.append((scaled.activations(2048, 0) / activations, num_bytes))
        assert rest == (2048, False, 2, 100e12, len(found) == 2)  # the second with graphs
        return Choice(Plan(2, 0, is_compiled=False), 1.0, fits)

    def collate(rows: list[str], *_: Any, **__: Any) -> torch.Tensor:
        assert rows == ["long"]
        return torch.empty(0)

    monkeypatch.setattr(planner, "gather_object", lambda mine: [*mine, next(of_other)])
    monkeypatch.setattr(planner, "memory_formula", lambda *_: formula)
    monkeypatch.setattr(planner, "collate", collate)
    monkeypatch.setattr(planner, "compute_gradients", lambda *_: None)
    monkeypatch.setattr(planner, "choose_plan", choose)
    one: Any = planner.Planner(
        model=SimpleNamespace(num_layers=28, shape=None, native=SimpleNamespace(config=None)),  # type: ignore[arg-type]
        settings=TrainConfig(cuda_graphs=False),
        inputs=SimpleNamespace(row_lengths=[9, 2048], rows=["short", "long"]),  # type: ignore[arg-type]
        state=SimpleNamespace(parameters=[torch.empty(num_trained, device="meta")]),  # type: ignore[arg-type]
        accelerator=SimpleNamespace(device=torch.device("cpu"), num_processes=2),
    )
    with caplog.at_level(logging.WARNING, "higgs_pipe"):
        plan, _ = one._plan_by_probe(PretendedCard(80e9, peak=peak / 2), is_compiled=False)
    assert plan.rows_per_micro_batch == 2
    assert bool(caplog.records) != fits
    around = formula.logits + WORKSPACE_BYTES + 12 * num_trained  # gradients and moments
    assert found == [pytest.approx((factor, 0.95 * 70e9 - around))] * 2


@pytest.mark.parametrize(
    ("setting", "num_processes", "obstacle", "seconds", "expected"),
    [
        ("auto", 1, None, 0.94, True),
        ("auto", 1, None, 0.96, False),  # 5 % less time is the least
        ("auto", 2, None, 0.1, False),
        ("auto", 1, "no GPU", 0.1, False),
        (False, 1, None, 0.1, False),
        (True, 2, "no GPU", 9.0, True),
    ],
)
def test_graphs_are_used_where_they_pay_or_as_configured(
    monkeypatch: pytest.MonkeyPatch,
    setting: Any,
    num_processes: int,
    obstacle: str | None,
    seconds: float,
    expected: bool,
) -> None:
    monkeypatch.setattr(planner, "obstacle_to_graphs", lambda *_: obstacle)
    one: Any = planner.Planner(
        model=SimpleNamespace(),  # type: ignore[arg-type]
        settings=TrainConfig(cuda_graphs=setting),
        inputs=SimpleNamespace(),  # type: ignore[arg-type]
        state=SimpleNamespace(),  # type: ignore[arg-type]
        accelerator=SimpleNamespace(device=torch.device("cpu"), num_processes=num_processes),
    )
    plain, graphed = (Choice(Plan(1, 0, is_compiled=False), s, fits=True) for s in (1.0, seconds))
    assert one._will_graph(plain, graphed) == expected


def test_a_graph_is_checked_on_the_longest_rows_with_their_own_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[Any] = []
    monkeypatch.setattr(planner, "gather_object", lambda mine: mine)
    monkeypatch.setattr(planner, "label_weights", lambda *given: given)
    monkeypatch.setattr(planner, "difference_of_graphs", lambda *given: checked.append(given))

    def padded(rows: list[int], seeds: list[int]) -> Any:
        batch = SimpleNamespace(rows=rows, seeds=seeds, label_counts=lambda: sum(rows))
        batch.to = lambda device: batch if device.type == "cpu" else None
        return batch

    one: Any = planner.Planner(
        model=SimpleNamespace(shape=SimpleNamespace(has_text_loss=False)),  # type: ignore[arg-type]
        settings=TrainConfig(),
        inputs=SimpleNamespace(row_lengths=[5, 9, 3, 7], rows_per_micro_batch=2, padded=padded),  # type: ignore[arg-type]
        state=SimpleNamespace(),  # type: ignore[arg-type]
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    one._check_graphs(graphs := SimpleNamespace())
    ((checked_graphs, state, batch, weights),) = checked
    assert (checked_graphs, state) == (graphs, one.state)
    assert sorted(batch.rows) == sorted(batch.seeds) == [1, 3]
    assert weights == (4, one.settings.loss_weights, False)


def test_compiling_must_pay_off_within_the_remaining_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_where_it_pays(*given: Any) -> bool:
        asked.append(given)
        return False

    monkeypatch.setattr(planner, "compile_where_it_pays", compile_where_it_pays)
    one: Any = planner.Planner(
        model=SimpleNamespace(),  # type: ignore[arg-type]
        settings=TrainConfig(compile=True),
        inputs=SimpleNamespace(num_steps=10, positions_per_step=100.0, rows="rows"),  # type: ignore[arg-type]
        state=SimpleNamespace(progress=Progress(step=6)),  # type: ignore[arg-type]
        accelerator=SimpleNamespace(num_processes=2),
    )
    one._compile(kept=True)
    [(_, setting, _, num_positions, rows, kept)] = asked
    assert (setting, num_positions, rows, kept) == (True, 400, "rows", True)


@pytest.mark.parametrize("num_bytes", [80e9, 1e6])  # enough, and not enough for a row
@pytest.mark.parametrize(("num_processes", "rows"), [(1, 16), (4, 4)])
def test_a_micro_batch_is_at_most_the_rows_of_a_process_per_step(
    formulas: dict[bool, MemoryFormula], num_bytes: float, num_processes: int, rows: int
) -> None:
    settings = TrainConfig(rows_per_step=16, rows_per_micro_batch=64)
    choice = choose_plan(formulas[True], settings, num_bytes, 2048, True, num_processes)
    assert choice.plan.rows_per_micro_batch == rows
    assert choice.plan.recomputed_layers == (0 if num_bytes > 1e9 else 28)


@pytest.mark.parametrize(("share", "is_whole"), [(1.0, False), (1.0201, True)])
def test_graphs_need_twice_the_activation_memory_plus_padding(
    formulas: dict[bool, MemoryFormula], share: float, is_whole: bool
) -> None:
    """Padding adds 2 % of the positions."""
    num_bytes = 2 * share * formulas[True].activations(2048, 0)
    settings = TrainConfig(rows_per_step=1)
    choice = choose_plan(formulas[True], settings, num_bytes, 2048, True, is_graphed=True)
    assert (choice.plan.recomputed_layers == 0) == is_whole


def test_host_time_is_proportional_to_the_number_of_layers(
    formulas: dict[bool, MemoryFormula],
) -> None:
    half = replace(formulas[False], num_layers=14)
    whole, shorter = (micro_step_seconds(f, 16, 0, False) for f in (formulas[False], half))
    assert shorter == pytest.approx(whole / 2)


def test_a_micro_batch_has_at_most_64_short_rows(formulas: dict[bool, MemoryFormula]) -> None:
    """The host sets the time of a micro-step: 64 rows at once, or 63, make 16 of 1,000 rows."""
    settings = TrainConfig(rows_per_step=1000)
    assert choose_plan(formulas[True], settings, 1e15, 16, True).plan.rows_per_micro_batch == 63


@pytest.mark.parametrize(("layers", "fits"), [(4, False), (10, True), (12, True), (True, True)])
def test_a_configured_number_of_layers_must_be_enough_to_fit(
    formulas: dict[bool, MemoryFormula], layers: int | bool, fits: bool
) -> None:
    num_bytes = formulas[True].activations(2048, 10)  # for a row, of which ten are recomputed
    settings = TrainConfig(gradient_checkpointing=layers, rows_per_step=1)
    choice = choose_plan(formulas[True], settings, num_bytes, 2048, True)
    assert choice.fits == fits
    assert choice.plan.recomputed_layers == (28 if layers is True else layers)


@pytest.mark.parametrize(("layers", "expected"), [("auto", 0), (False, 0), (True, 5), (2, 2)])
def test_on_a_cpu_layers_are_recomputed_only_if_configured(layers: Any, expected: int) -> None:
    for is_padded in (False, True):
        settings = TrainConfig(gradient_checkpointing=layers, cuda_graphs=is_padded or "auto")
        plan = plan_without_card(settings, num_layers=5, is_compiled=False)
        assert plan == Plan(1, expected, is_compiled=False, is_padded=is_padded)
    assert plan_without_card(TrainConfig(gradient_checkpointing=9), 5, False).recomputed_layers == 5


@pytest.mark.parametrize("layers", ["auto", 1])
def test_out_of_memory_recomputes_more_layers_only_under_auto(layers: Any) -> None:
    noted: list[Any] = []
    short: Any = planner.Planner(
        model=SimpleNamespace(num_layers=2, recomputed_layers=1),  # type: ignore[arg-type]
        settings=TrainConfig(gradient_checkpointing=layers),
        inputs=SimpleNamespace(row_lengths=[9], rows_per_process=1, follow=lambda *_: None),  # type: ignore[arg-type]
        state=SimpleNamespace(plan=Plan(1, 1, False), progress=Progress(step=3)),  # type: ignore[arg-type]
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    short.note = lambda step, plan, told: noted.append((step, plan["recomputed_layers"]))
    if layers == "auto":
        short.shrink()
        assert noted == [(3, 2)]
        return
    with pytest.raises(UserError, match="one packed row of 9 positions with 1 of 2 layers"):
        short.shrink()


def plan_lines(metrics: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    keys = ("step", "rows_per_micro_batch", "recomputed_layers")
    return [tuple(line[key] for key in keys) for line in metrics if keys[1] in line]


@pytest.mark.parametrize(
    ("num_bytes", "settings", "expected"),
    [
        (4e9, {}, (0, 3, 0)),  # all rows of a step
        (0.3e9, {}, (0, 1, 2)),  # not one row, by the formula: tried all the same
        (4e9, {"rows_per_micro_batch": 2, "gradient_checkpointing": 1}, (0, 2, 1)),
    ],
)
def test_training_plans_by_the_memory_of_its_card(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_bytes: float,
    settings: dict[str, Any],
    expected: tuple[int, int, int],
) -> None:
    card = PretendedCard(num_bytes)
    monkeypatch.setattr(planner, "card_of", lambda _: card)
    metrics = train(corpus, tmp_path, rows_per_step=3, max_steps=1, **settings)
    assert plan_lines(metrics) == [expected]


def test_a_row_that_never_fits_is_an_error_that_names_the_setting(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = PretendedCard(4e9, peak=None)
    monkeypatch.setattr(planner, "card_of", lambda _: card)
    with pytest.raises(UserError, match=r"2 of 2 layers recomputed.*pack\.max_tokens"):
        train(corpus, tmp_path)


@pytest.fixture
def out_of_memory_above(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a forward pass for training over more positions than this run out of memory."""

    def limit(num_positions: int) -> None:
        forward = DualLossModel.forward

        def limited(self: DualLossModel, batch: PackedBatch, *args: Any, **kwargs: Any) -> Any:
            if self.training and batch.input_ids.shape[1] > num_positions:
                raise torch.OutOfMemoryError("pretended")
            return forward(self, batch, *args, **kwargs)

        monkeypatch.setattr(DualLossModel, "forward", limited)

    return limit


EXACT: dict[str, Any] = {"dtype": "float64", "lora": {"dropout": 0.2}, "preflight": False}
# Every second step, built while the first one is repeated, has one row.
STEPS: dict[str, Any] = {"rows_per_step": 4, "max_steps": 3, "learning_rate": 5e-3}


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_step_out_of_memory_is_retried_in_halves_with_the_same_result(
    corpus: PackedCorpus,
    is_padded: bool,
    tmp_path: Path,
    out_of_memory_above: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(corpus, tmp_path / "plain", **EXACT, **STEPS)
    out_of_memory_above(600)  # rows have at most 512
    logging.getLogger("higgs_pipe").propagate = True
    with caplog.at_level(logging.WARNING, logger="higgs_pipe"):
        settings = EXACT | STEPS | {"rows_per_micro_batch": 4, "cuda_graphs": is_padded}
        metrics = train(corpus, tmp_path / "short", **settings)
    assert "step 1: GPU memory ran out" in caplog.text
    assert plan_lines(metrics) == [(0, 4, 0), (0, 2, 0), (0, 1, 0)]
    expected = adapter(tmp_path / "plain")
    for name, tensor in adapter(tmp_path / "short").items():
        assert (tensor - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_one_row_out_of_memory_recomputes_layers_and_then_stops(
    corpus: PackedCorpus, tmp_path: Path, out_of_memory_above: Callable[[int], None]
) -> None:
    out_of_memory_above(10)
    with pytest.raises(UserError, match=r"one packed row of \d+ positions with 2 of 2 layers"):
        train(corpus, tmp_path, **EXACT, **STEPS)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert plan_lines(list(map(json.loads, lines))) == [(0, 1, 0), (0, 1, 2)]


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_resumed_run_keeps_its_plan(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_padded: bool
) -> None:
    settings: dict[str, Any] = {"rows_per_step": 3, "max_steps": 4, "save_steps": 2}
    settings["cuda_graphs"] = is_padded
    kept: list[bool | None] = []

    def pretend_to_compile(*inputs: Any) -> bool:
        kept.append(inputs[-1])
        return True

    monkeypatch.setattr(planner, "compile_where_it_pays", pretend_to_compile)
    cards = [PretendedCard(num_bytes) for num_bytes in (4e9, 0.3e9)]
    monkeypatch.setattr(planner, "card_of", lambda _: cards[0])
    whole = train(corpus, tmp_path / "whole", **settings)

    class Killed(Exception):
        """In place of a signal."""

    save = TrainingState.save

    def save_and_end(self: TrainingState, *args: Any) -> None:
        save(self, *args)
        raise Killed

    monkeypatch.setattr(TrainingState, "save", save_and_end)
    with pytest.raises(Killed):
        train(corpus, tmp_path / "cut", **settings)
    monkeypatch.setattr(TrainingState, "save", save)
    monkeypatch.setattr(planner, "card_of", lambda _: cards[1])  # another plan, if it were made
    cut = train(corpus, tmp_path / "cut", **settings)
    assert plan_lines(cut) == plan_lines(whole) == [(0, 3, 0)]
    assert [line["is_padded"] for line in cut if "is_padded" in line] == [is_padded]
    assert kept == [None, None, True]  # whole, cut, resumed
    whole_adapter = adapter(tmp_path / "whole")
    assert all(torch.equal(t, whole_adapter[n]) for n, t in adapter(tmp_path / "cut").items())


def test_a_plan_is_halved_down_to_one_row() -> None:
    assert Plan(5, 0, False).halved() == Plan(2, 0, False)
    assert Plan(1, 0, False).halved() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_the_plan_for_the_miniature_recomputes_nothing(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    metrics = train(corpus, tmp_path, device="cuda", rows_per_step=3, max_steps=1)
    [(_, rows, recomputed)] = plan_lines(metrics)
    assert recomputed == 0
    assert rows >= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_a_probe_measures_memory_and_survives_running_out() -> None:
    card: Any = card_of(torch.device("cuda", 0))
    needed = card.peak_bytes(lambda: torch.empty(10**8, dtype=torch.uint8, device="cuda"))
    assert needed == pytest.approx(1e8, rel=0.05)
    assert card.peak_bytes(lambda: torch.empty(10**13, dtype=torch.uint8, device="cuda")) is None


def test_rows_per_process_are_rounded_up() -> None:
    five = TrainConfig(rows_per_step=5)
    assert [rows_of_process(five, n) for n in (1, 2, 3, 5, 8)] == [5, 3, 2, 1, 1]
