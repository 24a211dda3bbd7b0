"""LoRA on the base: a new adapter, or a trained one."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from higgs_pipe.config import LoraSettings
from higgs_pipe.errors import UserError

# PEFT asks Transformers by an old name; nothing that a user could mend.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def add_lora(model: nn.Module, settings: LoraSettings, seed: int) -> PeftModel:
    """A new adapter on the base.

    Raises:
        UserError: ``target_modules`` match no layer.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"train.lora.target_modules: {error}") from None


def load_adapter(model: nn.Module, adapter_dir: Path) -> PeftModel:
    """A trained adapter on the base, for inference, as plain PEFT loads it.

    Raises:
        UserError: The directory holds no adapter for this base.
    """
    try:
        return PeftModel.from_pretrained(model, adapter_dir).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{adapter_dir}: no adapter for this base_model ({error}); "
            "run: snakemake --forcerun train_adapter"
        ) from None
