"""Verification, in a fresh process, that a packaged adapter works.

The package stage runs this module in a fresh process; it can also be run by hand.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from higgs_pipe.cli import main
from higgs_pipe.config.stages import EvalStage, load_stage
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.devices import pick_device, pick_dtype
from higgs_pipe.higgs.lora import check_base, load_adapter
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.results import EvalMetrics, Proof

logger = logging.getLogger("higgs_pipe")

# The same sums in the same dtype; room for another device's or thread count's rounding. Measured on
# single rows of two clips: two ways to round to bfloat16 differ by up to 0.33 % in the loss, nearly
# all of it from six text labels, and by 0.04 % in the audio loss.
LOSS_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2}
AUDIO_LOSS_TOLERANCE = LOSS_TOLERANCE | {torch.bfloat16: 2e-3}


def run(config: Path, adapter_dir: Path, eval_rows: Path, metrics: Path, result: Path) -> None:
    """Load an adapter with plain PEFT and compare it with eval's numbers.

    Args:
        config: ``results/config/eval.json``: base, device and dtype, as eval used them.
        adapter_dir: The packaged adapter.
        eval_rows: Packed held-out rows.
        metrics: The metrics of eval.
        result: The results to write (JSON).

    Raises:
        UserError: The base is not that of the rows and of the adapter, a tensor of the file was
            not loaded, the logits are those of the base, or the held-out loss is not eval's.
    """
    stage = load_stage(EvalStage, config)
    accelerator = Accelerator(cpu=pick_device(stage.eval.device).type == "cpu")
    dtype = pick_dtype(stage.eval.dtype, accelerator.device)
    pinned = base_of_rows(eval_rows, stage.pretrained_base)
    base = load_base(pinned.pretrained, dtype)
    adapted = load_adapter(base, adapter_dir)
    check_base(adapter_dir, pinned)
    num_tensors = _check_tensors(adapted, adapter_dir)

    model = DualLossModel(adapted).to(accelerator.device).eval()
    rows = PackedRows(eval_rows)
    max_logit_change = _max_logit_change(model, rows)
    if max_logit_change == 0:
        raise UserError(
            f"{adapter_dir}: the adapter has no effect, its logits are those of the base; "
            "run: snakemake --forcerun train_adapter"
        )
    sums = held_out_sums(model, rows, accelerator, stage.eval.rows_per_batch)
    losses = named_losses(total_of(sums))
    evals = EvalMetrics.read(metrics).adapter
    for name, found, expected, tolerance in (
        ("loss", losses["loss"], evals.eval_loss, LOSS_TOLERANCE[dtype]),
        ("audio loss", losses["audio_loss"], evals.eval_audio_loss, AUDIO_LOSS_TOLERANCE[dtype]),
    ):
        if abs(found - expected) > tolerance * abs(expected):
            raise UserError(
                f"{adapter_dir}: the held-out {name} is {found}, in {metrics} it is {expected}; "
                "run: snakemake --forcerun eval_adapter"
            )
    Proof(
        num_adapter_tensors=num_tensors,
        max_logit_change=max_logit_change,
        eval_loss=losses["loss"],
        base_fingerprint=pinned.fingerprint,
        base_revision=pinned.revision,
    ).write(result)
    logger.info(
        "%s: %d tensors, held-out loss %.4f, eval's", adapter_dir, num_tensors, losses["loss"]
    )


def _check_tensors(adapted: Any, adapter_dir: Path) -> int:
    """Check that file and model have the same adapter tensors; return their number."""
    in_file = load_file(adapter_dir / "adapter_model.safetensors")
    # Embeddings are not looked for: PEFT would ask the Hub for the base by its name.
    in_model = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wrong = sorted(in_file.keys() ^ in_model.keys())
    wrong += [
        key
        for key in sorted(in_file.keys() & in_model.keys())
        if not torch.equal(in_file[key].to(in_model[key]), in_model[key])
    ]
    if wrong:
        raise UserError(
            f"{adapter_dir}: {len(wrong)} adapter tensors do not load:\n{list_offenders(wrong)}\n"
            "run: snakemake --forcerun train_adapter"
        )
    return len(in_file)


@torch.inference_mode()
def _max_logit_change(model: DualLossModel, rows: PackedRows) -> float:
    """Return the adapter's largest change of an audio logit on the first held-out row."""
    batch = collate([rows[0]], model.shape).to(next(model.parameters()).device)
    with_adapter = model.logits(batch)[1]
    with model.model.disable_adapter():
        without = model.logits(batch)[1]
    return float((with_adapter - without).abs().max())


if __name__ == "__main__":
    main(run)
