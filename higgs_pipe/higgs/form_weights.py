"""The weights of a full checkpoint: loaded as stored, and compared with the adapter's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.family import config_of, family_of_base, full_form, model_shapes
from higgs_pipe.higgs.forms import FullForm
from higgs_pipe.higgs.merging import Merge, read_changes
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import checkpoint_dir
from higgs_pipe.higgs.shards import Shards

# Weights are equal within this part of the tensor's largest: sums of float32 in another order.
SAME_WEIGHT = 1e-5
# So many of a tensor's weights may be rounded to the other side.
MAX_SHARE_ROUNDED_OTHERWISE = 1e-3
CHUNK = 1 << 24  # weights that are compared at a time


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that holds every weight of a checkpoint."""
    with Shards(folder) as shards:
        return shards.dtype


def load_form(form: str, form_dir: Path, base: Pretrained) -> Any:
    """Load a full checkpoint into the native model, as it is stored.

    Raises:
        UserError: Weights are missing.
    """
    kind = full_form(base, form)
    if kind.is_native:
        return load_base(Pretrained("checkpoint", str(form_dir)), stored_dtype(form_dir))
    family = family_of_base(base)
    sources = _sources(kind, base)
    with Shards(form_dir) as shards:
        model, loading = family.model_class.from_pretrained(
            None,
            config=config_of(base),
            state_dict={sources.get(name, name): shards[name] for name in shards.shapes},
            dtype=shards.dtype,
            output_loading_info=True,
            **family.load_options,
        )
    if lacking := sorted(loading["missing_keys"]) + sorted(loading["unexpected_keys"]):
        raise UserError(f"{form_dir}: weights do not map one to one:\n{list_offenders(lacking)}")
    return model.requires_grad_(False).eval()


def _sources(form: FullForm, base: Pretrained) -> dict[str, str]:
    """Return the name in the base for each name in a form."""
    with Shards(checkpoint_dir(base)) as weights:
        return form.sources(model_shapes(base), weights.shapes)


def check_weights(
    form_dir: Path, expected: Mapping[str, Tensor], form: str, base: Pretrained
) -> float:
    """Check that a checkpoint's weights are those of :func:`lora.merge_by_peft`.

    Tensors outside the model, such as those of a codec in the bundle, must be the base's, rounded.

    Returns:
        The largest share of a tensor's weights that were rounded the other way.

    Raises:
        UserError: A tensor differs by more, or is missing or unknown.
    """
    sources = _sources(full_form(base, form), base)
    with Shards(form_dir) as shards, Shards(checkpoint_dir(base)) as weights:
        found = shards.shapes.keys()
        wrong = [f"{name}: missing" for name in sources.keys() - found]
        wrong += [f"{name}: unknown" for name in found - sources.keys()]
        shares = {}
        for name in sources.keys() & found:
            weight, source = shards[name], sources[name]
            if source in expected:
                shares[name] = _share_of_others(weight, expected[source].cpu())
            else:
                shares[name] = float(not torch.equal(weight, weights[source].to(weight.dtype)))
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


def check_bits(form_dir: Path, form: str, base: Pretrained, adapter_dir: Path) -> int:
    """Check that a checkpoint is the native one under other names, bit for bit.

    Returns:
        The number of tensors.

    Raises:
        UserError: A tensor differs from the native weight, merged once more.
    """
    sources = _sources(full_form(base, form), base)
    with Shards(form_dir) as stored, Shards(checkpoint_dir(base)) as weights:
        merge = Merge(weights, read_changes(adapter_dir), stored.dtype)
        names = list(stored.shapes)
        wrong = [name for name in names if not _same_bits(stored[name], merge[sources[name]])]
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
    bound = SAME_WEIGHT * max(abs(float(end)) for end in expected.aminmax())
    found, sought = weight.flatten(), expected.flatten()
    same = 0
    for start in range(0, len(found), CHUNK):
        part = slice(start, start + CHUNK)
        same += int(((found[part].to(wide) - sought[part]).abs() <= bound).sum())  # NaN is not
    return 1.0 - same / len(found)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.contiguous().view(torch.uint8))
