"""Which device and number type to use."""

import torch

from higgs_pipe.config import Device, Dtype
from higgs_pipe.errors import UserError


def pick_device(setting: Device) -> torch.device:
    """The device of this process; ``auto`` is CUDA where there is a GPU.

    Raises:
        UserError: ``cuda`` is asked for and there is no GPU.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda' but PyTorch sees no GPU here; set it to auto or cpu.")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(setting: Dtype, device: torch.device) -> torch.dtype:
    """The type of the base model; ``auto`` is bfloat16 on a GPU that has it, else float32."""
    if setting == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype: torch.dtype = getattr(torch, setting)
    return dtype
