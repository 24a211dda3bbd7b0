"""LoRA on the base: a new adapter, a trained one, and the trained parameters by part."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.data.files import atomic_folder
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FILE,
    AdapterBase,
    check_adapter,
)
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.loading_errors import CONTENT_FAULTS
from higgs_pipe.higgs.pretrained import PinnedModel

# PEFT uses a deprecated name of Transformers; a user cannot fix it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

# Initialisations that move a part of the base's weights into the adapter: for the base as it was
# published, the adapter is the difference to its start.
MUTATING = ("olora", "pissa")


def add_lora(
    model: nn.Module, settings: LoraSettings, seed: int, tokenizer: Any = None
) -> PeftModel:
    """Add a new adapter to the base.

    Parts trained in full are kept at least in float32, like LoRA's matrices.

    Args:
        model: The base, frozen.
        settings: Rank, layers and initialisation.
        seed: Seed of the initialisation.
        tokenizer: The base's, which knows ``trainable_tokens``.

    Raises:
        UserError: ``target_modules`` match no layer, or one that can only be trained in full; or
            the tokenizer lacks a trainable token.
    """
    names, targets = family_of_model(model).lora, settings.target_modules
    in_full = list(dict.fromkeys(names.in_full[part] for part in settings.train_in_full))
    config = LoraConfig(
        task_type=names.task_type,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(names.presets[targets] if isinstance(targets, str) else targets),
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=True if settings.init == "default" else settings.init,
        modules_to_save=in_full or None,
        trainable_token_indices=_token_ids(settings.trainable_tokens, tokenizer) or None,
    )
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"train.lora.target_modules: {error}") from None
    for name, module in adapted.named_modules():
        is_tied = names.only_in_full is not None and name.endswith(f".{names.only_in_full}")
        if is_tied and isinstance(module, BaseTunerLayer):
            raise UserError(
                f"train.lora.target_modules: {sorted(config.target_modules)} match "
                f"{names.only_in_full}, one matrix that embeds codes and predicts them. LoRA "
                "would change one of the two; set train.lora.train_in_full: [audio_head]."
            )
    # PEFT makes a set of them, whose order differs between processes, and writes it to its config.
    adapted.active_peft_config.target_modules = sorted(adapted.active_peft_config.target_modules)
    for module in adapted.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.requires_grad:
            _keep_in_float32(module)
    return adapted


def _token_ids(tokens: Sequence[str], tokenizer: Any) -> list[int]:
    if not tokens:
        return []
    vocabulary = tokenizer.get_vocab()
    if unknown := [token for token in tokens if token not in vocabulary]:
        raise UserError(
            "train.lora.trainable_tokens: the base model's tokenizer has no token\n"
            f"{list_offenders(unknown)}\nName tokens as tokenizer.json spells them."
        )
    return [int(vocabulary[token]) for token in tokens]


def _keep_in_float32(module: nn.Linear | nn.Embedding) -> None:
    """Keep master weights for the optimizer; inputs and outputs keep the base's dtype."""
    dtype = module.weight.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return
    module.float()
    if isinstance(module, nn.Linear):
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    module.register_forward_hook(lambda _, __, output: output.to(dtype))


def load_adapter(model: nn.Module, adapter_dir: Path) -> PeftModel:
    """Add a trained adapter to the base, for inference, as plain PEFT loads it.

    Raises:
        UserError: The directory holds no adapter for this base, or one that changed since training.
    """
    check_adapter(adapter_dir)
    try:
        return PeftModel.from_pretrained(model, adapter_dir).eval()
    except (ImportError, OSError, RuntimeError, ValueError, *CONTENT_FAULTS) as error:
        raise UserError(
            f"{adapter_dir}: no adapter for this base_model ({error}); "
            "run: snakemake --forcerun train_adapter"
        ) from None


def load_adapter_exactly(model: nn.Module, adapter_dir: Path) -> PeftModel:
    """Load an adapter as :func:`load_adapter`, with parts trained in full in their stored dtype.

    Plain PEFT rounds these to the base's dtype. A model with both dtypes computes in float32 within
    :func:`~higgs_pipe.higgs.float32.float32_arithmetic` alone.

    Raises:
        UserError: As there.
    """
    adapted = load_adapter(model, adapter_dir)
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.float()
    set_peft_model_state_dict(adapted, load_file(adapter_dir / ADAPTER_WEIGHTS))
    return adapted


def merge_by_peft(model: PeftModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Merge an adapter by PEFT's own code, each layer in float32, and round once.

    Args:
        model: Its weights are changed in place, so that it takes no more memory.
        dtype: The dtype to round to.

    Returns:
        Every weight by its native name.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            weight = module.get_base_layer().weight
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
            module.merge()
            weight.data = weight.data.to(dtype)
    merged = model.base_model.unload()
    return {name: weight.to(dtype) for name, weight in merged.state_dict().items()}


def check_base(adapter_dir: Path, base: PinnedModel) -> None:
    """Refuse an adapter that was trained on weights other than the base's.

    Args:
        adapter_dir: An adapter of :func:`save_adapter`.
        base: The base to use it on.

    Raises:
        UserError: The weights differ, or the adapter does not name its base.
    """
    trained_on = AdapterBase.read(adapter_dir / BASE_FILE)
    if trained_on.fingerprint != base.fingerprint:
        raise UserError(
            f"{adapter_dir} was trained on other weights (SHA-256 {trained_on.fingerprint[:12]}…) "
            f"than those of base_model {base.name!r} ({base.fingerprint[:12]}…); "
            "run: snakemake --forcerun train_adapter"
        )


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """Copy every tensor of the adapter's file to the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in get_peft_model_state_dict(model).items()
    }


def save_adapter(
    model: PeftModel,
    state: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    adapter_dir: Path,
    base: PinnedModel,
) -> None:
    """Write a PEFT adapter for the base as published, atomically.

    OLoRA and PiSSA start from a part of the base's weights and leave the rest in the base. The
    training result is the difference to the start, a LoRA of twice the rank::

        B A - B_0 A_0 = [B, -B_0] [A; A_0]

    Args:
        model: Its PEFT config is written.
        state: An :func:`adapter_state`.
        initial: That of the adapter before training.
        adapter_dir: Replaced.
        base: Written beside the adapter, to ``base_model.json``; its revision goes to
            ``adapter_config.json``.
    """
    with atomic_folder(adapter_dir) as folder:
        model.active_peft_config.revision = base.revision
        model.save_pretrained(folder)  # its config; the tensors are replaced below
        if model.active_peft_config.init_lora_weights in MUTATING:
            state = {
                name: _difference(name, tensor, initial[name]) for name, tensor in state.items()
            }
            path = folder / ADAPTER_CONFIG
            config = json.loads(path.read_text(encoding="utf-8"))
            config |= {
                "init_lora_weights": True,
                "r": 2 * config["r"],
                "lora_alpha": 2 * config["lora_alpha"],
            }
            path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        save_file(dict(state), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        base.write(folder / BASE_FILE, beside=(ADAPTER_CONFIG, ADAPTER_WEIGHTS))


def _difference(name: str, tensor: Tensor, initial: Tensor) -> Tensor:
    if "lora_A" in name:  # (r, in) -> (2 r, in)
        return torch.cat([tensor, initial], dim=0)
    if "lora_B" in name:  # (out, r) -> (out, 2 r)
        return torch.cat([tensor, -initial], dim=1)
    return tensor


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Count the trained parameters of each part of the model, in the family's order."""
    parts = family_of_model(model).lora.parts
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for part, piece in parts if piece in name), "other")
            counts[part] = counts.get(part, 0) + parameter.numel()
    return {part: counts[part] for part, _ in (*parts, ("other", "")) if part in counts}
