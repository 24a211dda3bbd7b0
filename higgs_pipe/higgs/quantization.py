"""Loading the frozen base in 8 or 4 bits."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from higgs_pipe.config.settings import Quantization
from higgs_pipe.errors import UserError


def quantization_options(
    setting: Quantization | None,
    device: torch.device,
    dtype: torch.dtype,
    unquantized: Sequence[str],
) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that quantize the base; none without a setting.

    Attention and the FFNs of each layer are quantized. Heads, norms and embeddings keep ``dtype``:
    they are small, the losses are sensitive to the heads, and norms in float32 (as in PEFT's
    preparation for k-bit training) would mix dtypes in the residual stream.

    Raises:
        UserError: ``device`` is not a GPU, or bitsandbytes is not installed.
    """
    if setting is None:
        return {}
    if device.type != "cuda":
        raise UserError(
            f"train.quantization: {setting} needs a CUDA GPU; training runs on {device.type}. "
            "Set train.quantization: null."
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"train.quantization: {setting} needs bitsandbytes, which is not installed. Run: "
            "pip install bitsandbytes (in the environment of the rule train_adapter), or set "
            "train.quantization: null."
        )
    return {
        "quantization_config": bits_config(setting, dtype, unquantized),
        "device_map": {"": device},
    }


def bits_config(
    setting: Quantization, dtype: torch.dtype, unquantized: Sequence[str]
) -> BitsAndBytesConfig:
    """Return bitsandbytes' settings: LLM.int8(), or NF4 with quantized scales as in QLoRA.

    (Dettmers et al. 2022, 2023.)
    """
    if setting == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(unquantized))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(unquantized),
    )
