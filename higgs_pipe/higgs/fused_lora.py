"""LoRA's linear layers with fewer passes over their outputs.

PEFT computes ``base(x) + scaling * B(A(x))`` with a separate product and sum, and copies ``x`` to
the adapter's dtype where the base is in bfloat16. Here the matrix product itself adds the low-rank
part to the base's output, in the base's dtype, with A and B rounded to it as autocast does. The
values, gradients and optimizer states of A and B stay in float32.
"""

import types
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.functional import linear


class RoundedMatrices:
    """Rounds A and B of all fused layers at once, if the base has another dtype.

    Args:
        layers: Layers with the fused forward.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    @torch.inference_mode(False)  # or the next training step could not change the tensors
    @torch.no_grad()
    def refresh(self) -> None:
        """Round the present values; call this once per forward pass."""
        matrices: list[Tensor] = []
        rounded: list[Tensor] = []
        for layer in self.layers:
            if not _is_plain(layer):
                continue
            adapter, dtype = layer.active_adapters[0], layer.base_layer.weight.dtype
            pair = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            if pair[0].dtype == dtype:
                layer.rounded = None
                continue
            if not _fits(layer.rounded, pair, dtype):
                layer.rounded = tuple(torch.empty_like(matrix, dtype=dtype) for matrix in pair)
            matrices += pair
            rounded += layer.rounded
        if matrices:
            # A forward pass whose backward pass is still to come keeps these tensors. They get the
            # same values again, unless A and B have changed, which autograd notices.
            with _unsafe_preserve_version_counter(tuple(rounded)):
                torch._foreach_copy_(rounded, matrices)


def _fits(rounded: Sequence[Tensor] | None, pair: Sequence[Tensor], dtype: torch.dtype) -> bool:
    return rounded is not None and all(
        (kept.shape, kept.device, kept.dtype) == (matrix.shape, matrix.device, dtype)
        for kept, matrix in zip(rounded, pair, strict=True)
    )


def fuse_lora(model: nn.Module) -> RoundedMatrices:
    """Give every plain LoRA layer over an ``nn.Linear`` the fused forward.

    Returns:
        The object to refresh before each forward pass of the model.
    """
    fused = []
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            module.forward = types.MethodType(_lora_forward, module)
            vars(module)["rounded"] = None
            fused.append(module)
    return RoundedMatrices(fused)


def is_fused(module: Any) -> bool:
    """Return whether the fused forward computes this LoRA layer after :func:`fuse_lora`."""
    return type(module) is LoraLinear and type(module.base_layer) is nn.Linear and _is_plain(module)


def _is_plain(self: Any) -> bool:
    """Return whether a layer is one LoRA adapter without a variant or a bias over a frozen base."""
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
    a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
    rounded_a, rounded_b = self.rounded or (a.detach().to(x.dtype), b.detach().to(x.dtype))
    dropout = self.lora_dropout[adapter]
    has_dropout = self.training and not isinstance(dropout, nn.Identity)
    output = _low_rank_linear(
        x.flatten(0, -2),
        dropout(x).flatten(0, -2) if has_dropout else None,
        self.base_layer.weight,
        self.base_layer.bias,
        a,
        b,
        rounded_a,
        rounded_b,
        self.scaling[adapter],
    )
    return torch.unflatten(output, 0, x.shape[:-1])


def _plus_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return ``total + scale * left @ right``, in place, or fused into the next operation."""
    if not torch.compiler.is_compiling():
        return total.addmm_(left, right, alpha=scale)
    # Of addmm, and of a bare sum of products, the compiler makes a copy of ``total`` and a product
    # that adds to it. In a wider type it adds where it reads them. (In PyTorch 2.13 its ``add`` is
    # wrong on a CPU where alpha is a float that it keeps variable.)
    wide = torch.promote_types(total.dtype, torch.float32)
    summed = total.to(wide) + (scale * (left @ right)).to(wide)
    # Not ``to`` where it does nothing: PyTorch 2.11 leaves out the gradients of a compiled autograd
    # function whose output is an alias.
    return summed if wide == total.dtype else summed.to(total.dtype)


class _LowRankLinear(torch.autograd.Function):
    """``x W' + bias + scaling * (dropped A') B'``, W without a gradient; ' transposes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (S, in)
        dropped: Tensor | None,  # (S, in) x after dropout; None is x
        weight: Tensor,  # (out, in)
        bias: Tensor | None,  # (out,)
        a: Tensor,  # (r, in), which gets the gradient
        b: Tensor,  # (out, r)
        rounded_a: Tensor,  # (r, in) in the dtype of x
        rounded_b: Tensor,  # (out, r)
        scaling: float,
    ) -> Tensor:
        adapter_input = x if dropped is None else dropped
        low = adapter_input @ rounded_a.T  # (S, r)
        output = _plus_product(linear(x, weight, bias), low, rounded_b.T, scaling)
        ctx.save_for_backward(adapter_input, low, weight, rounded_a, rounded_b)
        ctx.scaling, ctx.has_dropout = scaling, dropped is not None
        ctx.dtype = a.dtype
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        adapter_input, low, weight, a, b = ctx.saved_tensors
        grad_low = ctx.scaling * (grad_output @ b)  # (S, r)
        grad_a = (grad_low.T @ adapter_input).to(ctx.dtype)
        grad_b = (ctx.scaling * (grad_output.T @ low)).to(ctx.dtype)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ weight
            if ctx.has_dropout:
                grad_dropped = grad_low @ a
            else:
                grad_x = _plus_product(grad_x, grad_low, a, 1.0)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None, None, None


_low_rank_linear: Any = _LowRankLinear.apply  # untyped in PyTorch
