"""Training settings, each tested by its visible effect on the real stage."""

import json
import logging
import re
import signal
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Seen, write_stage_config
from reference import base_with_lora
from safetensors.torch import load_file
from trainings import PackedCorpus, end_in_step, train, training_of

import higgs_pipe
import higgs_pipe.train
import higgs_pipe.training.training
from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.config.stages import TrainStage
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import Ancestor
from higgs_pipe.higgs.batch import PackedRow, PackedRows
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.progress import activity
from higgs_pipe.training import processes
from higgs_pipe.training import run_info as run_info_module
from higgs_pipe.training.checkpoints import Checkpoints
from higgs_pipe.training.evaluation import Evaluation
from higgs_pipe.training.held_out import held_out_sums
from higgs_pipe.training.results import Preflight, RunInfo, TrainedSettings
from higgs_pipe.training.run_info import PACKAGES, git_commit, processor, run_info, write_run
from higgs_pipe.training.state import Progress, TrainingState
from higgs_pipe.training.step_inputs import PlannedStep, epoch_steps
from higgs_pipe.training.training import Training

CPU = torch.device("cpu")
FEW: dict[str, Any] = {"rows_per_step": 2, "max_steps": 4, "eval_steps": 100, "preflight": False}
# A rate that rises until it harms.
HARMFUL: dict[str, Any] = {"learning_rate": 0.3, "warmup_fraction": 0.6, "num_epochs": 6}
HARMFUL |= {"rows_per_step": 3, "eval_steps": 1, "preflight": False}


def steps_with(metrics: list[dict[str, Any]], key: str) -> list[int]:
    return [line["step"] for line in metrics if key in line]


def test_five_rows_at_two_per_step_take_three_steps_per_epoch(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    settings: Any = {"rows_per_step": 2, "num_epochs": 3, "log_steps": 4, "eval_steps": 7}
    metrics = train(corpus, tmp_path, **settings, preflight=False)
    assert steps_with(metrics, "loss") == [1, 4, 8]
    assert steps_with(metrics, "eval_loss") == [0, 7, 9]
    epochs = [line["epoch"] for line in metrics if "loss" in line]
    assert epochs == pytest.approx([1 / 3, 4 / 3, 8 / 3])


def test_the_seed_decides_the_order_of_training_rows(corpus: PackedCorpus) -> None:
    inputs = training_of(corpus, seed=7, rows_per_step=2, num_epochs=2).inputs.after(0)
    found = [step.planned.rows for step in inputs]
    assert found == [rows for epoch in (0, 1) for rows in epoch_steps(5, 2, seed=7, epoch=epoch)]
    assert found[:3] != found[3:]


def test_checkpoints_are_saved_every_save_steps_and_the_newest_kept(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "clear", lambda self: None)
    train(corpus, tmp_path, **FEW | {"max_steps": 9}, save_steps=2, save_total_limit=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-0000000{step}.pt" for step in (4, 6, 8)]


def test_a_signal_saves_a_checkpoint_from_which_the_run_resumes(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FEW | {"log_steps": 1, "learning_rate": 5e-3}
    update = TrainingState.update

    def update_and_signal(self: TrainingState) -> None:
        update(self)
        if self.progress.step == 1:  # seen in the next step
            for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's, and a launcher's
                signal.raise_signal(number)
            # As a workflow does that takes its job for ended.
            (tmp_path / "parts/metrics.jsonl").unlink()

    save = TrainingState.save

    def save_as_of_hours(self: TrainingState, *arguments: Any) -> None:
        self.progress.seconds = 1000.0
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "update", update_and_signal)
        patch.setattr(TrainingState, "save", save_as_of_hours)
        with pytest.raises(SystemExit) as ended:
            train(corpus, tmp_path / "parts", **settings)
    assert ended.value.code == 128 + signal.SIGINT
    saved = [path.name for path in (tmp_path / "parts/checkpoints").iterdir()]
    assert saved == ["step-00000002.pt"]
    parts, whole = (train(corpus, tmp_path / name, **settings) for name in ("parts", "whole"))
    for key in ("loss", "learning_rate", "grad_norm", "eval_loss"):
        assert [line.get(key) for line in parts] == [line.get(key) for line in whole]
    assert not [*(tmp_path / "parts/checkpoints").iterdir()]  # complete
    assert all(line["seconds"] < 1000 for line in whole if "seconds" in line)
    # Of all sessions: what the checkpoint says, and what came after it.
    later = [line["seconds"] for line in parts if line["step"] > 2 and "seconds" in line]
    assert len(later) == 3
    assert min(later) > 1000
    expected = load_file(tmp_path / "whole/adapter/adapter_model.safetensors")
    for name, tensor in load_file(tmp_path / "parts/adapter/adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_curves_and_remaining_time_continue_from_the_checkpoint(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []

    def look(*counted: Any) -> Any:
        begun.append(counted)
        return activity(*counted)

    begun_by = higgs_pipe.training.training
    monkeypatch.setattr(begun_by, "start_tracker", lambda *given: begun.append(given[-1]))
    monkeypatch.setattr(begun_by, "activity", look)
    (tmp_path / "metrics.jsonl").write_text("of an earlier run\n")
    with monkeypatch.context() as patch:
        end_in_step(patch, 3)
        with pytest.raises(SystemExit):
            train(corpus, tmp_path, **FEW)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    train(corpus, tmp_path, **FEW)
    assert begun == [0, ("training", 4, "steps", 0), 3, ("training", 4, "steps", 3)]


def test_the_compile_cache_folder_reaches_training(
    tmp_path: Path, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(folder: Path) -> None:
        raise Seen(folder)

    monkeypatch.setattr(higgs_pipe.train, "keep_compiled_code", look)
    config = write_stage_config(tmp_path / "train.json", base_model=str(corpus.base), train={})
    rows = corpus.train_rows, corpus.eval_rows
    with pytest.raises(Seen) as seen:
        higgs_pipe.train.run(config, *rows, tmp_path, compile_cache=tmp_path / "code")
    assert seen.value.args == (tmp_path / "code",)


def test_train_and_eval_rows_reach_the_base_check_and_the_preflight_in_order(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def look(rows: Path, configured: Any, others: Any = None) -> Any:
        asked.append((rows, others))
        return base_of_rows(rows, configured, others)

    def check(_: Any, train_rows: PackedRows, eval_rows: PackedRows, *__: Any) -> Any:
        raise Seen(train_rows.path, eval_rows.path)

    monkeypatch.setattr(higgs_pipe.train, "base_of_rows", look)
    monkeypatch.setattr(higgs_pipe.train, "check_before_training", check)
    with pytest.raises(Seen) as seen:
        train(corpus, tmp_path)
    assert asked == [(corpus.train_rows, corpus.eval_rows)]
    assert seen.value.args == (corpus.train_rows, corpus.eval_rows)


def test_the_adapter_is_written_to_the_folder_of_the_command(
    tmp_path: Path, corpus: PackedCorpus
) -> None:
    settings = {"device": "cpu", "tracker": "none", **FEW, "max_steps": 1}
    config = write_stage_config(
        tmp_path / "train.json", base_model=str(corpus.base), train=settings
    )
    rows = corpus.train_rows, corpus.eval_rows
    (tmp_path / "train/logs").mkdir(parents=True)  # the curves of an earlier run
    higgs_pipe.train.run(config, *rows, tmp_path / "train", adapter_dir=tmp_path / "finished")
    assert (tmp_path / "finished/adapter_model.safetensors").is_file()
    assert not (tmp_path / "train/adapter").exists()
    assert not (tmp_path / "train/logs").exists()


def test_the_base_is_never_kept_even_if_training_makes_it_worse(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = Evaluation._held_out_losses

    def worse_than_the_base(self: Evaluation) -> dict[str, float]:
        return measured(self) | {"eval_loss": (1.0, 3.0, 2.0, 4.0)[self.progress.step]}

    monkeypatch.setattr(Evaluation, "_held_out_losses", worse_than_the_base)
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        metrics = train(corpus, tmp_path, **FEW | {"max_steps": 3, "eval_steps": 1})
    assert metrics[-1]["kept_step"] == 2
    assert re.findall(r"step +(\d)/3 .*best so far", caplog.text) == ["1", "2"]


def test_curves_of_a_resumed_run_continue_after_its_last_step(tmp_path: Path) -> None:
    begun: list[Any] = []
    accelerator: Any = SimpleNamespace(
        is_main_process=True, init_trackers=lambda *names, **options: begun.append(options)
    )
    processes.start_tracker(accelerator, TrainConfig(), tmp_path, done=5)
    assert begun == [{"init_kwargs": {"tensorboard": {"purge_step": 6}}}]


def test_alarms_get_the_entropy_of_held_out_codes(corpus: PackedCorpus) -> None:
    rows = PackedRows(corpus.eval_rows)
    labels = np.concatenate([rows[i].audio_labels for i in range(len(rows))])
    first = labels[labels[:, 0] != -100, 0]
    shares = [np.mean(first == code) for code in set(first.tolist())]
    by_hand = -sum(share * np.log(share) for share in shares)
    assert training_of(corpus).alarms.entropies[0] == pytest.approx(by_hand)


def test_alarms_and_telemetry_get_the_totals_of_the_run(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [7, 9, 8, 6, 5]
    monkeypatch.setattr(PackedRows, "row_lengths", lambda _: lengths)
    info = replace(read_codec_info(corpus.train_rows), frame_rate_hz=40.0)
    monkeypatch.setattr("higgs_pipe.higgs.batch.read_codec_info", lambda _: info)
    training = training_of(corpus, rows_per_step=2, num_epochs=3)
    assert training.num_steps == training.alarms.num_steps == 9
    assert (training.telemetry.longest_row, training.telemetry.frame_rate_hz) == (9, 40)


def test_patience_ends_a_run_after_that_many_evaluations_without_improvement(
    corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(corpus, tmp_path / "whole", **HARMFUL)
    losses = [line["eval_loss"] for line in whole if "eval_loss" in line][1:]  # after step 1, 2, …
    ends = next(n for n in range(3, 13) if min(losses[n - 2 : n]) >= min(losses[: n - 2]))
    assert ends < len(losses)
    told = rf"^step {ends}: .* 2 evaluations"
    caplog.set_level(logging.INFO, logger="higgs_pipe")
    patient = train(corpus, tmp_path / "patient", **HARMFUL, early_stopping_patience=2)
    assert steps_with(patient, "eval_loss") == list(range(ends + 1))
    assert any(re.match(told, record.getMessage()) for record in caplog.records)


def test_dropout_is_off_for_the_held_out_loss_and_on_again_afterwards(
    corpus: PackedCorpus,
) -> None:
    training = training_of(corpus, lora={"dropout": 0.9})
    for parameter in training.state.parameters:
        parameter.data.fill_(0.01)  # an adapter that does something
    assert training.model.training
    first, second = (
        held_out_sums(training.model, training.eval_rows, training.accelerator) for _ in range(2)
    )
    assert training.model.training
    assert all(torch.equal(sums.loss, second[name].loss) for name, sums in first.items())


@pytest.mark.parametrize(("of_lora", "of_attention"), [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_differs_between_epochs_and_seeds(
    corpus: PackedCorpus, of_lora: float, of_attention: float
) -> None:
    """All variants start from the same adapter."""
    start = training_of(corpus).state.parameters
    found = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        training = training_of(corpus, lora={"dropout": of_lora}, seed=seed)
        for layer in training.model.body.layers:
            layer.self_attn.attention_dropout = of_attention
        for parameter, first in zip(training.state.parameters, start, strict=True):
            parameter.data.copy_(first)
        step = training.inputs.build(PlannedStep(step=2, epoch=epoch, rows=[0]))
        found.append(training.stepper.step(step).grad_norm)
    assert found[0] == found[1]
    assert min(abs(found[0] - other) for other in found[2:]) > 1e-3 * found[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_base_is_loaded_in_the_configured_dtype(corpus: PackedCorpus, dtype: str) -> None:
    parameters = training_of(corpus, dtype=dtype).model.parameters()
    found = {parameter.dtype for parameter in parameters if not parameter.requires_grad}
    assert found == {getattr(torch, dtype)}


def test_patience_ignores_the_loss_of_the_base() -> None:
    progress = Progress()
    progress.note(1.0)
    waited = []
    for step, loss in enumerate((3.0, 2.0, 2.0, 2.5, 1.9), start=1):
        progress.step = step
        progress.note(loss)
        waited.append(progress.num_evaluations_without_better)
    assert waited == [0, 0, 1, 2, 0]


def test_the_preflight_runs_unless_turned_off(corpus: PackedCorpus, tmp_path: Path) -> None:
    for name, is_on in (("on", True), ("off", False)):
        train(corpus, tmp_path / name, rows_per_step=2, max_steps=1, preflight=is_on)
    on, off = (json.loads((tmp_path / n / "preflight.json").read_text()) for n in ("on", "off"))
    assert len(on["checks"]) > 5
    assert off["checks"] == []


def test_the_logits_budget_reaches_the_model(corpus: PackedCorpus) -> None:
    assert training_of(corpus, max_logits_mb=3.5).model.max_logits_mb == 3.5


def test_loss_weights_for_another_number_of_codebooks_are_refused(corpus: PackedCorpus) -> None:
    with pytest.raises(UserError, match=r"loss_weights\.codebooks has 3 .* 8 codebooks"):
        training_of(corpus, loss_weights={"codebooks": [1, 2, 3]})


def test_quantization_without_a_gpu_is_refused_by_the_stage(corpus: PackedCorpus) -> None:
    with pytest.raises(UserError, match=r"train\.quantization"):
        training_of(corpus, quantization="8bit")


def test_the_timeout_setting_reaches_the_process_group(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(**options: Any) -> Any:
        raise Seen(options["kwargs_handlers"][0].timeout.total_seconds())

    monkeypatch.setattr(processes, "Accelerator", look)
    with pytest.raises(Seen) as seen:
        train(corpus, tmp_path, timeout_seconds=7.5)
    assert seen.value.args == (7.5,)


def test_the_timeout_setting_reaches_the_message_about_a_silent_process(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: Any, seconds: float) -> Any:
        raise Seen(seconds)

    monkeypatch.setattr(higgs_pipe.train, "lost_process_named", look)
    with pytest.raises(Seen) as seen:
        train(corpus, tmp_path, timeout_seconds=7.5)
    assert seen.value.args == (7.5,)


@pytest.mark.parametrize(("is_on", "expected"), [(True, ["high"]), (False, [])])
def test_the_tf32_setting_reaches_pytorch_on_a_gpu(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch, is_on: bool, expected: list[str]
) -> None:
    def load(*_: Any) -> Any:
        raise Seen

    chosen: list[str] = []
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr("trainings.Accelerator", lambda **_: on_a_gpu)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(higgs_pipe.training.training, "load_base", load)
    with pytest.raises(Seen):
        training_of(corpus, tf32=is_on)
    assert chosen == expected


def test_8_bit_adamw_without_a_gpu_is_refused_by_the_stage(corpus: PackedCorpus) -> None:
    with pytest.raises(UserError, match=r"train\.optimizer"):
        training_of(corpus, optimizer="adamw_8bit")


def test_the_plan_on_a_cpu_follows_the_settings(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings: Any = {"rows_per_micro_batch": 2, "gradient_checkpointing": 1}
    metrics = train(corpus, tmp_path, **FEW | {"max_steps": 1}, **settings)
    [plan] = [line for line in metrics if "rows_per_micro_batch" in line]
    assert (plan["rows_per_micro_batch"], plan["recomputed_layers"]) == (2, 1)


def test_without_a_tracker_there_are_no_curves(corpus: PackedCorpus, tmp_path: Path) -> None:
    for tracker, has_curves in (("none", False), ("tensorboard", True)):
        train(corpus, tmp_path / tracker, **FEW | {"max_steps": 1}, tracker=tracker)
        assert (tmp_path / tracker / "logs").exists() == has_curves


# What the workflow reads, to launch a training.
LAUNCH: dict[str, Any] = {"num_processes": 2, "num_machines": 2, "main_process_ip": "10.0.0.1"}
LAUNCH |= {"main_process_port": 29501, "accelerate_config": "own.yaml"}


def test_a_run_records_its_launch_settings(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any) -> Any:
        raise Seen

    monkeypatch.setattr(Training, "fit", fit)
    with pytest.raises(Seen):
        train(corpus, tmp_path, **LAUNCH, preflight=False)
    written = TrainedSettings.read(tmp_path / "config.json").train
    assert {key: written[key] for key in LAUNCH} == LAUNCH


def likeliest(base: Path, row: PackedRow) -> tuple[list[int], list[int]]:
    """Of a row's first sample: predictions of its text labels, and of codebook 0's."""
    model = base_with_lora(base).get_base_model()
    length = int(row.sample_lengths[0])
    ids, labels = row.input_ids[:length].astype(np.int64), row.labels[:length]
    audio_at = np.flatnonzero(np.isin(ids, (270, 272)))
    frames = torch.tensor(row.audio_input_ids[: len(audio_at)].astype(np.int64))[None]
    with torch.no_grad():
        hidden = model.model(torch.tensor(ids)[None], audio_input_ids=frames).last_hidden_state[0]
        text = model.text_lm_head(hidden).argmax(-1)
        codes = model.audio_lm_head(hidden).view(length, 8, -1)[:, 0].argmax(-1)
    of_text = [int(text[place - 1]) for place in np.flatnonzero(labels != -100)]
    learnt = audio_at[row.audio_labels[: len(audio_at), 0] != -100]
    return of_text, [int(codes[place - 1]) for place in learnt]


def test_the_log_shows_predictions_for_the_first_row(
    corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The adapter of step 1 changes nothing yet, so the predictions are the base's."""
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        logging.getLogger("higgs_pipe").propagate = True
        settings: Any = {"max_steps": 1, "rows_per_step": 5, "rows_per_micro_batch": 2}
        train(corpus, tmp_path, **settings, dtype="float64", preflight=False)
    first = epoch_steps(5, 5, seed=0, epoch=0)[0][0]
    row = PackedRows(corpus.train_rows)[first]
    text, codes = likeliest(corpus.base, row)
    name = row.sample_ids[0]
    assert f"  {name} text: predicted {text} " in caplog.text
    assert f"  {name} codebook 0: predicted {codes[:4] + codes[-4:]}, " in caplog.text


def test_only_the_first_process_logs_predictions(
    corpus: PackedCorpus, caplog: pytest.LogCaptureFixture
) -> None:
    training = training_of(corpus, rows_per_step=2)
    logged = []
    for rank in (0, 1):
        process: Any = SimpleNamespace(
            is_main_process=rank == 0, process_index=rank, num_processes=2, device=CPU
        )
        training.accelerator = training.inputs.accelerator = process
        step_input = training.inputs.build(PlannedStep(1, 0, [3, 4]))
        batch = step_input.micro_batches[0].batch
        _, predictions = training.model(batch, predict=True)
        result: Any = SimpleNamespace(predictions=predictions)
        with caplog.at_level(logging.INFO, logger="higgs_pipe"):
            logging.getLogger("higgs_pipe").propagate = True
            caplog.clear()
            training._log_predictions(step_input, result)
        logged.append([record.getMessage().split()[0] for record in caplog.records])
    first = PackedRows(corpus.train_rows)[3].sample_ids[0]
    assert logged == [[first, first], []]


def test_weights_and_biases_writes_into_the_run_folder(tmp_path: Path) -> None:
    begun: list[Any] = []
    accelerator: Any = SimpleNamespace(
        is_main_process=True, init_trackers=lambda *names, **options: begun.append((names, options))
    )
    settings, output = TrainConfig(tracker="wandb"), tmp_path / "ada" / "train"
    output.mkdir(parents=True)
    processes.start_tracker(accelerator, settings, output, done=0)
    [((project, config), options)] = begun
    assert (project, config["tracker"]) == ("higgs-pipe", "wandb")
    assert options == {"init_kwargs": {"wandb": {"dir": str(output / "logs"), "name": "ada"}}}
    curves = output / "logs/of-step-2"
    curves.touch()
    for done, is_left in ((2, True), (0, False)):  # a run that goes on, and a new one
        processes.start_tracker(accelerator, settings, output, done)
        assert curves.exists() == is_left


@pytest.mark.parametrize(
    ("device", "machine"),
    [("cpu", processor()), ("cuda:1", "3 × A card of cuda:1")],
    ids=["cpu", "cuda"],
)
def test_a_run_records_when_where_and_with_what_it_started(
    device: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: f"A card of {which}")
    ancestor = Ancestor(name="voice", fingerprint="0" * 64)
    before = datetime.now(UTC).replace(microsecond=0)
    found = run_info(torch.device(device), num_processes=3, ancestor=ancestor)
    assert before <= datetime.fromisoformat(found.started_at) <= datetime.now(UTC)
    assert vars(found) == {
        "started_at": found.started_at,
        "machine": machine,
        "num_processes": 3,
        "higgs_pipe": higgs_pipe.__version__,
        "git_commit": git_commit(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "ancestor": ancestor,
    }


def test_the_processor_is_recorded_with_its_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = "processor\t: {}\nmodel name\t: An Engine\nflags\t\t: fpu\n\n"
    (tmp_path / "cpuinfo").write_text("".join(map(core.format, range(3))))
    monkeypatch.setattr(run_info_module, "Path", lambda _: tmp_path / "cpuinfo")
    assert processor() == "An Engine, 3 cores"


def test_the_recorded_commit_is_full_length_and_marked_dirty_if_modified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        given = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words)
        return subprocess.check_output(["git", *given], cwd=tmp_path, text=True).strip()

    monkeypatch.setattr(run_info_module, "__file__", str(tmp_path / "code.py"))
    assert git_commit() is None
    (tmp_path / "code.py").write_text("a = 1")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "A"), ("tag", "-am", "1", "v1")):
        git(*words)
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    (tmp_path / "code.py").write_text("a = 2")
    assert git_commit() == f"{commit}-dirty"


def test_a_run_is_recorded_with_its_actual_settings(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def look(device: torch.device, num_processes: int, ancestor: Any) -> Any:
        asked.append((device.type, num_processes, ancestor))
        raise Seen

    monkeypatch.setattr(higgs_pipe.train, "run_info", look)
    with pytest.raises(Seen):
        train(corpus, tmp_path, preflight=False)
    assert asked == [("cpu", 1, None)]
    settings = TrainConfig(num_epochs=7, lora={"r": 3})
    stage = TrainStage(base_model="base", base_model_revision="main", train=settings)
    parts = {"text": 5, "audio": 7}
    checked: dict[str, Any] = {"checks": []}
    write_run(tmp_path, run_info(torch.device("cpu"), 1), stage, parts, checked)
    written = TrainedSettings.read(tmp_path / "config.json")
    assert (written.base_model, written.base_model_revision) == ("base", "main")
    assert written.train == settings.model_dump()
    assert json.loads((tmp_path / "trainable_parameters.json").read_text()) == parts
    assert Preflight.read(tmp_path / "preflight.json").checks == []
    assert RunInfo.read(tmp_path / "run.json").num_processes == 1
