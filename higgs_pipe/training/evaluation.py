"""Held-out losses and samples during training, and the best adapter by them."""

import math
from dataclasses import dataclass
from typing import Any, cast

from accelerate import Accelerator
from peft import PeftModel

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.metrics import MetricsLog
from higgs_pipe.training.samples import Samples
from higgs_pipe.training.state import Progress
from higgs_pipe.training.step_inputs import StepInputs

EVAL_LOSS = "eval_loss"
BEST = "best so far"


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a run after the steps that are due.

    If ``keep_best_by`` is not the held-out loss, only adapters with samples are candidates, and the
    held-out loss breaks ties. Failed samples rank last.
    """

    model: Any  # a DualLossModel as Accelerate prepared it
    rows: PackedRows
    settings: TrainConfig
    accelerator: Accelerator
    progress: Progress
    samples: Samples | None  # None: nothing is spoken
    inputs: StepInputs  # of which held-out rows take the size of micro-batches

    def run_if_due(self, num_steps: int, metrics: MetricsLog) -> None:
        """Evaluate after step 0, every n-th step and the last one; keep the best adapter.

        Raises:
            UserError: The held-out loss is not finite.
        """
        progress, settings = self.progress, self.settings
        is_last = progress.step == num_steps
        is_by_samples = settings.keep_best_by != EVAL_LOSS
        is_speaking = self._is_due(settings.sample_steps, is_last)
        is_evaluated = self._is_due(settings.eval_steps, is_last) or (is_speaking and is_by_samples)
        if is_evaluated:
            losses = self._held_out_losses()
            eval_loss = losses["eval_loss"]
            progress.note(eval_loss)
            is_candidate = not is_by_samples and progress.step > 0
            is_best = is_candidate and progress.keep_if_best((eval_loss,), self._adapter())
            metrics.write(progress.step, losses, BEST if is_best else "")
            # Patience may have ended the run.
            is_last = progress.is_finished(num_steps, settings.early_stopping_patience)
            is_speaking = self._is_due(settings.sample_steps, is_last)
        if is_speaking and self.samples is not None:
            measures = self.samples.speak(progress.step, self.model)
            is_best = False
            if is_by_samples and progress.step > 0:
                badness = measures.badness(settings.keep_best_by) if measures else math.inf
                is_best = progress.keep_if_best((badness, eval_loss), self._adapter())
            if measures is not None:
                metrics.write(progress.step, measures.line(), BEST if is_best else "")

    def _is_due(self, every: int | None, is_last: bool) -> bool:
        return every is not None and (self.progress.step % every == 0 or is_last)

    def _held_out_losses(self) -> dict[str, float]:
        step, rows_per_batch = self.progress.step, self.inputs.rows_per_micro_batch
        sums = held_out_sums(self.model, self.rows, self.accelerator, rows_per_batch)
        losses = named_losses(total_of(sums), prefix="eval_")
        if not math.isfinite(losses["eval_loss"]):
            raise UserError(
                f"step {step}: the held-out loss is {losses['eval_loss']}. Lower "
                "train.learning_rate, or try train.dtype: float32."
            )
        return losses

    def _adapter(self) -> PeftModel:
        return cast(PeftModel, self.accelerator.unwrap_model(self.model).model)
