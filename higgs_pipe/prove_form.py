"""Proof that a full checkpoint is base and adapter in one, in a process that did not make it.

The merge stage runs this module in a fresh process; it can also be run by hand. Adapter and
checkpoint are compared by their logits, their held-out loss and the codes that they take greedily.

The bound of the logits is that of rounding. Of the 7 L + 2 matrices that a position passes in L
layers, each adds an independent relative error of at most the unit roundoff, 2^-8 of bfloat16; what
lies between them may double it. For the 28 layers of the 3B model this is 11 %. Greedy codes may
differ where both codes are a tie: their logits are nearer to each other than twice the largest
difference of a logit.
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
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.cli import main
from higgs_pipe.config.stages import EvalStage, Pretrained, load_stage
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.devices import pick_device, pick_dtype
from higgs_pipe.higgs.forms import Form
from higgs_pipe.higgs.generation import (
    RecordedSample,
    native_forward,
    recorded_samples,
)
from higgs_pipe.higgs.lora import check_base, load_adapter
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.higgs.merging import Merge, read_changes
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import base_of_rows, checkpoint_dir, load_pretrained
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.v2.original_form import native_name
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.results import EvalMetrics, FirstSecond, FormProof

logger = logging.getLogger("higgs_pipe")

NUM_PROMPTS = 3
LOSS_BOUND = 1e-3  # relative
# Unit roundoff; of the wider dtypes with room for another order of a product's sums.
ROUNDOFF = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2**-8}


@dataclass(frozen=True, eq=False)
class Observed:
    """Logits and codes that a model computes for held-out rows."""

    logits: tuple[Tensor, Tensor]  # of the first row: text (L, vocabulary), audio (M, K, V)
    frames: list[Codes]  # (F, K) per prompt, delayed, up to the last code of the first second


def observe(model: DualLossModel, rows: PackedRows, samples: Sequence[RecordedSample]) -> Observed:
    """Run a model on the first row and on the prompts of some samples."""
    shape, config = model.shape, model.native.config
    with torch.inference_mode():
        logits = model.logits(collate([rows[0]], shape).to(model.native.device))
    num_frames = round(rows.codec_info.frame_rate_hz) + shape.num_codebooks
    frames = []
    for sample in samples:
        inputs = _inputs(sample, np.empty((0, shape.num_codebooks), np.int16), model)
        with native_forward(model) as native:
            generated = native.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=num_frames,
                pad_token_id=config.pad_token_id,
                eos_token_id=config.eos_token_id,
            )
        prompt_frames = len(sample.prompt.audio_input_ids)
        frames.append(generated[0, prompt_frames:].to(torch.int16).cpu().numpy())
    return Observed(logits, frames)


def run(
    config: Path,
    form: str,
    form_dir: Path,
    adapter_dir: Path,
    eval_rows: Path,
    metrics: Path,
    result: Path,
) -> None:
    """Compare a full checkpoint with base and adapter.

    Args:
        config: ``results/config/eval.json``: base, device and dtype, as eval used them.
        form: merged or original.
        form_dir: The checkpoint's folder.
        adapter_dir: The adapter.
        eval_rows: Packed held-out rows.
        metrics: The metrics of eval.
        result: Where the proof goes (JSON).

    Raises:
        UserError: The base is not that of rows and adapter, or the checkpoint lacks weights or
            differs from the adapter by more than rounding explains.
    """
    kind: Form = "original" if form == "original" else "merged"
    stage = load_stage(EvalStage, config)
    accelerator = Accelerator(cpu=pick_device(stage.eval.device).type == "cpu")
    dtype = pick_dtype(stage.eval.dtype, accelerator.device)
    base = base_of_rows(eval_rows, stage.pretrained_base)
    check_base(adapter_dir, base)
    rows = PackedRows(eval_rows)
    adapted = load_adapter(load_base(base.pretrained, dtype), adapter_dir)
    model = DualLossModel(adapted).to(accelerator.device).eval()
    samples = [s for i in range(len(rows)) for s in recorded_samples(rows[i], model.shape)]
    samples = samples[:NUM_PROMPTS]
    expected = observe(model, rows, samples)
    with adapted.disable_adapter(), torch.inference_mode():
        without = model.logits(collate([rows[0]], model.shape).to(accelerator.device))
    change = _distance(without, expected.logits)
    del adapted, model
    gc.collect()

    native, stored = load_form(kind, form_dir, base.pretrained, dtype)
    model = DualLossModel(native).to(accelerator.device).eval()
    found = observe(model, rows, samples)
    difference = _distance(found.logits, expected.logits)
    bound = _bound(native.config.num_hidden_layers, stored, dtype)
    if not difference <= min(bound, change):
        raise UserError(
            f"{form_dir}: logits differ from the adapter's by {difference:.2%} (RMS), where "
            f"rounding explains {bound:.2%} and the adapter itself changes {change:.2%}. "
            "Set package.dtype: float32, or report this as a bug if it is."
        )
    largest = max(
        float((a - b).abs().max()) for a, b in zip(found.logits, expected.logits, strict=True)
    )
    seconds = [
        _first_second(sample, model, codes, reference, 2 * largest)
        for sample, codes, reference in zip(samples, found.frames, expected.frames, strict=True)
    ]
    if wrong := [s.sample_id for s in seconds if (s.margin or 0) > s.largest_margin_of_a_tie]:
        raise UserError(
            f"{form_dir}: greedy codes differ from the adapter's, and not by a tie, after the "
            f"prompts of\n{list_offenders(wrong)}\nrun: snakemake --forcerun merge_adapter"
        )
    sums = held_out_sums(model, rows, accelerator, stage.eval.rows_per_batch)
    eval_loss = named_losses(total_of(sums))["loss"]
    of_adapter = EvalMetrics.read(metrics).adapter.eval_loss
    if not abs(eval_loss - of_adapter) <= LOSS_BOUND * of_adapter:
        raise UserError(
            f"{form_dir}: the held-out loss is {eval_loss}, in {metrics} the adapter's is "
            f"{of_adapter}. Set package.dtype: float32 if it is rounding, or run: "
            "snakemake --forcerun eval_adapter"
        )
    FormProof(
        form=kind,
        computed_in=str(dtype).removeprefix("torch."),
        num_tensors_of_equal_bits=(
            _check_bits(form_dir, base.pretrained, adapter_dir, stored)
            if kind == "original"
            else None
        ),
        logit_difference=difference,
        logit_difference_bound=bound,
        max_logit_difference=largest,
        logit_change=change,
        eval_loss=eval_loss,
        eval_loss_of_adapter=of_adapter,
        first_seconds=seconds,
    ).write(result)
    logger.info(
        "%s: logits differ by %.3g (bound %.3g), held-out loss %.4f (adapter %.4f), "
        "%d of %d first frames are equal",
        form_dir,
        difference,
        bound,
        eval_loss,
        of_adapter,
        sum(second.num_equal_frames for second in seconds),
        sum(second.num_frames for second in seconds),
    )


def load_form(
    form: Form, form_dir: Path, base: Pretrained, dtype: torch.dtype
) -> tuple[HiggsAudioV2ForConditionalGeneration, torch.dtype]:
    """Load a full checkpoint with its text head into the native model.

    Returns:
        The model, and the dtype of the checkpoint's weights.

    Raises:
        UserError: Weights are missing.
    """
    with Shards(form_dir) as shards:
        names = list(shards.shapes)
        stored = shards[names[0]].dtype
        if form == "merged":
            return load_base(Pretrained("checkpoint", str(form_dir)), dtype), stored
        state = {native_name(name): shards[name] for name in names}
        model, loading = HiggsAudioV2ForConditionalGeneration.from_pretrained(
            None,
            config=load_pretrained(HiggsAudioV2Config, base),
            state_dict=state,
            dtype=dtype,
            use_text_head=True,
            output_loading_info=True,
        )
    if lacking := sorted(loading["missing_keys"]) + sorted(loading["unexpected_keys"]):
        raise UserError(f"{form_dir}: weights do not map one to one:\n{list_offenders(lacking)}")
    return model.requires_grad_(False).eval(), stored


def _bound(num_layers: int, stored: torch.dtype, computed: torch.dtype) -> float:
    """Return the relative RMS difference of logits that rounding explains."""
    units = ROUNDOFF[stored] + ROUNDOFF[computed]
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
    """Compare greedy frames, both (F, K), in the order in which they were taken."""
    num_frames = min(len(found), len(reference))
    differing = np.flatnonzero((found[:num_frames] != reference[:num_frames]).any(axis=1))
    margin = None
    num_equal = num_frames
    if len(differing):
        num_equal = int(differing[0])
        logits = _next_logits(sample, model, found[:num_equal])
        k = int(np.flatnonzero(found[num_equal] != reference[num_equal])[0])
        margin = abs(float(logits[k, found[num_equal, k]] - logits[k, reference[num_equal, k]]))
    return FirstSecond(
        sample_id=sample.sample_id,
        num_frames=num_frames,
        num_equal_frames=num_equal,
        margin=margin,
        largest_margin_of_a_tie=tie,
    )


@torch.inference_mode()
def _next_logits(sample: RecordedSample, model: DualLossModel, frames: Codes) -> Tensor:
    """Return the logits (K, V) of the frame after a prompt and ``frames`` (F, K)."""
    with native_forward(model) as native:
        logits: Tensor = native(**_inputs(sample, frames, model), use_cache=False).logits[0, -1]
    return logits.view(model.shape.num_codebooks, -1)


def _inputs(sample: RecordedSample, frames: Codes, model: DualLossModel) -> dict[str, Tensor]:
    """Return a prompt and the frames (F, K) after it, as the native model takes them."""
    prompt, native = sample.prompt, model.native
    placeholders = np.full(len(frames), native.config.audio_token_id)
    input_ids = np.concatenate([prompt.input_ids, placeholders]).astype(np.int64)
    audio = np.concatenate([prompt.audio_input_ids, frames]).astype(np.int64)
    inputs = {"input_ids": torch.from_numpy(input_ids)[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if len(audio):
        inputs["audio_input_ids"] = torch.from_numpy(audio)[None]
        inputs["audio_input_ids_mask"] = torch.ones(1, len(audio), dtype=torch.bool)
    return {name: tensor.to(native.device) for name, tensor in inputs.items()}


def _check_bits(form_dir: Path, base: Pretrained, adapter_dir: Path, dtype: torch.dtype) -> int:
    """Check every tensor against the native weight, merged once more; return their number."""
    with Shards(form_dir) as stored, Shards(checkpoint_dir(base)) as weights:
        merge = Merge(weights, read_changes(adapter_dir), dtype)
        names = list(stored.shapes)
        wrong = [name for name in names if not _same_bits(stored[name], merge[native_name(name)])]
    if wrong:
        raise UserError(
            f"{form_dir}: {len(wrong)} tensors are not those of the merged model:\n"
            f"{list_offenders(wrong)}\nrun: snakemake --forcerun merge_adapter"
        )
    return len(names)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.contiguous().view(torch.uint8))


if __name__ == "__main__":
    main(run)
