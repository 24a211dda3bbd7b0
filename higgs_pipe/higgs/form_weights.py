"""The weights of a full checkpoint: loaded as they are stored, and held against the adapter's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.forms import Form
from higgs_pipe.higgs.merging import Merge, read_changes
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import checkpoint_dir, load_pretrained
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.v2.original_form import native_name

# Weights are equal within this part of the tensor's largest: sums of float32 in another order.
SAME_WEIGHT = 1e-5
# So many of a tensor's weights may be rounded to the other side.
MAX_SHARE_ROUNDED_OTHERWISE = 1e-3


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that holds every weight of a checkpoint."""
    with Shards(folder) as shards:
        return shards.dtype


def load_form(form: Form, form_dir: Path, base: Pretrained) -> Any:
    """Load a full checkpoint with its text head into the native model, as it is stored.

    Raises:
        UserError: Weights are missing.
    """
    with Shards(form_dir) as shards:
        dtype = shards.dtype
        if form == "merged":
            return load_base(Pretrained("checkpoint", str(form_dir)), dtype)
        state = {native_name(name): shards[name] for name in shards.shapes}
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
    return model.requires_grad_(False).eval()


def check_weights(form_dir: Path, expected: Mapping[str, Tensor], form: Form) -> float:
    """Check that a checkpoint's weights are those of :func:`lora.merge_by_peft`.

    Returns:
        The largest share of a tensor's weights that were rounded to the other side.

    Raises:
        UserError: A tensor differs by more, or is missing or unknown.
    """
    with Shards(form_dir) as shards:
        native = {native_name(n) if form == "original" else n: n for n in shards.shapes}
        wrong = [f"{name}: missing" for name in expected.keys() - native.keys()]
        wrong += [f"{name}: unknown" for name in native.keys() - expected.keys()]
        shares = {
            name: _share_of_others(shards[native[name]], expected[name].cpu())
            for name in expected.keys() & native.keys()
        }
    wrong += [
        f"{name}: {share:.2%} of the weights differ"
        for name, share in shares.items()
        if not share <= MAX_SHARE_ROUNDED_OTHERWISE
    ]
    if wrong:
        raise UserError(
            f"{form_dir}: {len(wrong)} tensors are not those of base and adapter:\n"
            f"{list_offenders(sorted(wrong))}\nrun: snakemake --forcerun merge_adapter"
        )
    return max(shares.values())


def check_bits(form_dir: Path, base: Pretrained, adapter_dir: Path) -> int:
    """Check that an original checkpoint is the native one by other names, bit for bit.

    Returns:
        The number of tensors.

    Raises:
        UserError: A tensor differs from the native weight, merged once more.
    """
    with Shards(form_dir) as stored, Shards(checkpoint_dir(base)) as weights:
        merge = Merge(weights, read_changes(adapter_dir), stored.dtype)
        names = list(stored.shapes)
        wrong = [name for name in names if not _same_bits(stored[name], merge[native_name(name)])]
    if wrong:
        raise UserError(
            f"{form_dir}: {len(wrong)} tensors are not those of the merged model:\n"
            f"{list_offenders(wrong)}\nrun: snakemake --forcerun merge_adapter"
        )
    return len(names)


def _share_of_others(weight: Tensor, expected: Tensor) -> float:
    """Return the share of a tensor's weights that are not the expected ones."""
    if weight.shape != expected.shape:
        return 1.0
    wide = torch.promote_types(weight.dtype, torch.float32)
    bound = SAME_WEIGHT * float(expected.abs().max())
    is_same = torch.sub(weight.to(wide), expected).abs_() <= bound  # NaN is not
    return 1.0 - int(is_same.sum()) / is_same.numel()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.contiguous().view(torch.uint8))
