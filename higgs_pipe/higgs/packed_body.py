"""The forward pass of a body on a packed row: the part common to all families.

Only attention sees the samples in their own order, with one causal call per sample: samples in a
row never see each other, and the cost grows with the sum of squared sample lengths.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from higgs_pipe.higgs.attention import packed_attention
from higgs_pipe.higgs.batch import Layout
from higgs_pipe.higgs.compilation import configure_compiler
from higgs_pipe.higgs.dropout import Part

Rotary = tuple[Tensor, Tensor]  # cos and sin, each (1, S, head_dim)


@dataclass(frozen=True, eq=False)
class NativeParts:
    """The parts of a native model that a packed forward pass connects."""

    body: Any  # has ``layers``; its forward is replaced
    embed_text: nn.Module  # (n,) -> (n, H)
    embed_audio: nn.Module  # (n, K) -> (n, H)
    audio_head: nn.Module  # (n, H) -> (n, K * V)
    text_head: nn.Module | None  # (n, H) -> (n, vocabulary); None without a text loss


class PackedForward(NamedTuple):
    """A family's forward passes on packed rows: of the body by its parts, and of a layer."""

    body: Callable[..., Any]
    before_attention: Callable[[Any, Tensor, Rotary, Layout], tuple[Tensor, Tensor, Tensor]]
    after_attention: Callable[[Any, Tensor, Tensor, Layout], Tensor]
    seen_by: Mapping[str, Part]  # positions that a part of a layer sees, by its name

    def replace_in(self, parts: NativeParts) -> None:
        """Put these in the place of the native forward passes."""
        body = parts.body
        body.forward = partial(self.body, parts)
        body.is_compiled = False
        for layer in body.layers:
            layer.forward = types.MethodType(_layer_forward, layer)
            layer.before_attention = types.MethodType(self.before_attention, layer)
            layer.after_attention = types.MethodType(self.after_attention, layer)

    def compile_in(self, parts: NativeParts) -> None:
        """Compile the parts of each layer before and after attention, at their next call."""
        configure_compiler()
        parts.body.is_compiled = True
        for name in ("before_attention", "after_attention"):
            compiled = torch.compile(getattr(self, name), fullgraph=True, dynamic=True)
            for layer in parts.body.layers:
                setattr(layer, name, types.MethodType(compiled, layer))


def through_layers(body: Any, hidden: Tensor, rotary: Rotary, layout: Layout) -> Tensor:
    """Apply the layers; the first ones are recomputed in the backward pass."""
    # A generator's state is saved for layers that draw from it; a CUDA graph could not be captured.
    is_drawing = layout.dropout_keys is None or body.layers[0].self_attn.attention_dropout > 0
    if body.is_compiled and torch.is_grad_enabled():
        hidden.requires_grad_()  # or the first layer would be compiled apart from the others
    for index, layer in enumerate(body.layers):
        inputs = (hidden, rotary, layout)
        if body.training and index < body.recomputed_layers:
            hidden = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=is_drawing)
        else:
            hidden = layer(*inputs)
    return hidden


def _layer_forward(self: Any, hidden: Tensor, rotary: Rotary, layout: Layout) -> Tensor:
    """Replace the native decoder layer's forward: (S, H) -> (S, H)."""
    query, key, value = self.before_attention(hidden, rotary, layout)
    dropout = self.self_attn.attention_dropout if self.training else 0.0
    attended = packed_attention(query, key, value, layout.samples, dropout)
    return self.after_attention(hidden, attended, layout)  # type: ignore[no-any-return]


class _Permute(torch.autograd.Function):
    """Rows in another order; the gradient is a gather too, where autograd would scatter and add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (inverse,) = ctx.saved_tensors
        return grad_output.index_select(0, inverse), None, None


permute: Any = _Permute.apply  # untyped in PyTorch
