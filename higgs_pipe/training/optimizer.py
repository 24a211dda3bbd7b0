"""The optimizer and the schedule of its learning rate, from the settings."""

import importlib.util
from collections.abc import Sequence
from typing import cast

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import UserError

# Transformers' names; all three rise from 0 over the warmup steps.
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def make_optimizer(
    parameters: Sequence[Parameter], settings: TrainConfig, device: torch.device
) -> Optimizer:
    """Make AdamW over the trained parameters; fused on CUDA.

    Raises:
        UserError: ``adamw_8bit`` without CUDA or without bitsandbytes.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        fused = device.type == "cuda"
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
    if device.type != "cuda":
        raise UserError(
            f"train.optimizer: adamw_8bit needs a CUDA GPU; training runs on {device.type}. "
            "Set train.optimizer: adamw."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "train.optimizer: adamw_8bit needs bitsandbytes, which is not installed. "
            "Run: pip install bitsandbytes, or set train.optimizer: adamw."
        )
    from bitsandbytes.optim import AdamW8bit

    return cast(Optimizer, AdamW8bit(parameters, lr=rate, weight_decay=decay))


def make_schedule(optimizer: Optimizer, settings: TrainConfig, num_steps: int) -> LRScheduler:
    """Make the schedule of the learning rate over ``num_steps`` optimizer steps."""
    schedule = get_scheduler(
        SCHEDULES[settings.schedule],
        optimizer,
        num_warmup_steps=round(settings.warmup_fraction * num_steps),
        num_training_steps=num_steps,
    )
    return cast(LRScheduler, schedule)
