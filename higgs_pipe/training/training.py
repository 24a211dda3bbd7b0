"""A training: model, data and state, and the loop of its optimizer steps.

The host waits for the device once per optimizer step, between gradients and update. There it reads
the losses, the gradient norm and whether a signal has arrived, so that no weight ever gets a NaN.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from higgs_pipe.config.stages import TrainStage
from higgs_pipe.higgs.ancestor import start_from
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.devices import pick_dtype
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.lora import (
    MUTATING,
    adapter_state,
    add_lora,
    save_adapter,
    trainable_parameters,
)
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.progress import activity
from higgs_pipe.training.alarms import Alarms, code_entropies
from higgs_pipe.training.checkpoints import Checkpoints, write_errors_named
from higgs_pipe.training.evaluation import Evaluation
from higgs_pipe.training.metrics import MetricsLog
from higgs_pipe.training.optimizer import make_optimizer, make_schedule
from higgs_pipe.training.planner import Planner
from higgs_pipe.training.predictions import describe_predictions
from higgs_pipe.training.processes import start_tracker
from higgs_pipe.training.samples import Samples
from higgs_pipe.training.state import TrainingState
from higgs_pipe.training.step import Stepper, StepResult, check_loss_weights
from higgs_pipe.training.step_inputs import StepInput, StepInputs
from higgs_pipe.training.telemetry import Telemetry

logger = logging.getLogger("higgs_pipe")


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
        self.started = time.perf_counter()  # as if there had been no interruption
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
        metrics = MetricsLog(
            output_dir / "metrics.jsonl", self.alarms, self.accelerator, self.num_steps
        )
        evaluation = self._evaluation(output_dir)
        self.stepper.caught = caught
        self._begin(output_dir, checkpoints, metrics, evaluation)
        if not self._take_steps(checkpoints, metrics, evaluation):
            return False
        self._end(adapter_dir, checkpoints, metrics)
        return True

    def _evaluation(self, output_dir: Path) -> Evaluation:
        """The evaluation on held-out rows, with samples if they are spoken."""
        samples = None
        if self.settings.sample_steps is not None:
            folder = output_dir / "samples"
            samples = Samples(self.eval_rows, self.shape, self.settings, self.accelerator, folder)
        return Evaluation(
            self.model,
            self.eval_rows,
            self.settings,
            self.accelerator,
            self.state.progress,
            samples,
            self.inputs,
        )

    def _begin(
        self,
        output_dir: Path,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        evaluation: Evaluation,
    ) -> None:
        """Resume from the last checkpoint, or evaluate before the first step; plan the run."""
        progress = self.state.progress
        self.state.resume(checkpoints, metrics, self.accelerator)
        self.started -= progress.seconds  # of earlier sessions, up to the last checkpoint
        start_tracker(self.accelerator, self.settings, output_dir, progress.step)
        if progress.step == 0:
            metrics.restore("")
        self.planner.plan(metrics.write)
        if progress.step == 0:
            evaluation.run_if_due(self.num_steps, metrics)
        elif self.settings.stop_on_alarm:
            self.alarms.refuse_active(progress.step)

    def _take_steps(
        self, checkpoints: Checkpoints, metrics: MetricsLog, evaluation: Evaluation
    ) -> bool:
        """Take the remaining steps; return False if a signal stopped them before the last.

        Raises:
            UserError: An alarm stopped them. As after a signal, a checkpoint is saved.
        """
        settings, progress = self.settings, self.state.progress
        inputs = self.inputs.after(progress.step)
        with closing(inputs), activity("training", self.num_steps, "steps", progress.step) as pace:
            while not self._is_finished():
                is_logged = (progress.step + 1) % settings.log_steps == 0 or progress.step == 0
                with self.telemetry.step():
                    with self.telemetry.phase("data"):
                        step_input = next(inputs)
                    result = self.stepper.step(step_input, predict=is_logged)
                progress.seconds = time.perf_counter() - self.started
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
                    self.state.save(checkpoints, metrics, self.accelerator)
                if is_alarmed or is_stopping:
                    self.accelerator.wait_for_everyone()
                    if is_alarmed:
                        self.alarms.refuse_active(progress.step)
                    logger.warning(
                        "stopped after step %d, checkpoint saved; run snakemake again to resume",
                        progress.step,
                    )
                    return False
        return True

    def _end(self, adapter_dir: Path, checkpoints: Checkpoints, metrics: MetricsLog) -> None:
        """Save the best adapter; delete the checkpoints."""
        progress = self.state.progress
        if progress.step < self.num_steps:
            logger.info(
                "step %d: no lower held-out loss in %d evaluations; training ends early",
                progress.step,
                progress.num_evaluations_without_better,
            )
        seconds = time.perf_counter() - self.started
        metrics.finish(progress.step, {"kept_step": progress.best_step, "seconds": seconds})
        if self.accelerator.is_main_process:
            self._save_best(adapter_dir)
            checkpoints.clear()
        self.accelerator.wait_for_everyone()

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
