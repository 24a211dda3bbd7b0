"""The native model, made exact and cheap on packed rows.

The native classes do the work; two things are put in their place:

- attention: one causal call a sample, so that samples in a row never see each other and the cost
  grows with the sum of squared sample lengths;
- the DualFFN layer: text and audio positions are picked by index tensors computed once a forward,
  where the native layer searches boolean masks in each layer. Outputs and gradients are equal.

The heads run only where there are labels.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.checkpoint import load_weights
from higgs_pipe.higgs.loss import LossSums, Predictions, loss_sums

PACKED_ATTENTION = "packed_causal"

Transform = Callable[[Tensor], Tensor]


def load_base(
    base_model: str, revision: str | None, dtype: torch.dtype
) -> HiggsAudioV2ForConditionalGeneration:
    """Load the base with its text head, frozen, on the CPU.

    Raises:
        UserError: It cannot be loaded, or some of its weights (the text head's, for example) are
            missing.
    """
    model: HiggsAudioV2ForConditionalGeneration = load_weights(
        HiggsAudioV2ForConditionalGeneration,
        "base_model",
        base_model,
        revision,
        dtype=dtype,
        use_text_head=True,
    )
    model.requires_grad_(False)
    return model.eval()


@dataclass(frozen=True)
class Routing:
    """Which positions of a packed sequence go through which FFN."""

    text: Tensor  # (S - F,) positions
    audio: Tensor  # (F,) positions
    order: Tensor  # (S,) where each position is in text then audio

    @classmethod
    def of(cls, batch: PackedBatch) -> "Routing":
        """The routing of a batch."""
        order = torch.cat([batch.text_positions, batch.audio_positions]).argsort()
        return cls(batch.text_positions, batch.audio_positions, order)

    def apply(self, hidden: Tensor, text_ffn: Transform, audio_ffn: Transform) -> Tensor:
        """Each position through its function: (1, S, H) -> (1, S, H)."""
        text = text_ffn(hidden[0].index_select(0, self.text))
        audio = audio_ffn(hidden[0].index_select(0, self.audio))
        return torch.cat([text, audio]).index_select(0, self.order)[None]


class DualLossModel(nn.Module):
    """Base (with or without an adapter) from a packed batch to its losses.

    This is the module that DDP wraps: backbone, heads and loss are all inside its forward, so that
    gradients are synchronised.

    Args:
        model: The native model or a ``PeftModel`` of it; it is changed in place and no longer
            generates.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        native = self.native
        AttentionInterface.register(PACKED_ATTENTION, packed_attention)
        native.set_attn_implementation(PACKED_ATTENTION)
        for layer in native.model.layers:
            layer.forward = types.MethodType(_dual_ffn_forward, layer)

    @property
    def native(self) -> HiggsAudioV2ForConditionalGeneration:
        """The Transformers model, LoRA layers inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, batch: PackedBatch) -> tuple[LossSums, Predictions]:
        """The loss sums of each sample of the batch, and what was predicted."""
        return loss_sums(*self.logits(batch), batch)

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Text logits (L, vocabulary) and audio logits (M, K, V), where there are labels."""
        native = self.native
        hidden = native.model(
            input_ids=batch.input_ids,
            audio_input_ids=batch.audio_input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            routing=Routing.of(batch),
            sample_lengths=batch.sample_lengths,
        ).last_hidden_state[0]  # (S, H)
        text_logits = native.text_lm_head(hidden.index_select(0, batch.text_predictors))
        audio_logits = native.audio_lm_head(hidden.index_select(0, batch.audio_predictors))
        return text_logits, audio_logits.unflatten(-1, (native.config.num_codebooks, -1))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sample_lengths: tuple[int, ...],
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sample of a packed sequence, as Transformers calls it.

    Args:
        module: The attention layer.
        query: (1, heads, S, head_dim).
        key: (1, key-value heads, S, head_dim).
        value: As ``key``.
        attention_mask: None; the samples' lengths say all there is to say.
        scaling: Of the scores.
        sample_lengths: Lengths of the N samples, sum S.
        dropout: Of the attention weights.

    Returns:
        (1, S, heads, head_dim), and no attention weights.
    """
    lengths = list(sample_lengths)
    outputs = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True
        )
        for q, k, v in zip(
            torch.split(query, lengths, dim=2),
            torch.split(key, lengths, dim=2),
            torch.split(value, lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _dual_ffn_forward(
    self: Any, hidden_states: Tensor, routing: Routing, audio_token_mask: Tensor, **kwargs: Any
) -> Tensor:
    """The native decoder layer's forward, routed by index; ``audio_token_mask`` is not needed."""
    normed = routing.apply(hidden_states, self.input_layernorm, self.audio_input_layernorm)
    attended, _ = self.self_attn(hidden_states=normed, **kwargs)
    hidden_states = hidden_states + attended

    def text_ffn(text: Tensor) -> Tensor:
        return self.mlp(self.post_attention_layernorm(text))  # type: ignore[no-any-return]

    def audio_ffn(audio: Tensor) -> Tensor:
        return self.audio_mlp(self.audio_post_attention_layernorm(audio))  # type: ignore[no-any-return]

    return hidden_states + routing.apply(hidden_states, text_ffn, audio_ffn)
