"""The state of a run: everything that its remaining steps depend on, the same on every process."""

import logging
import math
from dataclasses import dataclass, field
from typing import cast

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from higgs_pipe.higgs.lora import adapter_state
from higgs_pipe.training.checkpoints import Checkpoints, State
from higgs_pipe.training.metrics import MetricsLog
from higgs_pipe.training.plan import Plan
from higgs_pipe.training.processes import from_main_process

logger = logging.getLogger("higgs_pipe")


@dataclass
class Progress:
    """Progress of a run, and its best adapter so far."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent on training, over all sessions
    lowest_eval_loss: float = math.inf
    num_evaluations_without_better: int = 0
    best_score: tuple[float, ...] = ()  # lower is better; empty before the first candidate
    best_step: int = 0
    best_adapter: dict[str, Tensor] = field(default_factory=dict)

    def note(self, eval_loss: float) -> None:
        """Count the held-out losses in a row without a new lowest one; step 0 does not count."""
        if self.step:
            is_lower = eval_loss < self.lowest_eval_loss
            self.lowest_eval_loss = min(eval_loss, self.lowest_eval_loss)
            self.num_evaluations_without_better += 1
            if is_lower:
                self.num_evaluations_without_better = 0

    def keep_if_best(self, score: tuple[float, ...], adapter: PeftModel) -> bool:
        """Keep a copy of the adapter if its score is the lowest so far; return whether it is."""
        is_best = not self.best_score or score < self.best_score
        if is_best:
            self.best_score, self.best_step = score, self.step
            self.best_adapter = adapter_state(adapter)
        return is_best

    def is_finished(self, num_steps: int, patience: int | None) -> bool:
        """Return whether the run has taken all its steps, or run out of patience."""
        is_early = patience is not None and self.num_evaluations_without_better >= patience
        return is_early or self.step >= num_steps


@dataclass
class TrainingState:
    """State that an optimizer step changes, and the progress; a checkpoint holds all of it."""

    parameters: list[Parameter]  # the trained ones
    optimizer: Optimizer
    schedule: LRScheduler
    progress: Progress = field(default_factory=Progress)
    plan: Plan | None = None  # until the run is planned

    def __post_init__(self) -> None:
        # A parameter that no label reaches gets a gradient of zero, whatever the number of
        # processes: AdamW decays it, where it would pass over one without a gradient.
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def update(self) -> None:
        """Take an optimizer step with the present gradients."""
        self.optimizer.step()
        self.clear_gradients()
        self.schedule.step()
        self.progress.step += 1

    def clear_gradients(self) -> None:
        """Set all gradients to zero, in place."""
        self.optimizer.zero_grad(set_to_none=False)

    def add_gradients(self, objective: Tensor) -> None:
        """Add the gradients of ``objective``, ()."""
        added = torch.autograd.grad(objective, self.parameters, allow_unused=True)
        reached = [
            (cast(Tensor, parameter.grad), grad)
            for parameter, grad in zip(self.parameters, added, strict=True)
            if grad is not None
        ]
        torch._foreach_add_([total for total, _ in reached], [grad for _, grad in reached])

    def parameter_norm(self) -> float:
        """Return the norm of all trained parameters together."""
        squares = [p.detach().double().square().sum() for p in self.parameters]
        return torch.stack(squares).sum().sqrt().item()

    def save(self, checkpoints: Checkpoints, metrics: MetricsLog, accelerator: Accelerator) -> None:
        """Save a checkpoint, from the main process."""
        if not accelerator.is_main_process:
            return
        saved: State = {
            "progress": vars(self.progress),
            "plan": None if self.plan is None else self.plan.as_dict(),
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "metrics": metrics.text(),
        }
        checkpoints.save(self.progress.step, saved)

    def resume(
        self, checkpoints: Checkpoints, metrics: MetricsLog, accelerator: Accelerator
    ) -> None:
        """Restore the newest checkpoint of this run, if there is one, on every process.

        Raises:
            UserError: This process cannot read the checkpoint that the main process read.
        """
        # The main process alone decides, and sets checkpoints of other runs aside.
        saved = checkpoints.load_latest() if accelerator.is_main_process else None
        step = from_main_process(None if saved is None else saved["progress"]["step"])
        if step is None:
            return
        if saved is None:
            saved = checkpoints.load(step)
        vars(self.progress).update(saved["progress"])
        with torch.no_grad():
            for parameter, value in zip(self.parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.plan = Plan.read(saved.get("plan"))  # None in a checkpoint of an earlier version
        metrics.restore(saved["metrics"])
        logger.info("resuming after step %d", step)
