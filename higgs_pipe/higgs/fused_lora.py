"""LoRA's linear layers with fewer passes over their outputs.

PEFT computes ``base(x) + scaling * B(A(x))`` with a product and a sum of their own, and with a copy
of ``x`` in the adapter's type where the base is in bfloat16. Here the low-rank part is added into
the base's output by the matrix product itself, in the base's type, with A and B rounded to it: what
autocast does. Their own values, gradients and optimizer states keep their type (float32).
"""

import types
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse_lora(model: nn.Module) -> None:
    """Put the fused forward into every plain LoRA layer over an ``nn.Linear``."""
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            module.forward = types.MethodType(_lora_forward, module)


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """PEFT's forward of a LoRA layer; what is not plain LoRA is left to PEFT itself."""
    adapter = self.active_adapters[0]
    is_plain = (
        not (self.disable_adapters or self.merged or args or kwargs)
        and len(self.active_adapters) == 1
        and adapter in self.lora_A
        and adapter not in self.lora_variant
        and not self.lora_bias[adapter]
        and not self.base_layer.weight.requires_grad
    )
    if not is_plain:
        return cast(Tensor, type(self).forward(self, x, *args, **kwargs))
    dropout = self.lora_dropout[adapter]
    has_dropout = self.training and isinstance(dropout, nn.Dropout)
    output = _low_rank_linear(
        x.flatten(0, -2),
        dropout(x).flatten(0, -2) if has_dropout else None,
        self.base_layer.weight,
        self.base_layer.bias,
        self.lora_A[adapter].weight,
        self.lora_B[adapter].weight,
        self.scaling[adapter],
    )
    return torch.unflatten(output, 0, x.shape[:-1])


class _LowRankLinear(torch.autograd.Function):
    """``x W' + bias + scaling * (dropped A') B'``, W without a gradient; ' transposes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (S, in)
        dropped: Tensor | None,  # (S, in) x after dropout; None is x
        weight: Tensor,  # (out, in)
        bias: Tensor | None,  # (out,)
        a: Tensor,  # (r, in)
        b: Tensor,  # (out, r)
        scaling: float,
    ) -> Tensor:
        adapter_input = x if dropped is None else dropped
        low = adapter_input @ a.to(x.dtype).T  # (S, r)
        output = linear(x, weight, bias).addmm_(low, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(adapter_input, low, weight, a, b)
        ctx.scaling, ctx.has_dropout = scaling, dropped is not None
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        adapter_input, low, weight, a, b = ctx.saved_tensors
        of_low = ctx.scaling * (gradient @ b.to(gradient.dtype))  # (S, r)
        of_a = (of_low.T @ adapter_input).to(a.dtype)
        of_b = (ctx.scaling * (gradient.T @ low)).to(b.dtype)
        of_x = of_dropped = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            if ctx.has_dropout:
                of_dropped = of_low @ a.to(gradient.dtype)
            else:
                of_x.addmm_(of_low, a.to(gradient.dtype))
        return of_x, of_dropped, None, None, of_a, of_b, None


_low_rank_linear: Any = _LowRankLinear.apply  # it has no type
