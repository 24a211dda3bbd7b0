"""Stage 4: train a LoRA adapter on the packed rows, under ``accelerate launch``.

An optimizer step takes ``rows_per_step`` packed rows over all processes together, in a seeded
global order. The counts of labels are summed over the whole step before the first forward, each
micro-batch's loss is divided by them, and DDP adds the gradients up: the number of processes and
the size of the micro-batches change the speed, never the result.

Everything that is random is seeded by epoch and row, so a checkpoint needs no state of a random
generator: a run that is interrupted and resumed gives the adapter of one that was not.
"""

import hashlib
import json
import logging
import math
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import get_cosine_schedule_with_warmup

from higgs_pipe.cli import main
from higgs_pipe.config import TrainStage, load_stage
from higgs_pipe.data.files import sha256_of_file, write_json, write_text
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedBatch, PackedRows, collate
from higgs_pipe.higgs.chatml import PromptRenderer
from higgs_pipe.higgs.checkpoints import Checkpoints, State
from higgs_pipe.higgs.devices import pick_device, pick_dtype
from higgs_pipe.higgs.held_out import held_out_sums, total_of
from higgs_pipe.higgs.lora import (
    MUTATING,
    adapter_state,
    add_lora,
    save_adapter,
    trainable_parameters,
)
from higgs_pipe.higgs.loss import LossSums, Predictions, named_losses, objective
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.predictions import describe_predictions

logger = logging.getLogger("higgs_pipe")

# Settings that change how training runs or what it says, but not its result.
RESULT_NEUTRAL = {"num_processes", "device", "log_steps", "save_steps", "save_total_limit"}


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
        output_dir: Gets ``adapter/`` (PEFT), ``metrics.jsonl`` and ``config.json``, and
            ``checkpoints/`` while training runs.
        overrides: JSON object of the experiment, laid over the ``train`` section.

    Raises:
        UserError: A setting does not fit, or training goes wrong in a way that a person can mend.
    """
    stage = load_stage(TrainStage, config, overrides)
    device = pick_device(stage.train.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    training = Training(stage, PackedRows(train_rows), PackedRows(eval_rows), accelerator)
    settings = stage.model_dump(by_alias=True)
    if accelerator.is_main_process:
        write_json(output_dir / "config.json", settings)
        write_json(output_dir / "trainable_parameters.json", training.trainable_parameters)
    checkpoints = Checkpoints(
        output_dir / "checkpoints",
        {
            "settings": json.dumps(
                settings
                | {"train": {k: v for k, v in settings["train"].items() if k not in RESULT_NEUTRAL}}
            ),
            "training rows": sha256_of_file(train_rows),
            "held-out rows": sha256_of_file(eval_rows),
        },
        stage.train.save_total_limit,
    )
    with caught_signals() as caught:
        is_complete = training.fit(output_dir, checkpoints, caught)
    accelerator.end_training()
    if not is_complete:  # the signal may have come to another process
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))


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
        dtype = pick_dtype(settings.dtype, accelerator.device)
        base = load_base(stage.base_model, stage.base_model_revision, dtype)
        self.config = base.config
        self.tokenizer = PromptRenderer(stage.base_model, stage.base_model_revision).tokenizer
        self._check_codebook_weights()
        adapter = add_lora(base, settings.lora, settings.seed, self.tokenizer)
        self.initial_adapter = (
            adapter_state(adapter) if settings.lora.init in MUTATING else dict[str, Tensor]()
        )
        if settings.gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        model = DualLossModel(adapter).train()
        self.lora_parameters = [p for p in model.parameters() if p.requires_grad]
        self.model = accelerator.prepare(model)
        self.optimizer = torch.optim.AdamW(
            self.lora_parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps_per_epoch = math.ceil(len(train_rows) / settings.rows_per_step)
        self.num_steps = self.steps_per_epoch * settings.num_epochs
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, round(settings.warmup_fraction * self.num_steps), self.num_steps
        )
        self.best_eval_loss = math.inf
        self.best_adapter: State = {}
        self._prediction_log_failed = False
        self.trainable_parameters = trainable_parameters(adapter)
        parts = "\n".join(f"  {k:<18}{v:>14,}" for k, v in self.trainable_parameters.items())
        logger.info("trainable parameters:\n%s", parts)
        logger.info(
            "%d rows, %d steps of %d rows; base in %s on %d x %s",
            *(len(train_rows), self.num_steps, settings.rows_per_step),
            *(str(dtype).removeprefix("torch."), accelerator.num_processes, accelerator.device),
        )

    def _check_codebook_weights(self) -> None:
        weights, num_codebooks = self.settings.loss_weights.codebooks, self.config.num_codebooks
        if weights is not None and len(weights) != num_codebooks:
            raise UserError(
                f"train.loss_weights.codebooks has {len(weights)} weights, the base model has "
                f"{num_codebooks} codebooks; give one each, or null."
            )

    def fit(self, output_dir: Path, checkpoints: Checkpoints, caught: Sequence[int]) -> bool:
        """Train for all epochs, from the last checkpoint on.

        Args:
            output_dir: Of the experiment's training.
            checkpoints: Of this run.
            caught: Numbers of the signals that this process received; training stops after the
                step in which one arrived on any process, and a checkpoint is saved.

        Returns:
            Whether training is complete; a signal in the last step changes nothing.
        """
        settings, is_main_process = self.settings, self.accelerator.is_main_process
        metrics = Metrics(output_dir / "metrics.jsonl", is_main_process)
        done = self._resume(checkpoints, metrics)
        if done == 0:
            metrics.restore("")
            self._evaluate(0, metrics)
        started = time.perf_counter() - metrics.seconds
        progress = tqdm(
            initial=done,
            total=self.num_steps,
            unit="step",
            disable=not (is_main_process and sys.stderr.isatty()),
        )
        with logging_redirect_tqdm([logger]), progress:
            for step, epoch, step_rows in self._steps_after(done):
                line, batch, predictions = self.step(step_rows, epoch, step)
                progress.update()
                metrics.seconds = time.perf_counter() - started
                if step % settings.log_steps == 0 or step == 1:
                    progress_so_far = {"epoch": step / self.steps_per_epoch}
                    metrics.write(step, line | progress_so_far | {"seconds": metrics.seconds})
                    self._log_predictions(batch, predictions)
                if step % settings.eval_steps == 0 or step == self.num_steps:
                    self._evaluate(step, metrics)
                stopping = self._on_any_process(bool(caught)) and step < self.num_steps
                if is_main_process and (stopping or step % settings.save_steps == 0):
                    checkpoints.save(step, self._state(step, metrics))
                if stopping:
                    self.accelerator.wait_for_everyone()
                    logger.warning(
                        "stopped after step %d, checkpoint saved; run snakemake again to go on",
                        step,
                    )
                    return False
        if is_main_process:
            self._save_best(output_dir / "adapter")
            checkpoints.clear()
        return True

    def _steps_after(self, done: int) -> Iterator[tuple[int, int, list[int]]]:
        """(step from 1, epoch from 0, rows) of the steps that are left."""
        settings, step = self.settings, 0
        for epoch in range(settings.num_epochs):
            for step_rows in epoch_steps(
                len(self.train_rows), settings.rows_per_step, settings.seed, epoch
            ):
                step += 1
                if step > done:
                    yield step, epoch, step_rows

    def _on_any_process(self, flag: bool) -> bool:
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum").item())

    def _state(self, step: int, metrics: "Metrics") -> State:
        """All that the rest of the run depends on; the same on every process."""
        return {
            "step": step,
            "lora": [parameter.detach().cpu() for parameter in self.lora_parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best_eval_loss": self.best_eval_loss,
            "best_adapter": self.best_adapter,
            "metrics": metrics.text(),
            "seconds": metrics.seconds,
        }

    def _resume(self, checkpoints: Checkpoints, metrics: "Metrics") -> int:
        """Take up the newest checkpoint, on every process; returns the steps that are done."""
        with self.accelerator.main_process_first():  # it alone sets strange checkpoints aside
            state = checkpoints.load_latest()
        if state is None:
            return 0
        with torch.no_grad():
            for parameter, saved in zip(self.lora_parameters, state["lora"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.best_eval_loss = state["best_eval_loss"]
        self.best_adapter = state["best_adapter"]
        metrics.restore(state["metrics"])
        metrics.seconds = state["seconds"]
        logger.info("going on after step %d of %d", state["step"], self.num_steps)
        step: int = state["step"]
        return step

    def _save_best(self, adapter_dir: Path) -> None:
        model = self.accelerator.unwrap_model(self.model).model
        save_adapter(model, self.best_adapter, self.initial_adapter, adapter_dir)

    def step(
        self, step_rows: Sequence[int], epoch: int, step: int
    ) -> tuple[dict[str, float], PackedBatch, Predictions]:
        """One optimizer step.

        Args:
            step_rows: Indices of the step's rows, over all processes.
            epoch: From 0; seeds the dropout.
            step: From 1, for messages.

        Returns:
            What to log, and the first micro-batch of this process with its predictions.

        Raises:
            UserError: No label of a kind in the step, a loss that is not finite, or no gradient.
        """
        micro_batches = self._micro_batches(step_rows)
        counts = self._global_counts(micro_batches)
        self._refuse_missing_labels(counts, step)
        loss = torch.zeros_like(counts)
        predictions = []
        for micro_batch in micro_batches:
            # A row's dropout depends on the row alone, not on the process that takes it.
            torch.manual_seed(combined_seed(self.settings.seed, epoch, micro_batch.rows[0]))
            is_last = micro_batch is micro_batches[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                sums, predicted = self.model(micro_batch.batch.to(self.accelerator.device))
                total = sums.total()
                # DDP averages over the processes; the step's loss is a sum over them.
                weight = micro_batch.weight * self.accelerator.num_processes
                loss_of_step = objective(total.loss, counts, self.settings.loss_weights)
                self.accelerator.backward(loss_of_step * weight)
            loss += total.loss.detach().double() * micro_batch.weight
            predictions.append(predicted)
        step_loss = self.accelerator.reduce(loss, "sum")
        line = named_losses(LossSums(step_loss, counts, counts))
        self._refuse_not_finite("loss", line["loss"], step_rows, step)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.lora_parameters, self.settings.max_grad_norm
        ).item()
        self._refuse_not_finite("gradient norm", grad_norm, step_rows, step)
        if step == 1 and grad_norm == 0:
            raise UserError(
                "after the first step the gradient of every LoRA tensor is zero: nothing would be "
                "learnt. Check that train.lora.target_modules name layers between the labels and "
                "the input, and that the base model's weights are not all zero."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        line |= {"learning_rate": self.schedule.get_last_lr()[0], "grad_norm": grad_norm}
        self.schedule.step()
        return line, micro_batches[0].batch, predictions[0]

    def _micro_batches(self, step_rows: Sequence[int]) -> list["MicroBatch"]:
        """This process's share of a step.

        A process without rows takes the step's first row with weight 0, so that it still takes
        part in the exchange of gradients.
        """
        rank, size = self.accelerator.process_index, self.settings.rows_per_micro_batch
        mine = list(step_rows[rank :: self.accelerator.num_processes])
        weight = 1.0 if mine else 0.0
        mine = mine or [step_rows[0]]
        shares = [mine[i : i + size] for i in range(0, len(mine), size)]
        return [
            MicroBatch(rows, weight, collate([self.train_rows[row] for row in rows], self.config))
            for rows in shares
        ]

    def _global_counts(self, micro_batches: Sequence["MicroBatch"]) -> Tensor:
        """Labels of each kind in the whole step, over all processes: (2 + K,) float64."""
        counts = torch.stack([m.batch.label_counts() * m.weight for m in micro_batches]).sum(0)
        reduced: Tensor = self.accelerator.reduce(counts.to(self.accelerator.device), "sum")
        return reduced

    def _refuse_missing_labels(self, counts: Tensor, step: int) -> None:
        names = ["text", *(f"audio codebook {k}" for k in range(len(counts) - 2)), "stream EOS"]
        missing = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
        if missing:
            raise UserError(
                f"step {step}: no label of {', '.join(missing)} on any process, so its loss means "
                "nothing. The packed rows are wrong; run: snakemake --forcerun pack"
            )

    def _refuse_not_finite(
        self, name: str, value: float, step_rows: Sequence[int], step: int
    ) -> None:
        if not math.isfinite(value):
            samples = [name for row in step_rows for name in self.train_rows[row].sample_ids]
            raise UserError(
                f"step {step}: the {name} is {value}. Lower train.learning_rate or "
                "train.max_grad_norm, try train.dtype: float32, and listen to the step's clips: "
                + ", ".join(samples[:20])
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
        metrics.write(step, line)
        if step > 0 and line["eval_loss"] < self.best_eval_loss:
            self.best_eval_loss = line["eval_loss"]
            self.best_adapter = adapter_state(self.accelerator.unwrap_model(self.model).model)
            logger.info("step %d: the best adapter so far", step)

    def _log_predictions(self, batch: PackedBatch, predictions: Predictions) -> None:
        if not self.accelerator.is_main_process or self._prediction_log_failed:
            return
        try:
            for line in describe_predictions(batch, predictions, self.tokenizer):
                logger.info("%s", line)
        except Exception as error:  # noqa: BLE001 - a look at predictions must not stop training
            self._prediction_log_failed = True
            logger.warning("predictions cannot be shown, training goes on: %r", error)


class MicroBatch(NamedTuple):
    """Rows that a process takes at once; a weight of 0 is for a process that has none."""

    rows: list[int]
    weight: float
    batch: PackedBatch


class Metrics:
    """``metrics.jsonl`` and a plain line in the log, from the main process."""

    def __init__(self, path: Path, is_main_process: bool) -> None:
        self.path = path
        self.is_main_process = is_main_process
        self.seconds = 0.0  # spent on training, over all its sessions

    def text(self) -> str:
        """Everything written so far."""
        return self.path.read_text(encoding="utf-8")

    def restore(self, text: str) -> None:
        """Begin with these lines."""
        if self.is_main_process:
            write_text(self.path, text)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line."""
        if not self.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        prefix = "eval_" if "eval_loss" in values else ""
        names = ("loss", "text_loss", "audio_loss", "stop_loss")
        shown = "  ".join(f"{prefix}{name} {values[prefix + name]:.4f}" for name in names)
        logger.info("step %d  %s", step, shown)


def epoch_steps(num_rows: int, rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of each optimizer step of an epoch, in an order that only the seed decides.

    The last step takes what is left.
    """
    generator = torch.Generator().manual_seed(combined_seed(seed, epoch))
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return [order[i : i + rows_per_step] for i in range(0, num_rows, rows_per_step)]


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT end up in the list instead of ending the process; a second one does."""
    caught: list[int] = []

    def catch(number: int, _: types.FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {
        number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def combined_seed(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big")


if __name__ == "__main__":
    main(run)
