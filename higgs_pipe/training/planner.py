"""Planning a run on its card: compile, probe one micro-step, and choose the micro-batch."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedBatch, collate
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.memory import WORKSPACE_BYTES
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.parameters import memory_formula
from higgs_pipe.training.card import Card, card_of, free_memory
from higgs_pipe.training.compiling import compile_where_it_pays, compute_gradients
from higgs_pipe.training.graphs import (
    Graphs,
    difference_of_graphs,
    make_capture,
    obstacle_to_graphs,
)
from higgs_pipe.training.plan import (
    USABLE_SHARE,
    Choice,
    Plan,
    choose_plan,
    plan_without_card,
)
from higgs_pipe.training.state import TrainingState
from higgs_pipe.training.step_inputs import StepInputs

logger = logging.getLogger("higgs_pipe")

GRADIENT_BYTES, MOMENT_BYTES = 4, 8  # per trained parameter
LEAST_FACTOR = 0.5
GRAPHS_PAY = 0.95  # of the time without them

Note: TypeAlias = Callable[[int, dict[str, Any], str], None]


@dataclass
class Planner:
    """Makes the plan of a run, the same on every process, and applies it to model and inputs."""

    model: DualLossModel
    settings: TrainConfig
    inputs: StepInputs
    state: TrainingState
    accelerator: Accelerator
    note: Note = field(init=False)
    graphs: Graphs | None = None  # of the plan's padded micro-batches, on CUDA
    can_capture: bool = True

    def plan(self, note: Note) -> None:
        """Plan the rest of the run; one that resumes keeps the plan of its checkpoint.

        Args:
            note: Called with a step, a plan for ``metrics.jsonl`` and a reason for the log, now
                and whenever the plan changes.

        Raises:
            UserError: Memory does not suffice for a single packed row.
        """
        self.note = note
        kept, card = self.state.plan, card_of(self.accelerator.device)
        if card is not None:
            self.model.recomputed_layers = self.model.num_layers  # as small as can be
        is_compiled = self._compile(None if kept is None else kept.is_compiled)
        if kept is not None:
            plan, reason = replace(kept, is_compiled=is_compiled), "after the interruption"
            if self.settings.cuda_graphs == "auto" and self.accelerator.num_processes > 1:
                plan = replace(plan, is_padded=False)
        elif card is None:
            plan = plan_without_card(self.settings, self.model.num_layers, is_compiled)
            reason = "by the config"
        else:
            plan, reason = self._plan_by_probe(card, is_compiled)
        self._follow(plan, reason)
        if self.graphs is not None:
            self._check_graphs(self.graphs)

    def shrink(self) -> None:
        """Halve the rows per micro-batch, or recompute every layer, after memory ran out.

        Raises:
            UserError: One row with as many layers recomputed as can be did not fit.
        """
        if self.graphs is not None and self.graphs.fault is not None:
            self.can_capture = False  # PyTorch's allocator may be unfit for it
        self.graphs = None  # so that their memory is given back too
        free_memory(self.accelerator.device)
        step, num_layers = self.state.progress.step + 1, self.model.num_layers
        plan = self.state.plan or Plan(1, 0, is_compiled=False)
        can_recompute = self.settings.gradient_checkpointing == "auto"
        smaller = plan.halved()
        if smaller is None and can_recompute and plan.recomputed_layers < num_layers:
            smaller = replace(plan, recomputed_layers=num_layers)
        if smaller is None:
            raise self._row_too_long(plan.recomputed_layers)
        logger.warning(
            "step %d: GPU memory ran out; the step is repeated with %d rows per micro-batch and %d "
            "of %d layers recomputed",
            step,
            smaller.rows_per_micro_batch,
            smaller.recomputed_layers,
            num_layers,
        )
        self._follow(smaller, "after memory ran out")

    def _follow(self, plan: Plan, reason: str) -> None:
        """Take the next steps by this plan; the reason is for the log."""
        rows = min(plan.rows_per_micro_batch, self.inputs.rows_per_process)
        plan = replace(plan, rows_per_micro_batch=rows)
        if plan != self.state.plan:
            self.note(self.state.progress.step, plan.as_dict(), reason)
        self.state.plan = plan
        self.inputs.follow(plan.rows_per_micro_batch, plan.is_padded)
        self.model.recomputed_layers = plan.recomputed_layers
        self.graphs = None
        if plan.is_padded and self.can_capture and self._obstacle_to_graphs() is None:
            self.graphs = Graphs(self._micro_step, make_capture(), self.accelerator.device)

    def _micro_step(self, batch: PackedBatch, weights: Tensor) -> Tensor:
        """Add the gradients of a batch on the device; return its loss sums, (2 + K,) float64."""
        sums, _ = self.model(batch, weights, predict=False)
        self.state.add_gradients(sums.objective)
        return cast(Tensor, sums.total().loss.double())

    def _obstacle_to_graphs(self) -> str | None:
        return obstacle_to_graphs(self.model, self.accelerator.device)

    def _check_graphs(self, graphs: Graphs) -> None:
        """Continue without graphs if one differs from plain steps on any process."""
        lengths = self.inputs.row_lengths
        longest = sorted(range(len(lengths)), key=lengths.__getitem__)
        rows = longest[-self.inputs.rows_per_micro_batch :]
        batch = self.inputs.padded(rows, seeds=rows).to(self.accelerator.device)
        has_text = self.model.shape.has_text_loss
        weights = label_weights(batch.label_counts(), self.settings.loss_weights, has_text)
        faults = gather_object([difference_of_graphs(graphs, self.state, batch, weights)])
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is None:
            logger.info("micro-steps are replayed as CUDA graphs; the first equals a plain one")
            return
        logger.warning("training continues without CUDA graphs: %s", fault)
        graphs.graphs.clear()
        free_memory(self.accelerator.device)
        plan = cast(Plan, self.state.plan)
        self._follow(replace(plan, is_padded=False), "without CUDA graphs")

    def _compile(self, kept: bool | None) -> bool:
        num_steps = self.inputs.num_steps - self.state.progress.step
        try:
            return compile_where_it_pays(
                self.model,
                self.settings.compile,
                self.accelerator,
                num_steps * self.inputs.positions_per_step,
                self.inputs.rows,
                kept,
            )
        except torch.OutOfMemoryError:
            raise self._row_too_long(self.model.recomputed_layers) from None

    def _plan_by_probe(self, card: Card, is_compiled: bool) -> tuple[Plan, str]:
        """Scale the formula by a micro-step on the longest row: (plan, what was found)."""
        num_trained = sum(parameter.numel() for parameter in self.state.parameters)
        config, positions = self.model.native.config, max(self.inputs.row_lengths)
        formula = memory_formula(config, self.settings, num_trained, is_compiled)
        around = formula.logits + WORKSPACE_BYTES
        free = USABLE_SHARE * min(gather_object([card.available_bytes()]))
        num_bytes = free - around - (GRADIENT_BYTES + MOMENT_BYTES) * num_trained
        num_recomputed, peak = self._probe(card, formula.activations(positions, 0) <= num_bytes)
        # Memory peaks in the layers, while there are no logits: what is around them stays free.
        measured = peak - GRADIENT_BYTES * num_trained
        factor = max(measured / formula.activations(positions, num_recomputed), LEAST_FACTOR)
        formula = formula.scaled(factor)
        flops = min(gather_object([card.flops()]))
        plain, graphed = (
            choose_plan(
                formula,
                self.settings,
                num_bytes,
                positions,
                is_compiled,
                self.accelerator.num_processes,
                flops,
                is_graphed,
            )
            for is_graphed in (False, True)
        )
        plan, _, fits = graphed if self._will_graph(plain, graphed) else plain
        needed = formula.activations(plan.rows_per_micro_batch * positions, plan.recomputed_layers)
        reason = (
            f"activations {needed / 1e9:.1f} of {num_bytes / 1e9:.1f} GB; a probe needed "
            f"{factor:.2f} of the formula"
        )
        if not fits:
            logger.warning(
                "the plan may not fit: %s; a step that does not fit is made smaller", reason
            )
        return plan, reason

    def _will_graph(self, plain: Choice, graphed: Choice) -> bool:
        """Choose whether to replay graphs, and log why not if the config leaves it open."""
        setting, obstacle = self.settings.cuda_graphs, self._obstacle_to_graphs()
        if setting != "auto":
            return setting
        if self.accelerator.num_processes > 1:
            obstacle = "tried in runs of one process only; train.cuda_graphs: true takes them"
        if obstacle is None and not graphed.seconds < GRAPHS_PAY * plain.seconds:
            obstacle = "the host keeps up with the GPU, or memory is short"
        if obstacle is not None:
            logger.info("micro-steps are not replayed as CUDA graphs: %s", obstacle)
        return obstacle is None

    def _probe(self, card: Card, fits_whole: bool) -> tuple[int, float]:
        """Run the longest row: (recomputed layers, peak bytes on the process with the most).

        Args:
            card: The card of this process.
            fits_whole: Whether to try it without recomputing first.
        """
        lengths, num_layers = self.inputs.row_lengths, self.model.num_layers
        row = self.inputs.rows[lengths.index(max(lengths))]
        batch = collate([row], self.model.shape, dropout_seeds=[0])
        batch = batch.to(self.accelerator.device)
        for num_recomputed in (0, num_layers) if fits_whole else (num_layers,):
            self.model.recomputed_layers = num_recomputed
            peaks = gather_object([card.peak_bytes(lambda: compute_gradients(self.model, batch))])
            if None not in peaks:
                return num_recomputed, max(peaks)
        raise self._row_too_long(num_layers)

    def _row_too_long(self, num_recomputed: int) -> UserError:
        return UserError(
            "GPU memory does not suffice for one packed row of "
            f"{max(self.inputs.row_lengths)} positions with {num_recomputed} of "
            f"{self.model.num_layers} layers recomputed. Leave train.gradient_checkpointing at "
            "auto; set pack.max_tokens lower, train.quantization: 4bit or "
            "train.lora.target_modules: audio; or stop other programs that use memory on this GPU."
        )
