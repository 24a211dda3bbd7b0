"""float32 arithmetic on weights that stay in their stored dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

NARROW = (torch.bfloat16, torch.float16)


@contextmanager
def float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """Make a model compute in float32 until the block ends.

    Each layer converts its weights as it uses them, so memory grows by the largest layer, not by
    the model. The results of two models then differ because of their weights, not their arithmetic.
    """
    narrow = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.dtype in NARROW
    ]
    for module in narrow:
        # `unsafe`, because the dtype changes.
        parametrize.register_parametrization(module, "weight", _InFloat32(), unsafe=True)
    try:
        yield
    finally:
        for module in narrow:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


class _InFloat32(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()
