"""Verification, in a fresh process, that a full checkpoint equals base and adapter.

The merge stage runs this module in a fresh process; it can also be run by hand. Adapter and
checkpoint are compared by their weights, logits, held-out loss and greedy codes.

- **Weights** are those of PEFT's own merge, rounded once. A weight may differ only if a sum in
  another order falls on the other side of a rounding boundary: 3 in 100,000, by float32's error.
- The models are compared in float32 arithmetic, on weights in their stored dtype. bfloat16
  arithmetic alone changes the loss by as much as the merge may.
- **Logits**: the bound is that of rounding. Of the 7 L + 2 matrices that a position passes in L
  layers, each adds an independent relative error of at most the unit roundoff, 2^-8 for bfloat16;
  the operations between them may double it. For the 28 layers of the 3B model this is 11 %.
- **Greedy codes** may differ at a tie: two codes whose logits differ by less than twice the largest
  difference of a logit.

One model is in memory at a time.
"""

import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from higgs_pipe.cli import main
from higgs_pipe.config.stages import EvalStage, load_stage
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.devices import pick_device
from higgs_pipe.higgs.family import full_form
from higgs_pipe.higgs.float32 import float32_arithmetic
from higgs_pipe.higgs.form_weights import check_bits, check_weights, load_form, stored_dtype
from higgs_pipe.higgs.generation import RecordedSample, recorded_samples
from higgs_pipe.higgs.greedy import next_logits, speak_greedily
from higgs_pipe.higgs.lora import check_base, load_adapter_exactly, merge_by_peft
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.higgs.pretrained import checkpoint_dir
from higgs_pipe.training.form_results import FirstSecond, FormProof
from higgs_pipe.training.held_out import held_out_sums, total_of

logger = logging.getLogger("higgs_pipe")

NUM_PROMPTS = 3
LOSS_BOUND = 1e-3  # relative
# Unit roundoff; of the wider dtypes with room for another order of a product's sums.
ROUNDOFF = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2**-8}


@dataclass(frozen=True, eq=False)
class Observed:
    """Results of a model on held-out rows."""

    logits: list[Tensor]  # of the first row, by head: as HeldOutRows.logits
    frames: list[Codes]  # (F, K) per prompt, delayed, of the first second
    eval_loss: float


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """The held-out rows, and how to run models on them."""

    table: PackedRows
    prompts: Sequence[RecordedSample]
    accelerator: Accelerator
    rows_per_batch: int

    @torch.inference_mode()
    def logits(self, model: DualLossModel) -> list[Tensor]:
        """Return the logits of the first row: text (L, vocabulary), if any, and audio (M, K, V)."""
        batch = collate([self.table[0]], model.shape).to(self.accelerator.device)
        return [logits for logits in model.logits(batch) if logits.numel()]

    def observe(self, model: DualLossModel) -> Observed:
        """Run a model on all of them."""
        num_frames = round(self.table.codec_info.frame_rate_hz)
        sums = held_out_sums(model, self.table, self.accelerator, self.rows_per_batch)
        return Observed(
            self.logits(model),
            [speak_greedily(model, prompt, num_frames) for prompt in self.prompts],
            named_losses(total_of(sums))["loss"],
        )


def run(
    config: Path,
    form: str,
    form_dir: Path,
    adapter_dir: Path,
    eval_rows: Path,
    result: Path,
) -> None:
    """Compare a full checkpoint with base and adapter.

    Args:
        config: ``results/config/eval.json``: base, device and rows per batch.
        form: merged or original.
        form_dir: The checkpoint's folder.
        adapter_dir: The adapter.
        eval_rows: Packed held-out rows.
        result: The proof to write (JSON).

    Raises:
        UserError: The base is not that of rows and adapter, or the checkpoint lacks weights or
            differs from the adapter by more than rounding explains.
    """
    stage = load_stage(EvalStage, config)
    accelerator = Accelerator(cpu=pick_device(stage.eval.device).type == "cpu")
    base = base_of_rows(eval_rows, stage.pretrained_base)
    kind = full_form(base.pretrained, form)
    check_base(adapter_dir, base)
    stored = stored_dtype(form_dir)

    native = load_base(base.pretrained, stored_dtype(checkpoint_dir(base.pretrained)))
    adapted = load_adapter_exactly(native, adapter_dir)
    model = DualLossModel(adapted).to(accelerator.device).eval()
    table = PackedRows(eval_rows)
    prompts = [s for i in range(len(table)) for s in recorded_samples(table[i], model.shape)]
    rows = HeldOutRows(table, prompts[:NUM_PROMPTS], accelerator, stage.eval.rows_per_batch)
    with float32_arithmetic(model):
        expected = rows.observe(model)
        with adapted.disable_adapter():
            change = _distance(rows.logits(model), expected.logits)
    share = check_weights(form_dir, merge_by_peft(adapted, stored), form, base.pretrained)
    del native, adapted, model
    gc.collect()

    model = DualLossModel(load_form(form, form_dir, base.pretrained))
    model.to(accelerator.device).eval()
    with float32_arithmetic(model):
        found = rows.observe(model)
        difference = _distance(found.logits, expected.logits)
        bound = _bound(model.num_layers, stored)
        _check_logits(form_dir, difference, bound, change)
        largest = max(
            float((a - b).abs().max()) for a, b in zip(found.logits, expected.logits, strict=True)
        )
        seconds = [
            _first_second(prompt, model, codes, reference, 2 * largest)
            for prompt, codes, reference in zip(
                rows.prompts, found.frames, expected.frames, strict=True
            )
        ]
    _check_speech(form_dir, seconds)
    _check_loss(form_dir, found.eval_loss, expected.eval_loss)
    FormProof(
        form=form,
        num_tensors_of_equal_bits=(
            None if kind.is_native else check_bits(form_dir, form, base.pretrained, adapter_dir)
        ),
        largest_share_rounded_otherwise=share,
        logit_difference=difference,
        logit_difference_bound=bound,
        max_logit_difference=largest,
        logit_change=change,
        eval_loss=found.eval_loss,
        eval_loss_of_adapter=expected.eval_loss,
        first_seconds=seconds,
    ).write(result)
    logger.info(
        "%s: logits differ by %.3g (bound %.3g), held-out loss %.5f (adapter %.5f), "
        "%d of %d first frames are equal",
        form_dir,
        difference,
        bound,
        found.eval_loss,
        expected.eval_loss,
        sum(second.num_equal_frames for second in seconds),
        sum(second.num_frames for second in seconds),
    )


def _check_logits(form_dir: Path, difference: float, bound: float, change: float) -> None:
    if not difference <= min(bound, change):
        raise UserError(
            f"{form_dir}: logits differ from the adapter's by {difference:.2%} (RMS), where "
            f"rounding explains {bound:.2%} and the adapter itself changes {change:.2%}. "
            "Set package.dtype: float32; if it is set already, report this as a bug."
        )


def _check_speech(form_dir: Path, seconds: Sequence[FirstSecond]) -> None:
    if wrong := [s.sample_id for s in seconds if (s.margin or 0) > s.largest_margin_of_a_tie]:
        raise UserError(
            f"{form_dir}: greedy codes differ from the adapter's, and not by a tie, after the "
            f"prompts of\n{list_offenders(wrong)}\nrun: snakemake --forcerun merge_adapter"
        )


def _check_loss(form_dir: Path, loss: float, loss_of_adapter: float) -> None:
    if not abs(loss - loss_of_adapter) <= LOSS_BOUND * loss_of_adapter:
        raise UserError(
            f"{form_dir}: the held-out loss is {loss}, the adapter's is {loss_of_adapter}: "
            f"rounding moves it by more than {LOSS_BOUND:.1%}. Set package.dtype: float32."
        )


def _bound(num_layers: int, stored: torch.dtype) -> float:
    """Return the relative RMS difference of logits that rounding explains."""
    units = ROUNDOFF[stored] + ROUNDOFF[torch.float32]
    return 2 * units * math.sqrt(7 * num_layers + 2)


def _distance(logits: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the RMS of the difference, relative to the reference's; the worst of all heads."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(logits, reference, strict=True)
    )


def _first_second(
    sample: RecordedSample, model: DualLossModel, found: Codes, reference: Codes, tie: float
) -> FirstSecond:
    """Compare greedy frames, both (F, K), in the order of generation."""
    num_frames = min(len(found), len(reference))
    differing = np.flatnonzero((found[:num_frames] != reference[:num_frames]).any(axis=1))
    margin = None
    num_equal = num_frames
    if len(differing):
        num_equal = int(differing[0])
        logits = next_logits(model, sample, found[:num_equal])
        k = int(np.flatnonzero(found[num_equal] != reference[num_equal])[0])
        margin = abs(float(logits[k, found[num_equal, k]] - logits[k, reference[num_equal, k]]))
    return FirstSecond(
        sample_id=sample.sample_id,
        num_frames=num_frames,
        num_equal_frames=num_equal,
        margin=margin,
        largest_margin_of_a_tie=tie,
    )


if __name__ == "__main__":
    main(run)
