"""Check that an adapter fits a base, by shapes and fingerprints, without loading weights."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.adapter_files import ADAPTER_CONFIG
from higgs_pipe.higgs.family import config_of, family_of_base
from higgs_pipe.higgs.loading_errors import CONTENT_FAULTS
from higgs_pipe.higgs.pretrained import fingerprint_of_hashes, weight_fingerprint
from higgs_pipe.publishing.checking import CheckedPackage

# Settings that PEFT matches with names of layers as regular expressions.
EXPRESSIONS = ("exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
LAYER = re.compile(r"[\w.]+")


def check_fits(package: CheckedPackage, base: Pretrained) -> None:
    """Check that an adapter was trained on these weights, and fits them tensor by tensor.

    For a base on the Hub, only the config is downloaded; the Hub provides the hashes of its
    weights.

    Raises:
        UserError: A tensor is missing, unknown or of another shape; or the weights differ, because
            it is another base or was changed since training.
    """
    expected = _shapes_on(package, base)
    found = package.shapes
    unknown, missing = found.keys() - expected.keys(), expected.keys() - found.keys()
    wrong = [f"{name}: the base has no place for it" for name in sorted(unknown)]
    wrong += [f"{name}: missing" for name in sorted(missing)]
    wrong += [
        f"{name}: {list(found[name])}, the base needs {list(expected[name])}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    if wrong:
        raise UserError(
            f"the adapter does not fit {base.setting} {base.name!r}:\n"
            f"{list_offenders(wrong)}\nIt was trained on {package.base.name!r}."
        )
    fingerprint = _fingerprint(base)
    if fingerprint != package.base.fingerprint:
        commit = package.base.revision
        raise UserError(
            f"{base.setting} {base.name!r} has other weights (SHA-256 {fingerprint[:12]}…) than "
            f"{package.base.name!r} in training ({package.base.fingerprint[:12]}…). "
            + (
                f"Pin the commit of training: --base-revision {commit}."
                if commit
                else "Name the folder that the adapter was trained on."
            )
        )


def _shapes_on(package: CheckedPackage, base: Pretrained) -> dict[str, tuple[int, ...]]:
    """Return the shapes that PEFT gives the adapter's tensors on a base without data."""
    _check_layers(package.adapter_config)
    family, native_config = family_of_base(base), config_of(base)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, ADAPTER_CONFIG).write_text(json.dumps(package.adapter_config))
        try:
            lora = LoraConfig.from_pretrained(folder)
            lora.init_lora_weights = False
            lora.base_model_name_or_path = None  # PEFT warns of a base that is not that folder
            with torch.device("meta"):
                native: Any = family.skeleton(native_config)
                adapted = get_peft_model(native, lora, low_cpu_mem_usage=True)
        except (ImportError, RuntimeError, ValueError, *CONTENT_FAULTS) as error:
            raise UserError(
                f"{ADAPTER_CONFIG} does not fit {base.setting} {base.name!r}: {error}"
            ) from None
    state = get_peft_model_state_dict(adapted)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_layers(config: Mapping[str, Any]) -> None:
    """Refuse regular expressions, which PEFT could match with names of layers for hours."""
    wrong = [f"{key} is set" for key in EXPRESSIONS if config.get(key)]
    for key in ("target_modules", "modules_to_save"):
        names = config.get(key) or []
        if not isinstance(names, list) or not all(LAYER.fullmatch(str(name)) for name in names):
            wrong.append(f"{key} is not a list of layers")
    if wrong:
        raise UserError(
            f"{ADAPTER_CONFIG}: PEFT would match layers by regular expressions, as in no package:\n"
            f"{list_offenders(wrong)}"
        )


def _fingerprint(base: Pretrained) -> str:
    """Return the fingerprint of a base's weights, on the Hub without a download."""
    if Path(base.name).is_dir():
        return weight_fingerprint(base)
    try:
        info = HfApi().model_info(base.name, revision=base.revision, files_metadata=True)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"{base.setting} {base.name!r}: the Hub does not provide its hashes: {error}"
        ) from None
    files = {each.rfilename: each.lfs.sha256 for each in info.siblings or () if each.lfs}
    return fingerprint_of_hashes(files)
