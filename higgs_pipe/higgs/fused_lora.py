"""LoRA's linear layers with fewer passes over their outputs.

PEFT computes ``base(x) + scaling * B(A(x))`` with a separate product and sum, and copies ``x`` to
the adapter's dtype where the base is in bfloat16. Here the matrix product itself adds the low-rank
part to the base's output, in the base's dtype, with A and B rounded to it as autocast does. The
values, gradients and optimizer states of A and B stay in float32.
"""

import types
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse_lora(model: nn.Module) -> None:
    """Give every plain LoRA layer over an ``nn.Linear`` the fused forward."""
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            module.forward = types.MethodType(_lora_forward, module)


def is_fused(module: Any) -> bool:
    """Tell if the fused forward computes this LoRA layer, once :func:`fuse_lora` was called."""
    return type(module) is LoraLinear and type(module.base_layer) is nn.Linear and _is_plain(module)


def _is_plain(self: Any) -> bool:
    """Tell if a layer is one LoRA adapter without a variant or a bias over a frozen base."""
    adapter = self.active_adapters[0]
    return (
        len(self.active_adapters) == 1
        and adapter in self.lora_A
        and adapter not in self.lora_variant
        and not self.lora_bias[adapter]
        and not self.base_layer.weight.requires_grad
    )


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replace PEFT's forward of a LoRA layer; PEFT itself computes what is not plain LoRA."""
    if self.disable_adapters or self.merged or args or kwargs or not _is_plain(self):
        return cast(Tensor, type(self).forward(self, x, *args, **kwargs))
    adapter = self.active_adapters[0]
    dropout = self.lora_dropout[adapter]
    has_dropout = self.training and not isinstance(dropout, nn.Identity)
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
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        adapter_input, low, weight, a, b = ctx.saved_tensors
        grad_low = ctx.scaling * (grad_output @ b.to(grad_output.dtype))  # (S, r)
        grad_a = (grad_low.T @ adapter_input).to(a.dtype)
        grad_b = (ctx.scaling * (grad_output.T @ low)).to(b.dtype)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ weight
            if ctx.has_dropout:
                grad_dropped = grad_low @ a.to(grad_output.dtype)
            else:
                grad_x.addmm_(grad_low, a.to(grad_output.dtype))
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None


_low_rank_linear: Any = _LowRankLinear.apply  # untyped in PyTorch
