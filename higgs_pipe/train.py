"""Stage 4: train a LoRA adapter on the packed rows, under ``accelerate launch``.

An optimizer step takes ``rows_per_step`` packed rows over all processes together, in a seeded
global order. The counts of labels are summed over the whole step before the first forward pass,
each micro-batch's loss is divided by them, and the gradients are added up: the number of processes
and the size of the micro-batches change the speed, never the result.

Everything random is seeded by epoch and row, so a checkpoint needs no state of a random generator,
and a resumed run gives the adapter of an uninterrupted one.

The host waits for the device once per optimizer step, between gradients and update. There it reads
the losses, the gradient norm and whether a signal has arrived, so that no weight ever gets a NaN.
"""

import logging
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from higgs_pipe.cli import main
from higgs_pipe.config.stages import TrainStage, load_stage
from higgs_pipe.higgs.ancestor import start_from
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.compilation import keep_compiled_code
from higgs_pipe.higgs.devices import pick_dtype
from higgs_pipe.higgs.family import family_of_base, family_of_model
from higgs_pipe.higgs.lora import (
    MUTATING,
    adapter_state,
    add_lora,
    save_adapter,
    trainable_parameters,
)
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.progress import activity
from higgs_pipe.training.alarms import Alarms, code_entropies
from higgs_pipe.training.checkpoints import Checkpoints, run_identity, write_errors_named
from higgs_pipe.training.evaluation import Evaluation
from higgs_pipe.training.lock import only_training_in
from higgs_pipe.training.metrics import MetricsLog
from higgs_pipe.training.optimizer import make_optimizer, make_schedule
from higgs_pipe.training.planner import Planner
from higgs_pipe.training.predictions import describe_predictions
from higgs_pipe.training.preflight.checks import check_before_training
from higgs_pipe.training.processes import (
    caught_signals,
    lost_process_named,
    make_accelerator,
    start_tracker,
)
from higgs_pipe.training.run_info import run_info, write_run
from higgs_pipe.training.samples import Samples
from higgs_pipe.training.state import TrainingState
from higgs_pipe.training.step import Stepper, StepResult, check_loss_weights
from higgs_pipe.training.step_inputs import StepInput, StepInputs
from higgs_pipe.training.telemetry import Telemetry

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    train_rows: Path,
    eval_rows: Path,
    output_dir: Path,
    overrides: str = "{}",
    adapter_dir: Path | None = None,
    compile_cache: Path | None = None,
) -> None:
    """Train an adapter; keep the one with the lowest held-out loss.

    An interrupted run resumes from its last checkpoint. SIGTERM, SIGHUP, Ctrl-C and the end of the
    workflow finish the step, save a checkpoint, and exit with 128 + the signal's number.

    Args:
        config: ``results/config/train.json``.
        train_rows: Packed training rows.
        eval_rows: Packed held-out rows.
        output_dir: Gets ``adapter/`` (PEFT), ``metrics.jsonl``, ``preflight.json``,
            ``config.json``, ``run.json`` and ``trainable_parameters.json``, ``logs/`` of the
            tracker, and ``checkpoints/`` while training runs.
        overrides: JSON object of the experiment's settings, which override the ``train`` section.
        adapter_dir: Folder of the adapter, if not ``adapter/`` in ``output_dir``.
        compile_cache: Folder of compiled code, unless ``TORCHINDUCTOR_CACHE_DIR`` names another.

    Raises:
        UserError: A setting does not fit, or training fails for a reason that the user can fix.
    """
    stage = load_stage(TrainStage, config, overrides)
    keep_compiled_code(compile_cache)
    accelerator = make_accelerator(stage.train, output_dir)
    adapter_dir = adapter_dir or output_dir / "adapter"
    with (
        lost_process_named(accelerator, stage.train.timeout_seconds),
        only_training_in(output_dir, accelerator),
    ):
        packed, held_out = PackedRows(train_rows), PackedRows(eval_rows)
        base = base_of_rows(train_rows, stage.pretrained_base, eval_rows)
        if (licence := family_of_base(base.pretrained).licence) and accelerator.is_main_process:
            logger.warning("%s", licence.notice)
        training = Training(stage, base, packed, held_out, accelerator)
        checked: dict[str, Any] = {"checks": []}
        if stage.train.preflight:
            start = "base" if training.ancestor is None else "earlier adapter"
            checked = check_before_training(training.model, packed, held_out, accelerator, start)
        if accelerator.is_main_process:
            info = run_info(accelerator.device, accelerator.num_processes, training.ancestor)
            write_run(output_dir, info, stage, training.trainable_parameters, checked)
        checkpoints = Checkpoints(
            output_dir / "checkpoints",
            run_identity(stage, base, train_rows, eval_rows, accelerator, training.ancestor),
            stage.train.save_total_limit,
        )
        with caught_signals() as caught:
            is_complete = training.fit(output_dir, adapter_dir, checkpoints, caught)
            accelerator.end_training()
    if not is_complete:  # the signal may have come to another process
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))


class Training:
    """One run of training: model, data and state."""

    def __init__(
        self,
        stage: TrainStage,
        base_model: PinnedModel,
        train_rows: PackedRows,
        eval_rows: PackedRows,
        accelerator: Accelerator,
    ) -> None:
        self.started = time.perf_counter()
        self.settings = settings = stage.train
        self.base_model = base_model
        self.eval_rows = eval_rows
        self.accelerator = accelerator
        device = accelerator.device
        dtype = pick_dtype(settings.dtype, device)
        if settings.tf32 and device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        base = load_base(base_model.pretrained, dtype, settings.quantization, device)
        self.shape = family_of_model(base).shape_of(base.config)
        check_loss_weights(settings, self.shape)
        self.tokenizer = renderer_of(base_model.pretrained).tokenizer
        adapter = add_lora(base, settings.lora, settings.seed, self.tokenizer)
        self.ancestor = start_from(adapter, settings, base_model)
        self.initial_adapter = adapter_state(adapter) if settings.lora.init in MUTATING else {}
        self.trainable_parameters = trainable_parameters(adapter)
        # Until the run is planned, as little memory as can be.
        num_recomputed = self.shape.num_layers if device.type == "cuda" else 0
        model = DualLossModel(adapter, settings.max_logits_mb, num_recomputed).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        # Not wrapped by DDP: gradients are summed once per step, after all micro-batches, and DDP's
        # hooks would tie them to a stream in which no CUDA graph can be captured.
        self.model = accelerator.prepare_model(model, evaluation_mode=True)
        broadcast([parameter.data for parameter in trained])
        self.inputs = StepInputs(train_rows, self.shape, settings, accelerator)
        self.num_steps = self.inputs.num_steps
        optimizer = make_optimizer(trained, settings, device)
        schedule = make_schedule(optimizer, settings, self.num_steps)
        self.state = TrainingState(trained, optimizer, schedule)
        self.alarms = Alarms(
            code_entropies(eval_rows[i].audio_labels for i in range(min(len(eval_rows), 64))),
            self.shape.codebook_size,
            self.num_steps,
        )
        longest = max(self.inputs.row_lengths)
        self.telemetry = Telemetry(device, longest, train_rows.codec_info.frame_rate_hz)
        self.planner = Planner(model, settings, self.inputs, self.state, accelerator)
        self.stepper = Stepper(
            model, self.inputs, self.planner, self.state, settings, accelerator, self.telemetry
        )
        parts = ", ".join(f"{name} {n:,}" for name, n in self.trainable_parameters.items())
        logger.info("trainable parameters: %s", parts)
        where = f"{str(dtype).removeprefix('torch.')} on {accelerator.num_processes} x {device}"
        logger.info(
            "%d packed rows, %d optimizer steps; base in %s", len(train_rows), self.num_steps, where
        )

    def fit(
        self, output_dir: Path, adapter_dir: Path, checkpoints: Checkpoints, caught: Sequence[int]
    ) -> bool:
        """Train to the end, from the last checkpoint on.

        Args:
            output_dir: Folder of the experiment's training.
            adapter_dir: Folder that gets the adapter when training is complete.
            checkpoints: The checkpoints of this run.
            caught: Numbers of the signals that this process received; training stops after the
                step in which one arrived on any process, and saves a checkpoint.

        Returns:
            True if training is complete, also if a signal came in its last step.
        """
        settings, progress, accelerator = self.settings, self.state.progress, self.accelerator
        metrics = MetricsLog(output_dir / "metrics.jsonl", self.alarms, accelerator, self.num_steps)
        samples = None
        if settings.sample_steps is not None:
            folder = output_dir / "samples"
            samples = Samples(self.eval_rows, self.shape, settings, accelerator, folder)
        evaluation = Evaluation(
            self.model, self.eval_rows, settings, accelerator, progress, samples, self.inputs
        )
        self.stepper.caught = caught
        self.state.resume(checkpoints, metrics, accelerator)
        start_tracker(accelerator, settings, output_dir, progress.step)
        if progress.step == 0:
            metrics.restore("")
        self.planner.plan(metrics.write)
        if progress.step == 0:
            evaluation.run_if_due(self.num_steps, metrics)
        elif settings.stop_on_alarm:
            self.alarms.refuse_active(progress.step)
        inputs = self.inputs.after(progress.step)
        started = self.started - progress.seconds  # of earlier sessions, up to the last checkpoint
        with closing(inputs), activity("training", self.num_steps, "steps", progress.step) as pace:
            while not self._is_finished():
                is_logged = (progress.step + 1) % settings.log_steps == 0 or progress.step == 0
                with self.telemetry.step():
                    with self.telemetry.phase("data"):
                        step_input = next(inputs)
                    result = self.stepper.step(step_input, predict=is_logged)
                progress.seconds = time.perf_counter() - started
                pace.advance()
                if is_logged:
                    line = self._line(result)
                    note = f"{line['step_seconds']:.2g} s/step  {pace.left()}"
                    metrics.write(progress.step, line, note)
                    self._log_predictions(step_input, result)
                evaluation.run_if_due(self.num_steps, metrics)
                is_stopping = result.is_stop_requested and not self._is_finished()
                is_alarmed = settings.stop_on_alarm and bool(self.alarms.active)  # on all alike
                if is_stopping or is_alarmed or progress.step % settings.save_steps == 0:
                    self.state.save(checkpoints, metrics, accelerator)
                if is_alarmed or is_stopping:
                    accelerator.wait_for_everyone()
                    if is_alarmed:
                        self.alarms.refuse_active(progress.step)
                    logger.warning(
                        "stopped after step %d, checkpoint saved; run snakemake again to resume",
                        progress.step,
                    )
                    return False
        if progress.step < self.num_steps:
            logger.info(
                "step %d: no lower held-out loss in %d evaluations; training ends early",
                progress.step,
                progress.num_evaluations_without_better,
            )
        last = {"kept_step": progress.best_step, "seconds": time.perf_counter() - started}
        metrics.finish(progress.step, last)
        if accelerator.is_main_process:
            self._save_best(adapter_dir)
            checkpoints.clear()
        accelerator.wait_for_everyone()
        return True

    def _is_finished(self) -> bool:
        patience = self.settings.early_stopping_patience
        return self.state.progress.is_finished(self.num_steps, patience)

    def _line(self, result: StepResult) -> dict[str, float]:
        """Return the line of ``metrics.jsonl`` after a step."""
        progress = self.state.progress
        return {
            **result.losses,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "epoch": progress.step / self.inputs.steps_per_epoch,
            "adapter_norm": self.state.parameter_norm(),
            **self.telemetry.line(),
            "seconds": progress.seconds,
        }

    def _log_predictions(self, step_input: StepInput, result: StepResult) -> None:
        if self.accelerator.is_main_process and result.predictions is not None:
            batch = self.inputs.fitted(step_input).micro_batches[0].batch
            for line in describe_predictions(batch, result.predictions, self.tokenizer):
                logger.info("%s", line)

    def _save_best(self, adapter_dir: Path) -> None:
        best = self.state.progress.best_adapter
        with write_errors_named(adapter_dir):
            model = self.accelerator.unwrap_model(self.model).model
            save_adapter(model, best, self.initial_adapter, adapter_dir, self.base_model)


if __name__ == "__main__":
    main(run)
