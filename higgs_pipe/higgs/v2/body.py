"""The body of Higgs Audio v2 on a packed row.

It keeps text positions before audio positions (*routed* order), so that each FFN processes a slice.
The native layer searches boolean masks 18 times and waits for the device each time. Attention and
its projections run in sample order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import apply_rotary_pos_emb

from higgs_pipe.higgs.batch import Layout
from higgs_pipe.higgs.packed_body import NativeParts, PackedForward, Rotary, permute, through_layers


def _body_forward(
    parts: NativeParts,
    input_ids: Tensor,  # (1, S)
    audio_input_ids: Tensor,  # (1, F, K)
    position_ids: Tensor,  # (1, S)
    use_cache: bool,  # False, as for the native forward
    layout: Layout,
) -> BaseModelOutputWithPast:
    """Replace the native body's forward: (1, S, H) of a packed row, in the order of the samples."""
    body = parts.body
    text_ids = input_ids[0].index_select(0, layout.routed[: layout.num_text])
    hidden = torch.cat([parts.embed_text(text_ids), parts.embed_audio(audio_input_ids[0])])
    rotary = body.rotary_emb(hidden, position_ids)
    hidden = through_layers(body, hidden, rotary, layout)
    hidden = permute(body.norm(hidden), layout.unrouted, layout.routed)
    return BaseModelOutputWithPast(last_hidden_state=hidden[None])


def _before_attention(
    self: Any, hidden: Tensor, rotary: Rotary, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys, values in the order of the samples, each (S, heads, head_dim)."""
    attention = self.self_attn
    normed = _by_kind(hidden, layout, self.input_layernorm, self.audio_input_layernorm)
    normed = permute(normed, layout.unrouted, layout.routed)
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, rotary[0][0], rotary[1][0], unsqueeze_dim=1)
    return query, key, value


def _after_attention(self: Any, hidden: Tensor, attended: Tensor, layout: Layout) -> Tensor:
    """Add both residuals: (S, H) and (S, heads, head_dim) -> (S, H)."""
    attended = self.self_attn.o_proj(attended.flatten(1))
    hidden = hidden + permute(attended, layout.routed, layout.unrouted)
    normed = _by_kind(
        hidden, layout, self.post_attention_layernorm, self.audio_post_attention_layernorm
    )
    return hidden + _by_kind(normed, layout, self.mlp, self.audio_mlp)


def _by_kind(
    hidden: Tensor, layout: Layout, text_module: nn.Module, audio_module: nn.Module
) -> Tensor:
    """Apply each position's own module: (S, H) -> (S, H), in routed order."""
    text, audio = torch.split(hidden, [layout.num_text, len(hidden) - layout.num_text])
    return torch.cat([text_module(text), audio_module(audio)])


PACKED_FORWARD = PackedForward(
    _body_forward,
    _before_attention,
    _after_attention,
    seen_by={"mlp": "text", "audio_mlp": "audio"},
)
