"""Each training setting reaches the step; its effect is computed independently."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import write_stage_config
from reference import base_with_lora
from safetensors.torch import load_file
from trainings import PackedCorpus, train, training_of

import higgs_pipe.train
from higgs_pipe.config.settings import LossWeights, TrainConfig
from higgs_pipe.config.stages import TrainStage
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.loss import objective
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.training.checkpoints import run_identity
from higgs_pipe.training.step import StepResult
from higgs_pipe.training.step_inputs import PlannedStep
from higgs_pipe.training.training import Training

ROWS = [3, 0, 2]
Gradients = dict[str, torch.Tensor]


def plain_training_of(corpus: PackedCorpus, **settings: Any) -> Training:
    """A training without clipping and dropout, unless the settings say otherwise."""
    return training_of(corpus, **{"max_grad_norm": 1e9, "lora": {"dropout": 0.0}} | settings)


def take_step(
    training: Training, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[Gradients, StepResult]:
    """One step's gradients, as the update would get them."""
    monkeypatch.setattr(training.state, "update", lambda: None)
    planned = PlannedStep(step=2, epoch=0, rows=rows)
    result = training.stepper.step(training.inputs.build(planned))
    named = training.model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.requires_grad}, result


def assert_equal(found: Gradients, expected: Gradients) -> None:
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize(
    "weights", [{"text": 0.5}, {"audio": 3}, {"eos": 0.7}, {"codebooks": [*range(1, 9)]}], ids=str
)
def test_the_gradient_matches_the_weighted_objective(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch, weights: dict[str, Any]
) -> None:
    training = plain_training_of(corpus, loss_weights=weights)
    found, _ = take_step(training, ROWS, monkeypatch)
    training.model.zero_grad()
    table = PackedRows(corpus.train_rows)
    total = training.model(collate([table[row] for row in ROWS], training.shape))[0].total()
    objective(total.loss, total.count, LossWeights(**weights)).backward()
    named = training.model.named_parameters()
    assert_equal(found, {n: p.grad for n, p in named if p.requires_grad})


def norm_of(gradients: Gradients) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))


def test_gradients_are_clipped_once_per_step_by_their_global_norm(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three micro-batches: clipping each of them would change the direction."""
    free, _ = take_step(plain_training_of(corpus), ROWS, monkeypatch)
    found, result = take_step(plain_training_of(corpus, max_grad_norm=0.01), ROWS, monkeypatch)
    assert result.grad_norm == pytest.approx(norm_of(free))
    scale = 0.01 / (norm_of(free) + 1e-6)  # as PyTorch defines it
    assert_equal(found, {name: gradient * scale for name, gradient in free.items()})


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_non_finite_gradient_leaves_the_weights_unchanged(
    corpus: PackedCorpus, value: float
) -> None:
    training = plain_training_of(corpus)
    before = [parameter.detach().clone() for parameter in training.state.parameters]
    training.state.parameters[0].register_hook(lambda gradient: gradient * value)
    planned = PlannedStep(step=2, epoch=0, rows=ROWS)
    with pytest.raises(UserError, match=r"step 2, .* 3, 0, 2: .* (inf|nan);"):
        training.stepper.step(training.inputs.build(planned))
    assert all(map(torch.equal, training.state.parameters, before))


def test_a_first_step_without_any_gradient_is_refused(corpus: PackedCorpus) -> None:
    """Later, a gradient of zero is only an alarm."""
    training = plain_training_of(corpus)
    for parameter in training.state.parameters:
        parameter.register_hook(lambda gradient: gradient * 0)
    later = PlannedStep(step=2, epoch=0, rows=ROWS)
    assert training.stepper.step(training.inputs.build(later)).grad_norm == 0
    first = PlannedStep(step=1, epoch=0, rows=ROWS)
    with pytest.raises(UserError, match="step 1: the gradient of every LoRA tensor is zero"):
        training.stepper.step(training.inputs.build(first))


def test_dropout_is_on_and_depends_only_on_the_row(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = {"lora": {"dropout": 0.5}}
    found, _ = take_step(plain_training_of(corpus, **dropped), ROWS, monkeypatch)
    reordered, _ = take_step(plain_training_of(corpus, **dropped), sorted(ROWS), monkeypatch)
    assert_equal(reordered, found)
    without, _ = take_step(plain_training_of(corpus), ROWS, monkeypatch)
    other_seed, _ = take_step(plain_training_of(corpus, **dropped, seed=1), ROWS, monkeypatch)
    for other in (without, other_seed):
        assert norm_of({n: found[n] - other[n] for n in found}) > 0.1 * norm_of(found)


@pytest.mark.parametrize(
    ("lora", "factor"),
    [({"use_rslora": True}, math.sqrt(16)), ({"alpha": 96}, 3.0)],
)
def test_lora_scaling_follows_alpha_and_rslora(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], factor: float
) -> None:
    """B is zero at first, so its gradient is the scale times what is fixed."""
    plain, _ = take_step(plain_training_of(corpus), ROWS, monkeypatch)
    scaled, _ = take_step(
        plain_training_of(corpus, lora={"dropout": 0.0} | lora), ROWS, monkeypatch
    )
    of_b = [name for name in plain if "lora_B" in name]
    assert_equal({n: scaled[n] for n in of_b}, {n: factor * plain[n] for n in of_b})


@pytest.mark.parametrize("seed", [0, 1])
def test_lora_initialisation_matches_peft_for_the_seed(corpus: PackedCorpus, seed: int) -> None:
    start = dict(plain_training_of(corpus, seed=seed).model.model.named_parameters())
    for name, expected in base_with_lora(corpus.base, seed=seed).named_parameters():
        if "lora_" in name:
            assert torch.equal(start[name], expected), name


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def test_weight_decay_is_decoupled_as_in_adamw(corpus: PackedCorpus, tmp_path: Path) -> None:
    """One step: the weights shrink by rate times decay, whatever the gradient."""
    one_step: dict[str, Any] = {"max_steps": 1, "schedule": "constant", "warmup_fraction": 0.0}
    one_step |= {"learning_rate": 0.01, "dtype": "float64"}
    train(corpus, tmp_path / "without", **one_step)
    train(corpus, tmp_path / "with", **one_step, weight_decay=0.5)
    decayed, plain = adapter(tmp_path / "with"), adapter(tmp_path / "without")
    start = base_with_lora(corpus.base).state_dict()
    for name, tensor in decayed.items():
        first = start[name.replace(".weight", ".default.weight")]
        assert torch.allclose(tensor, plain[name] - 0.01 * 0.5 * first, atol=1e-7), name


def test_the_logged_learning_rate_is_that_of_the_step(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "schedule": "linear",
        "warmup_fraction": 0.2,
        "learning_rate": 0.008,
    }
    metrics = train(corpus, tmp_path, max_steps=10, log_steps=1, rows_per_step=5, **settings)
    found = [line["learning_rate"] for line in metrics if "learning_rate" in line]
    assert found == pytest.approx([0, 0.004, *(0.001 * n for n in range(8, 0, -1))])


def test_an_experiment_overrides_a_part_of_a_section(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings = {"device": "cpu", "tracker": "none", "max_steps": 9, "lora": {"r": 8, "alpha": 5}}
    config = write_stage_config(
        tmp_path / "train.json", base_model=str(corpus.base), train=settings
    )
    overrides = json.dumps({"max_steps": 1, "lora": {"r": 4}})
    higgs_pipe.train.run(config, corpus.train_rows, corpus.eval_rows, tmp_path, overrides)
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["step"], last["kept_step"]) == (1, 1)


CHANGES: dict[str, dict[str, Any]] = {
    "settings": {"seed": 1},
    "nothing: log_steps": {"log_steps": 3},
    "nothing: num_processes": {"num_processes": 2},
    "nothing: sample_steps": {"sample_steps": 7, "num_samples": 9},
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_change_the_result_change_the_run_identity(
    corpus: PackedCorpus, name: str
) -> None:
    before, after = (identity(corpus, settings) for settings in ({}, CHANGES[name]))
    different = [key for key, value in before.items() if after[key] != value]
    assert different == ([] if name.startswith("nothing") else [name])


def test_sample_settings_count_for_the_identity_if_they_choose_the_adapter(
    corpus: PackedCorpus,
) -> None:
    decides = {"keep_best_by": "stop_rate", "sample_steps": 7}
    before, after = (identity(corpus, decides | more) for more in ({}, {"num_samples": 9}))
    assert before["settings"] != after["settings"]


def test_only_launch_log_and_sample_settings_are_outside_the_run_identity(
    corpus: PackedCorpus,
) -> None:
    known = json.loads(identity(corpus, {})["settings"])["train"].keys()
    assert set(TrainConfig.model_fields) - set(known) == {
        "num_processes",
        "num_machines",
        "main_process_ip",
        "main_process_port",
        "device",
        "accelerate_config",
        "timeout_seconds",
        "init_adapter",
        "stop_on_alarm",
        "preflight",
        "log_steps",
        "save_steps",
        "save_total_limit",
        "tracker",
        "sample_steps",
        "num_samples",
        "sampling",
    }


@pytest.mark.parametrize(
    ("changed", "named"),
    [("fingerprint", "base weights"), ("config_fingerprint", "base config")],
)
def test_another_base_with_the_same_name_is_another_run(
    corpus: PackedCorpus, changed: str, named: str
) -> None:
    stage, rows = stage_of(corpus, {}), (corpus.train_rows, corpus.eval_rows)
    base = base_of_rows(corpus.train_rows, stage.pretrained_base)
    other = base.model_copy(update={changed: "f" * 64})
    one, two = (run_identity(stage, each, *rows, Accelerator(cpu=True)) for each in (base, other))
    assert [key for key in one if one[key] != two[key]] == [named]


def test_other_rows_are_another_run(corpus: PackedCorpus) -> None:
    stage, train, held_out = stage_of(corpus, {}), corpus.train_rows, corpus.eval_rows
    base = base_of_rows(train, stage.pretrained_base)
    here, other_train, other_held_out = (
        run_identity(stage, base, *rows, Accelerator(cpu=True))
        for rows in ((train, held_out), (held_out, held_out), (train, train))
    )
    assert [key for key in here if here[key] != other_train[key]] == ["training rows"]
    assert [key for key in here if here[key] != other_held_out[key]] == ["held-out rows"]


def test_rows_that_differ_between_processes_are_refused(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_another_main_process(value: tuple[Any, list[int]]) -> tuple[Any, list[int]]:
        return value[0], [17, 4]

    monkeypatch.setattr(
        "higgs_pipe.training.checkpoints.from_main_process", from_another_main_process
    )
    with pytest.raises(UserError, match=r"train\.parquet .* for process 0, \[17, 4\] for process"):
        identity(corpus, {})


def stage_of(corpus: PackedCorpus, settings: dict[str, Any]) -> TrainStage:
    return TrainStage.model_validate({"base_model": str(corpus.base), "train": settings})


def identity(corpus: PackedCorpus, settings: dict[str, Any]) -> dict[str, str]:
    stage = stage_of(corpus, settings)
    base = base_of_rows(corpus.train_rows, stage.pretrained_base)
    rows = corpus.train_rows, corpus.eval_rows
    return run_identity(stage, base, *rows, Accelerator(cpu=True))
