"""The body of Higgs TTS 3 on a packed row: text and audio share each layer, in sample order."""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from higgs_pipe.higgs.batch import Layout
from higgs_pipe.higgs.packed_body import (
    NativeParts,
    PackedForward,
    Rotary,
    permute,
    through_layers,
)


def _body_forward(
    parts: NativeParts,
    input_ids: Tensor,  # (1, S)
    audio_input_ids: Tensor,  # (1, F, K)
    position_ids: Tensor,  # (1, S)
    use_cache: bool,  # False, as for the native forward
    layout: Layout,
) -> BaseModelOutputWithPast:
    """Replace the native body's forward: (1, S, H) of a packed row."""
    body = parts.body
    text_ids = input_ids[0].index_select(0, layout.routed[: layout.num_text])
    routed = torch.cat([parts.embed_text(text_ids), parts.embed_audio(audio_input_ids[0])])
    hidden = permute(routed, layout.unrouted, layout.routed)
    rotary = body.rotary_emb(hidden, position_ids)
    hidden = body.norm(through_layers(body, hidden, rotary, layout))
    return BaseModelOutputWithPast(last_hidden_state=hidden[None])


def _before_attention(
    self: Any, hidden: Tensor, rotary: Rotary, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each (S, heads, head_dim)."""
    attention, normed = self.self_attn, self.input_layernorm(hidden)
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(
        attention.q_norm(query), attention.k_norm(key), rotary[0][0], rotary[1][0], unsqueeze_dim=1
    )
    return query, key, value


def _after_attention(self: Any, hidden: Tensor, attended: Tensor, layout: Layout) -> Tensor:
    """Add both residuals: (S, H) and (S, heads, head_dim) -> (S, H)."""
    hidden = hidden + self.self_attn.o_proj(attended.flatten(1))
    return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


PACKED_FORWARD = PackedForward(_body_forward, _before_attention, _after_attention, seen_by={})
