"""Training that continues from an earlier adapter, the ancestor."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.adapter_files import BASE_FILE, AdapterBase, Ancestor
from higgs_pipe.higgs.lora import adapter_state
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.planning.ancestors import check_lora_settings
from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.user_files import UnfitFileError

logger = logging.getLogger("higgs_pipe")

WEIGHTS = "adapter_model.safetensors"


def start_from(model: PeftModel, settings: TrainConfig, base: PinnedModel) -> Ancestor | None:
    """Give a new adapter the weights of ``init_adapter``, bit for bit.

    Args:
        model: Base and new adapter, which is changed.
        settings: Settings of the training.
        base: The base of ``model``.

    Returns:
        None if ``init_adapter`` is null; the adapter is then left as it is.

    Raises:
        UserError: The two differ in base, rank, scale or layers, or a file is damaged.
    """
    if settings.init_adapter is None:
        return None
    adapter_dir = Path(settings.init_adapter)
    check_lora_settings(adapter_dir, settings.lora.model_dump())
    place = f"train.init_adapter {adapter_dir}"
    trained_on = AdapterBase.read(adapter_dir / BASE_FILE)
    if trained_on.fingerprint != base.fingerprint:
        raise UserError(
            f"{place} was trained on other weights ({trained_on.name!r}, SHA-256 "
            f"{trained_on.fingerprint[:12]}…) than those of base_model {base.name!r} "
            f"({base.fingerprint[:12]}…); name that base, or another adapter."
        )
    expected, found = take_weights(model, adapter_dir), adapter_state(model)
    lost = [n for n, t in sorted(expected.items()) if not torch.equal(found[n].to(t.dtype), t)]
    if lost:
        raise UserError(
            f"{place}: {len(lost)} tensors do not survive in this dtype, such as {lost[0]}; train "
            "in the dtype that it was saved in."
        )
    fingerprint = sha256_of_file(adapter_dir / WEIGHTS)
    ancestor = Ancestor(name=name_of(adapter_dir), fingerprint=fingerprint)
    logger.info("continuing from %s, %s", ancestor.name, adapter_dir)
    return ancestor


def take_weights(model: PeftModel, adapter_dir: Path) -> dict[str, Tensor]:
    """Give an adapter the weights of another one with the same tensors, and return these.

    Raises:
        UserError: Names or shapes of the tensors differ, or the file is damaged.
    """
    place = f"train.init_adapter {adapter_dir}"
    try:
        state = load_file(adapter_dir / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: {WEIGHTS} is damaged ({error}); get it again.") from None
    differing = differences(state, adapter_state(model))
    if differing:
        raise UserError(
            f"{place} has other tensors than train.lora asks for:\n{list_offenders(differing)}\n"
            "Give target_modules, train_in_full and trainable_tokens the values of its training."
        )
    set_peft_model_state_dict(model, state)
    return state


def differences(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """Return how the tensors of two adapters differ in name and shape."""
    differing = [f"{name}: only there" for name in sorted(there.keys() - here.keys())]
    differing += [f"{name}: only here" for name in sorted(here.keys() - there.keys())]
    return differing + [
        f"{name}: {list(there[name].shape)} there, {list(here[name].shape)} here"
        for name in sorted(there.keys() & here.keys())
        if there[name].shape != here[name].shape
    ]


def name_of(adapter_dir: Path) -> str:
    """Name an adapter as its package does, or by the experiment or folder that it lies in."""
    provenance = adapter_dir / "provenance.json"
    if provenance.is_file():
        try:
            return str(read_object(provenance)["name"])
        except (OSError, UnfitFileError, KeyError) as error:
            raise UserError(
                f"{provenance} is damaged ({error!r}); get the package again."
            ) from None
    folder = adapter_dir.resolve()
    is_of_training = folder.name == "adapter" and folder.parent.name == "train"
    return folder.parents[1].name if is_of_training else folder.name
