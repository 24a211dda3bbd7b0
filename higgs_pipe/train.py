"""Stage 4: train a LoRA adapter on the packed rows, under ``accelerate launch``.

An optimizer step takes ``rows_per_step`` packed rows over all processes together, in a seeded
global order. The counts of labels are summed over the whole step before the first forward, each
micro-batch's loss is divided by them, and DDP adds the gradients up: the number of processes and
the size of the micro-batches change the speed, never the result.

Everything that is random is seeded by epoch and row, so a checkpoint needs no state of a random
generator: a run that is interrupted and resumed gives the adapter of one that was not.

The host waits for the device once an optimizer step, between gradients and update: there it reads
the losses, the gradient's norm and whether a signal has come, so that no weight ever sees a NaN.
"""

import json
import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from higgs_pipe.cli import main
from higgs_pipe.config.stages import TrainStage, load_stage
from higgs_pipe.data.files import write_json, write_text
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.batch import PackedBatch, PackedRows
from higgs_pipe.higgs.devices import pick_dtype
from higgs_pipe.higgs.lora import (
    MUTATING,
    adapter_state,
    add_lora,
    save_adapter,
    trainable_parameters,
)
from higgs_pipe.higgs.loss import LossSums, Predictions, label_weights, named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.prompts import PromptRenderer
from higgs_pipe.training.alarms import Alarm, Alarms, code_entropies
from higgs_pipe.training.checkpoints import Checkpoints, State, write_errors_named
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.optimizer import make_optimizer, make_schedule
from higgs_pipe.training.predictions import describe_predictions
from higgs_pipe.training.preflight.checks import check_before_training
from higgs_pipe.training.processes import (
    LOGS,
    caught_signals,
    from_main_process,
    lost_process_named,
    make_accelerator,
    start_tracker,
)
from higgs_pipe.training.step_inputs import (
    PlannedStep,
    StepInput,
    build_step,
    built_ahead,
    combined_seed,
    planned_steps,
)
from higgs_pipe.training.telemetry import Telemetry

logger = logging.getLogger("higgs_pipe")

# Settings that change how training runs or what it says, but not its result.
RESULT_NEUTRAL = {
    *("num_processes", "num_machines", "main_process_ip", "main_process_port"),
    *("accelerate_config", "timeout_seconds", "device"),
    *("log_steps", "save_steps", "save_total_limit", "tracker"),
    *("preflight", "stop_on_alarm"),
}


def run(
    config: Path, train_rows: Path, eval_rows: Path, output_dir: Path, overrides: str = "{}"
) -> None:
    """Train an adapter; keep the one with the lowest held-out loss.

    A run that was interrupted goes on from its last checkpoint. SIGTERM and Ctrl-C finish the step,
    save a checkpoint, and exit with 128 + the signal's number.

    Args:
        config: ``results/config/train.json``.
        train_rows: Packed training rows.
        eval_rows: Packed held-out rows.
        output_dir: Gets ``adapter/`` (PEFT), ``metrics.jsonl``, ``preflight.json`` and
            ``config.json``, ``logs/`` of the tracker, and ``checkpoints/`` while training runs.
        overrides: JSON object of the experiment, laid over the ``train`` section.

    Raises:
        UserError: A setting does not fit, or training goes wrong in a way that a person can mend.
    """
    stage = load_stage(TrainStage, config, overrides)
    accelerator = make_accelerator(stage.train, output_dir)
    with lost_process_named(accelerator, stage.train.timeout_seconds):
        training = Training(stage, PackedRows(train_rows), PackedRows(eval_rows), accelerator)
        checked = training.check_before() if stage.train.preflight else {"checks": []}
        if accelerator.is_main_process:
            write_json(output_dir / "config.json", stage.model_dump(by_alias=True))
            write_json(output_dir / "trainable_parameters.json", training.trainable_parameters)
            write_json(output_dir / "preflight.json", checked)
        checkpoints = Checkpoints(
            output_dir / "checkpoints",
            run_identity(stage, train_rows, eval_rows, accelerator),
            stage.train.save_total_limit,
        )
        with caught_signals() as caught:
            is_complete = training.fit(output_dir, checkpoints, caught)
            # DDP's reducer may not be the last to hold the process group: its end would join
            # gloo's thread without letting go of Python's lock, which that thread may wait for.
            del training
            accelerator.free_memory()
            accelerator.end_training()
    if not is_complete:  # the signal may have come to another process
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))


def run_identity(
    stage: TrainStage, train_rows: Path, eval_rows: Path, accelerator: Accelerator
) -> dict[str, str]:
    """What decides the result of a run; the main process alone hashes the tables.

    Raises:
        UserError: This process sees other tables than the main process.
    """
    sizes = [path.stat().st_size for path in (train_rows, eval_rows)]
    settings = stage.model_dump(mode="json", by_alias=True)
    settings["train"] = {k: v for k, v in settings["train"].items() if k not in RESULT_NEUTRAL}
    identity: dict[str, str] = {}
    if accelerator.is_main_process:
        identity = {
            "settings": json.dumps(settings),
            "training rows": sha256_of_file(train_rows),
            "held-out rows": sha256_of_file(eval_rows),
        }
    identity, sizes_of_main = from_main_process((identity, sizes))
    if sizes != sizes_of_main:
        raise UserError(
            f"{train_rows} and {eval_rows} hold {sizes} bytes for process "
            f"{accelerator.process_index}, {sizes_of_main} for process 0. All machines of a "
            "training need the same folders."
        )
    return identity


class Training:
    """Everything that one run of training holds."""

    def __init__(
        self,
        stage: TrainStage,
        train_rows: PackedRows,
        eval_rows: PackedRows,
        accelerator: Accelerator,
    ) -> None:
        settings = stage.train
        self.settings = settings
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.accelerator = accelerator
        self.device = accelerator.device
        dtype = pick_dtype(settings.dtype, self.device)
        if settings.tf32 and self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        base = load_base(stage.pretrained_base, dtype, settings.quantization, self.device)
        self.config = base.config
        self.tokenizer = PromptRenderer(stage.pretrained_base).tokenizer
        self._check_codebook_weights()
        adapter = add_lora(base, settings.lora, settings.seed, self.tokenizer)
        self.initial_adapter = (
            adapter_state(adapter) if settings.lora.init in MUTATING else dict[str, Tensor]()
        )
        model = DualLossModel(
            adapter,
            settings.max_logits_mb,
            checkpoint_every=int(settings.gradient_checkpointing),
            compile_layers=settings.compile,
        ).train()
        self.lora_parameters = [p for p in model.parameters() if p.requires_grad]
        self.model = accelerator.prepare(model)
        self.row_lengths = train_rows.row_lengths()
        self.steps_per_epoch = math.ceil(len(train_rows) / settings.rows_per_step)
        self.num_steps = settings.max_steps or self.steps_per_epoch * settings.num_epochs
        self.optimizer = make_optimizer(self.lora_parameters, settings, self.device)
        self.schedule = make_schedule(self.optimizer, settings, self.num_steps)
        self.telemetry = Telemetry(
            self.device, max(self.row_lengths), train_rows.codec_info.frame_rate_hz
        )
        self.caught: Sequence[int] = []
        self.best_eval_loss = math.inf
        self.best_adapter: State = {}
        self.num_evaluations_without_better = 0
        self.alarms = Alarms(
            code_entropies(eval_rows[i].audio_labels for i in range(min(len(eval_rows), 64))),
            self.config.codebook_size,
            self.num_steps,
        )
        self._prediction_log_failed = False
        self.trainable_parameters = trainable_parameters(adapter)
        parts = "\n".join(f"  {k:<18}{v:>14,}" for k, v in self.trainable_parameters.items())
        logger.info("trainable parameters:\n%s", parts)
        logger.info(
            "%d rows, %d steps of %d rows; base in %s on %d x %s",
            *(len(train_rows), self.num_steps, settings.rows_per_step),
            *(str(dtype).removeprefix("torch."), accelerator.num_processes, self.device),
        )

    def _check_codebook_weights(self) -> None:
        weights, num_codebooks = self.settings.loss_weights.codebooks, self.config.num_codebooks
        if weights is not None and len(weights) != num_codebooks:
            raise UserError(
                f"train.loss_weights.codebooks has {len(weights)} weights, the base model has "
                f"{num_codebooks} codebooks; give one each, or null."
            )

    def fit(self, output_dir: Path, checkpoints: Checkpoints, caught: Sequence[int]) -> bool:
        """Train to the end, from the last checkpoint on.

        Args:
            output_dir: Of the experiment's training.
            checkpoints: Of this run.
            caught: Numbers of the signals that this process received; training stops after the
                step in which one arrived on any process, and a checkpoint is saved.

        Returns:
            Whether training is complete; a signal in the last step changes nothing.
        """
        settings, is_main_process = self.settings, self.accelerator.is_main_process
        self.caught = caught
        metrics = Metrics(output_dir / "metrics.jsonl", is_main_process, self.accelerator.log)
        done = self._resume(checkpoints, metrics)
        if done == 0 and is_main_process:
            shutil.rmtree(output_dir / LOGS, ignore_errors=True)
        start_tracker(self.accelerator, settings, output_dir, done)
        if done == 0:
            metrics.restore("")
            self._evaluate(0, metrics)
        elif settings.stop_on_alarm and self.alarms.active:
            raise self._alarm_error(done)
        started = time.perf_counter() - metrics.seconds
        progress = tqdm(
            initial=done,
            total=self.num_steps,
            unit="step",
            disable=not (is_main_process and sys.stderr.isatty()),
        )
        inputs = built_ahead(self.build_step, self._steps_after(done))
        with logging_redirect_tqdm([logger]), progress, closing(inputs):
            while not self._is_finished(done):
                with self.telemetry.step():
                    with self.telemetry.phase("data"):
                        step_input = next(inputs)
                    result = self.step(step_input)
                step = done = step_input.planned.step
                progress.update()
                metrics.seconds = time.perf_counter() - started
                if self._is_logged(step):
                    line = result.line | {"epoch": step / self.steps_per_epoch}
                    line |= {"adapter_norm": self._adapter_norm()}
                    line |= self.telemetry.line() | {"seconds": metrics.seconds}
                    self._log(step, line, metrics)
                    self._log_predictions(step_input.micro_batches[0].batch, result.predictions)
                if step % settings.eval_steps == 0 or step == self.num_steps:
                    self._evaluate(step, metrics)
                stopping = result.is_stop_requested and not self._is_finished(step)
                # The losses, and so the alarms, are the same on every process.
                alarmed = settings.stop_on_alarm and bool(self.alarms.active)
                if is_main_process and (stopping or alarmed or step % settings.save_steps == 0):
                    checkpoints.save(step, self._state(step, metrics))
                if alarmed:
                    self.accelerator.wait_for_everyone()
                    raise self._alarm_error(step)
                if stopping:
                    self.accelerator.wait_for_everyone()
                    logger.warning(
                        "stopped after step %d, checkpoint saved; run snakemake again to go on",
                        step,
                    )
                    return False
        if done < self.num_steps:
            logger.info(
                "step %d: no better held-out loss in %d evaluations; training ends early",
                *(done, self.num_evaluations_without_better),
            )
        if is_main_process:
            self._save_best(output_dir / "adapter")
            checkpoints.clear()
        self.accelerator.wait_for_everyone()
        return True

    def build_step(self, planned: PlannedStep) -> StepInput:
        """Read and collate this process's share of a step; safe in a thread of its own."""
        return build_step(
            planned,
            self.train_rows,
            self.config,
            self.settings.rows_per_micro_batch,
            share=(self.accelerator.process_index, self.accelerator.num_processes),
            pin_memory=self.device.type == "cuda",
        )

    def step(self, step_input: StepInput) -> "StepResult":
        """One optimizer step.

        Raises:
            UserError: No label of a kind in the step, a loss that is not finite, or no gradient.
                The weights are then as they were.
        """
        planned, phase = step_input.planned, self.telemetry.phase
        counts = self._summed(step_input.label_counts.to(self.device, non_blocking=True))
        weights = label_weights(counts, self.settings.loss_weights)
        loss = torch.zeros_like(counts)
        predictions: list[Predictions | None] = []
        for micro_batch in step_input.micro_batches:
            # A row's dropout depends on the row alone, not on the process that takes it.
            torch.manual_seed(combined_seed(self.settings.seed, planned.epoch, micro_batch.rows[0]))
            is_last = micro_batch is step_input.micro_batches[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                with phase("forward"):
                    sums, predicted = self.model(
                        micro_batch.batch.to(self.device),
                        weights,
                        predict=not predictions and self._is_logged(planned.step),
                    )
                    # DDP averages over the processes; the step's loss is a sum over them.
                    weight = micro_batch.weight * self.accelerator.num_processes
                with phase("backward"):
                    self.accelerator.backward(sums.objective * weight)
            loss += sums.total().loss.double() * micro_batch.weight
            predictions.append(predicted)
        with phase("optimizer"):
            line, is_stop_requested = self._checked(step_input, loss, counts)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
        return StepResult(line, predictions[0], is_stop_requested)

    def _checked(
        self, step_input: StepInput, loss: Tensor, counts: Tensor
    ) -> tuple[dict[str, float], bool]:
        """Clip the gradients, and read all that the host wants to know of a step, at once.

        Returns:
            What to log, and whether a signal has come to any process.
        """
        signal_flag = loss.new_tensor([float(bool(self.caught))])
        loss_and_flag = self._summed(torch.cat([loss, signal_flag]))
        norm = torch.nn.utils.clip_grad_norm_(self.lora_parameters, self.settings.max_grad_norm)
        # The one wait for the device in a step.
        numbers = torch.cat([counts, loss_and_flag, norm.detach().to(loss).reshape(1)]).cpu()
        counts, loss = numbers[: len(loss)], numbers[len(loss) : -2]
        is_stop_requested, grad_norm = bool(numbers[-2]), numbers[-1].item()

        step, rows = step_input.planned.step, step_input.planned.rows
        self._refuse_missing_labels(counts, step)
        line = named_losses(LossSums(loss, counts, counts))
        self._refuse_not_finite("loss", line["loss"], step_input)
        self._refuse_not_finite("gradient norm", grad_norm, step_input)
        if step == 1 and grad_norm == 0:
            raise UserError(
                "after the first step the gradient of every LoRA tensor is zero: nothing would be "
                "learnt. Check that train.lora.target_modules name layers between the labels and "
                "the input, and that the base model's weights are not all zero."
            )
        # A target turn of T frames has T + 1 labels of codebook 0, one of them a stop.
        num_frames = counts[1] - counts[-1] / self.config.num_codebooks
        num_tokens = sum(self.row_lengths[row] for row in rows)
        self.telemetry.count(len(rows), num_tokens, round(num_frames.item()))
        line |= {"learning_rate": float(self.schedule.get_last_lr()[0]), "grad_norm": grad_norm}
        return line, is_stop_requested

    def _summed(self, values: Tensor) -> Tensor:
        """Over all processes."""
        summed: Tensor = self.accelerator.reduce(values, "sum")
        return summed

    def _steps_after(self, done: int) -> Iterator[PlannedStep]:
        settings = self.settings
        return planned_steps(
            len(self.train_rows), settings.rows_per_step, self.num_steps, settings.seed, done
        )

    def _is_finished(self, done: int) -> bool:
        patience = self.settings.early_stopping_patience
        is_early = patience is not None and self.num_evaluations_without_better >= patience
        return is_early or done >= self.num_steps

    def check_before(self) -> dict[str, Any]:
        """The pre-flight; it must come before :meth:`fit`, and changes nothing there."""
        return check_before_training(self.model, self.train_rows, self.eval_rows, self.accelerator)

    def _log(self, step: int, line: dict[str, float], metrics: "Metrics") -> None:
        """Write a line, and the alarms that it gives."""
        metrics.write(step, line)
        for alarm in self.alarms.check({"step": step, **line}):
            metrics.write_alarm(alarm)

    def _alarm_error(self, step: int) -> UserError:
        alarms = [f"{alarm.name}: {alarm.message}" for alarm in self.alarms.active.values()]
        return UserError(
            f"stopped after step {step} by train.stop_on_alarm; the checkpoint is saved:\n"
            f"{list_offenders(alarms)}\n"
            "Mend what the alarm names; or set train.stop_on_alarm: false and run snakemake again "
            "to go on from here."
        )

    def _adapter_norm(self) -> float:
        squares = [p.detach().double().square().sum() for p in self.lora_parameters]
        return torch.stack(squares).sum().sqrt().item()

    def _state(self, step: int, metrics: "Metrics") -> State:
        """All that the rest of the run depends on; the same on every process."""
        return {
            "step": step,
            "lora": [parameter.detach().cpu() for parameter in self.lora_parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best_eval_loss": self.best_eval_loss,
            "best_adapter": self.best_adapter,
            "num_evaluations_without_better": self.num_evaluations_without_better,
            "metrics": metrics.text(),
            "seconds": metrics.seconds,
        }

    def _resume(self, checkpoints: Checkpoints, metrics: "Metrics") -> int:
        """Take up the newest checkpoint, on every process; returns the steps that are done."""
        # The main process alone decides, and sets strange checkpoints aside.
        state = checkpoints.load_latest() if self.accelerator.is_main_process else None
        done: int = from_main_process(0 if state is None else state["step"])
        if done == 0:
            return 0
        if state is None:
            state = checkpoints.load(done)
        with torch.no_grad():
            for parameter, saved in zip(self.lora_parameters, state["lora"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.best_eval_loss = state["best_eval_loss"]
        self.best_adapter = state["best_adapter"]
        self.num_evaluations_without_better = state["num_evaluations_without_better"]
        metrics.restore(state["metrics"])
        self.alarms.replay(state["metrics"])
        metrics.seconds = state["seconds"]
        logger.info("going on after step %d of %d", done, self.num_steps)
        return done

    def _save_best(self, adapter_dir: Path) -> None:
        model = self.accelerator.unwrap_model(self.model).model
        with write_errors_named(adapter_dir):
            save_adapter(model, self.best_adapter, self.initial_adapter, adapter_dir)

    def _refuse_missing_labels(self, counts: Tensor, step: int) -> None:
        names = ["text", *(f"audio codebook {k}" for k in range(len(counts) - 2)), "stream EOS"]
        missing = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
        if missing:
            raise UserError(
                f"step {step}: no label of {', '.join(missing)} on any process, so its loss means "
                "nothing. The packed rows are wrong; run: snakemake --forcerun pack"
            )

    def _refuse_not_finite(self, name: str, value: float, step_input: StepInput) -> None:
        if math.isfinite(value):
            return
        step, _, rows = step_input.planned
        where = " of this process" if self.accelerator.num_processes > 1 else ""
        raise UserError(
            f"step {step}, packed rows {', '.join(map(str, rows[:20]))}: the {name} is {value}; "
            "the weights and the last checkpoint are from before it. Lower train.learning_rate or "
            "train.max_grad_norm, try train.dtype: float32, and listen to the step's clips"
            f"{where}: " + ", ".join(step_input.sample_ids()[:20])
        )

    def _evaluate(self, step: int, metrics: "Metrics") -> None:
        """The held-out loss; the best adapter so far is kept, to be saved at the end."""
        sums = held_out_sums(
            self.model, self.eval_rows, self.accelerator, self.settings.rows_per_micro_batch
        )
        line = named_losses(total_of(sums), prefix="eval_")
        if not math.isfinite(line["eval_loss"]):
            raise UserError(
                f"step {step}: the held-out loss is {line['eval_loss']}. Lower "
                "train.learning_rate, or try train.dtype: float32."
            )
        self._log(step, line, metrics)
        if step == 0:
            return
        if line["eval_loss"] < self.best_eval_loss:
            self.num_evaluations_without_better = 0
            self.best_eval_loss = line["eval_loss"]
            self.best_adapter = adapter_state(self.accelerator.unwrap_model(self.model).model)
            logger.info("step %d: the best adapter so far", step)
        else:
            self.num_evaluations_without_better += 1

    def _is_logged(self, step: int) -> bool:
        return step % self.settings.log_steps == 0 or step == 1

    def _log_predictions(self, batch: PackedBatch, predictions: Predictions | None) -> None:
        if not self.accelerator.is_main_process or self._prediction_log_failed:
            return
        if predictions is None:
            return
        try:
            for line in describe_predictions(batch, predictions, self.tokenizer):
                logger.info("%s", line)
        except Exception as error:  # noqa: BLE001 - a look at predictions must not stop training
            self._prediction_log_failed = True
            logger.warning("predictions cannot be shown, training goes on: %r", error)


class StepResult(NamedTuple):
    """What one optimizer step has to say."""

    line: dict[str, float]
    predictions: Predictions | None  # of this process's first micro-batch, in a logged step
    is_stop_requested: bool  # by a signal to any process


class Metrics:
    """``metrics.jsonl``, a plain line in the log and the tracker, from the main process."""

    def __init__(self, path: Path, is_main_process: bool, track: Callable[..., None]) -> None:
        self.path = path
        self.is_main_process = is_main_process
        self.track = track
        self.seconds = 0.0  # spent on training, over all its sessions

    def text(self) -> str:
        """Everything written so far."""
        return self.path.read_text(encoding="utf-8")

    def restore(self, text: str) -> None:
        """Begin with these lines."""
        if self.is_main_process:
            with write_errors_named(self.path):
                write_text(self.path, text)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line."""
        if not self.is_main_process:
            return
        with write_errors_named(self.path):
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            self.track(values, step=step)
        prefix = "eval_" if "eval_loss" in values else ""
        names = ("loss", "text_loss", "audio_loss", "stop_loss")
        shown = "  ".join(f"{prefix}{name} {values[prefix + name]:.4f}" for name in names)
        logger.info("step %d  %s", step, shown)

    def write_alarm(self, alarm: Alarm) -> None:
        """Append an alarm, and warn."""
        if not self.is_main_process:
            return
        with write_errors_named(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(alarm.as_line()) + "\n")
        logger.warning("step %d  alarm: %s: %s", alarm.step, alarm.name, alarm.message)


if __name__ == "__main__":
    main(run)
