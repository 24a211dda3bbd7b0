"""One optimizer step: forward and backward over micro-batches, checks, update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.loss import (
    DEFAULT_WEIGHTS,
    LossSums,
    Predictions,
    label_weights,
    named_losses,
)
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.training.planner import Planner
from higgs_pipe.training.state import TrainingState
from higgs_pipe.training.step_inputs import MicroBatch, StepInput, StepInputs, combined_seed
from higgs_pipe.training.telemetry import Telemetry


@dataclass(frozen=True)
class StepResult:
    """Results of an optimizer step, on the host."""

    losses: dict[str, float]  # nats per label, of all processes
    learning_rate: float
    grad_norm: float  # before clipping
    predictions: Predictions | None  # of this process's first micro-batch, where asked for
    is_stop_requested: bool  # by a signal to any process


@dataclass
class Stepper:
    """Takes optimizer steps."""

    model: DualLossModel
    inputs: StepInputs
    planner: Planner
    state: TrainingState
    settings: TrainConfig
    accelerator: Accelerator
    telemetry: Telemetry
    caught: Sequence[int] = ()  # numbers of the signals that this process received

    def step(self, step_input: StepInput, predict: bool = False) -> StepResult:
        """Take one optimizer step; if memory runs out, halve the micro-batch and repeat it.

        Args:
            step_input: This process's share.
            predict: Also return the predictions of the first micro-batch.

        Raises:
            UserError: A kind of label is missing from the step, a number is not finite, the first
                step has no gradient, or a single row does not fit in memory. The weights are then
                unchanged.
        """
        step_input = self.inputs.fitted(step_input)
        while (result := self._attempt(step_input, predict)) is None:
            self.planner.shrink()
            step_input = self.inputs.fitted(step_input)
        return result

    def _attempt(self, step_input: StepInput, predict: bool) -> StepResult | None:
        """Take the step; None if a process ran out of memory, on all processes alike."""
        device = self.accelerator.device
        counts = self._summed(step_input.label_counts.to(device, non_blocking=True))
        has_text = self.model.shape.has_text_loss
        weights = label_weights(counts, self.settings.loss_weights, has_text)
        loss = torch.zeros_like(counts)
        predictions = None
        try:
            for index, micro_batch in enumerate(step_input.micro_batches):
                sums, predicted = self._micro_step(
                    step_input.planned.epoch, micro_batch, weights, predict and index == 0
                )
                loss += sums * micro_batch.weight
                predictions = predictions or predicted
            is_short = 0.0
        except torch.OutOfMemoryError:
            is_short = 1.0  # the exchange below goes on, so that the others learn of it
        with self.telemetry.phase("optimizer"):
            self._sum_gradients()
            flags = loss.new_tensor([1.0 if self.caught else 0.0, is_short])
            loss_and_flags = self._summed(torch.cat([loss, flags]))
            max_norm = self.settings.max_grad_norm
            norm = torch.nn.utils.clip_grad_norm_(self.state.parameters, max_norm)
            # The one wait for the device in a step.
            numbers = torch.cat([counts, loss_and_flags, norm.detach().to(loss).reshape(1)]).cpu()
            parts = torch.split(numbers, [len(loss), len(loss), 1, 1, 1])
            counts, loss, stop_flag, short_flag, grad_norm = parts
            if short_flag:
                self.state.clear_gradients()
                return None
            result = StepResult(
                losses=named_losses(LossSums(loss, counts, has_text=has_text)),
                learning_rate=float(self.state.schedule.get_last_lr()[0]),
                grad_norm=grad_norm.item(),
                predictions=predictions,
                is_stop_requested=bool(stop_flag),
            )
            self._check(result, counts, step_input)
            self.state.update()
        # A target of T frames has T labels of codebook 0, and its stops.
        shape = self.model.shape
        num_targets = counts[-1] / shape.num_stop_labels
        num_frames = counts[1] - num_targets * shape.num_first_stop_labels
        num_rows = len(step_input.planned.rows)
        self.telemetry.count(num_rows, step_input.num_tokens, round(num_frames.item()))
        return result

    def _micro_step(
        self, epoch: int, micro_batch: MicroBatch, weights: Tensor, predict: bool
    ) -> tuple[Tensor, Predictions | None]:
        """Add a micro-batch's gradients; return its loss sums (2 + K,) float64, and predictions."""
        weights = weights * micro_batch.weight
        if self.planner.graphs is not None and not predict:
            with self.telemetry.phase("backward"):  # and forward, which cannot be told apart
                return self.planner.graphs(micro_batch.batch, weights), None
        # LoRA's dropout depends on each row alone; this is for what else may draw.
        torch.manual_seed(combined_seed(self.settings.seed, epoch, micro_batch.rows[0]))
        with self.telemetry.phase("forward"):
            batch = micro_batch.batch.to(self.accelerator.device)
            sums, predictions = self.model(batch, weights, predict=predict)
        with self.telemetry.phase("backward"):
            self.state.add_gradients(sums.objective)
        return sums.total().loss.double(), predictions

    def _sum_gradients(self) -> None:
        """Sum the gradients over all processes, in one exchange."""
        if self.accelerator.num_processes == 1:
            return
        parameters = self.state.parameters
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        summed = self._summed(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(summed, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _summed(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast(Tensor, self.accelerator.reduce(values, "sum"))

    def _check(self, result: StepResult, counts: Tensor, step_input: StepInput) -> None:
        """Refuse the update if anything is wrong with the step."""
        step = step_input.planned.step
        names = ["text", *(f"audio codebook {k}" for k in range(len(counts) - 2)), "stream EOS"]
        needed = dict(zip(names, counts.tolist(), strict=True))
        if not self.model.shape.has_text_loss:
            del needed["text"]
        missing = [name for name, count in needed.items() if count == 0]
        if missing:
            raise UserError(
                f"step {step}: no process has a label of {', '.join(missing)}, so the loss is "
                "undefined. The packed rows are wrong; run: snakemake --forcerun pack_rows"
            )
        self._check_finite("loss", result.losses["loss"], step_input)
        self._check_finite("gradient norm", result.grad_norm, step_input)
        if step == 1 and result.grad_norm == 0:
            raise UserError(
                "step 1: the gradient of every LoRA tensor is zero, so nothing would be learned. "
                "Check that train.lora.target_modules names layers between the labels and the "
                "input, and that the base model's weights are not all zero."
            )

    def _check_finite(self, name: str, value: float, step_input: StepInput) -> None:
        if math.isfinite(value):
            return
        planned = step_input.planned
        of_process = " of this process" if self.accelerator.num_processes > 1 else ""
        raise UserError(
            f"step {planned.step}, packed rows {', '.join(map(str, planned.rows[:20]))}: {name} is "
            f"{value}; weights and last checkpoint predate this step. Lower train.learning_rate "
            f"or train.max_grad_norm, try train.dtype: float32, and listen to the clips{of_process}"
            f": {', '.join(step_input.sample_ids()[:20])}"
        )


def check_loss_weights(settings: TrainConfig, shape: BaseShape) -> None:
    """Check that ``loss_weights`` fit the base.

    Raises:
        UserError: There is not one weight per codebook, or there is one for a text loss that the
            base does not have.
    """
    weights = settings.loss_weights
    if weights.codebooks is not None and len(weights.codebooks) != shape.num_codebooks:
        raise UserError(
            f"train.loss_weights.codebooks has {len(weights.codebooks)} weights, the base model "
            f"has {shape.num_codebooks} codebooks. Give one weight per codebook, or null."
        )
    if not shape.has_text_loss and weights.text != DEFAULT_WEIGHTS.text:
        raise UserError(
            f"train.loss_weights.text is {weights.text}, but this base model has no text loss. "
            "Remove the setting."
        )
