"""The native model, made exact and cheap on packed rows.

The native modules do the work; the passes that connect them are put in place of the native ones:

- the body keeps text positions before audio positions (*routed* order), so that each FFN takes a
  slice, where the native layer searches boolean masks 18 times; nothing waits for the device;
- attention, alone, sees the samples in their own order: one causal call a sample, so that samples
  in a row never see each other and the cost grows with the sum of squared sample lengths;
- the heads run only where there are labels, and never on more rows than a budget of memory allows.

Outputs and gradients equal the native model's, sample by sample.
"""

import types
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import HiggsAudioV2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import apply_rotary_pos_emb

from higgs_pipe.config.settings import Quantization
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.attention import Samples, packed_attention
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.fused_lora import fuse_lora
from higgs_pipe.higgs.loss import LossSums, Predictions, chunked_loss, loss_sums
from higgs_pipe.higgs.pretrained import load_weights
from higgs_pipe.higgs.quantization import quantization_options

CPU = torch.device("cpu")
DEFAULT_MAX_LOGITS_MB = 64.0


def load_base(
    pretrained: Pretrained,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    device: torch.device = CPU,
) -> HiggsAudioV2ForConditionalGeneration:
    """Load the base with its text head, frozen, on the CPU; quantized, on ``device``.

    Raises:
        UserError: It cannot be loaded, some of its weights (the text head's, for example) are
            missing, or it cannot be quantized here.
    """
    model: HiggsAudioV2ForConditionalGeneration = load_weights(
        HiggsAudioV2ForConditionalGeneration,
        pretrained,
        dtype=dtype,
        use_text_head=True,
        **quantization_options(quantization, device, dtype),
    )
    model.requires_grad_(False)
    return model.eval()


class Routing(NamedTuple):
    """Which positions go through which FFN, and which belong to one sample."""

    num_text: int
    num_audio: int
    routed: Tensor  # (S,) text positions, then audio positions
    unrouted: Tensor  # (S,) its inverse
    samples: Samples

    def apply(self, hidden: Tensor, of_text: nn.Module, of_audio: nn.Module) -> Tensor:
        """Each position through its module: (S, H) -> (S, H), in routed order."""
        text, audio = torch.split(hidden, [self.num_text, self.num_audio])
        return torch.cat([of_text(text), of_audio(audio)])


class DualLossModel(nn.Module):
    """Base (with or without an adapter) from a packed batch to its losses.

    This is the module that DDP wraps: backbone, heads and loss are all inside its forward, so that
    gradients are synchronised.

    Args:
        model: The native model or a ``PeftModel`` of it; it is changed in place and no longer
            generates.
        max_logits_mb: Megabytes for the logits and their gradient; more are computed in chunks.
        checkpoint_every: Layers of which one is recomputed in the backward pass: 1 is every layer,
            2 every second; 0 is none.
        compile_layers: Compile what is before and after attention in each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        max_logits_mb: float = DEFAULT_MAX_LOGITS_MB,
        checkpoint_every: int = 0,
        compile_layers: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.max_logits_mb = max_logits_mb
        body = self.native.model
        body.forward = types.MethodType(_body_forward, body)
        body.checkpoint_every = checkpoint_every
        for layer in body.layers:
            layer.forward = types.MethodType(_layer_forward, layer)
            for part in (_before_attention, _after_attention):
                compiled = (
                    torch.compile(part, fullgraph=True, dynamic=True) if compile_layers else part
                )
                setattr(layer, part.__name__, types.MethodType(compiled, layer))
        fuse_lora(body)

    @property
    def native(self) -> HiggsAudioV2ForConditionalGeneration:
        """The Transformers model, LoRA layers inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(
        self, batch: PackedBatch, label_weights: Tensor | None = None, predict: bool = True
    ) -> tuple[LossSums, Predictions | None]:
        """The loss sums of each sample of the batch, and what was predicted.

        Args:
            batch: On the model's device.
            label_weights: (2 + K,), :func:`loss.label_weights` of a whole step. With them the
                sums' ``objective`` is the batch's part of the step's, and it alone has a gradient:
                faster, because no logits are computed twice. Without them the sums have one.
            predict: Whether to look for the most likely tokens, for accuracies and the log.
        """
        native = self.native
        hidden = self.backbone(batch)
        text_weights = audio_weights = None
        if label_weights is not None:
            weights = label_weights.to(torch.promote_types(hidden.dtype, torch.float32))
            text, codebooks, stop = torch.split(weights, [1, len(label_weights) - 2, 1])
            text_weights = text.expand(len(batch.text_labels), 1)
            audio_weights = codebooks + stop * (batch.audio_labels == batch.stream_eos)
        text_loss = chunked_loss(
            native.text_lm_head,
            hidden.index_select(0, batch.text_predictors),
            batch.text_labels[:, None],
            native.config.vocab_size,
            self.max_logits_mb,
            text_weights,
            predict,
        )
        audio_loss = chunked_loss(
            native.audio_lm_head,
            hidden.index_select(0, batch.audio_predictors),
            batch.audio_labels,
            native.config.codebook_size,
            self.max_logits_mb,
            audio_weights,
            predict,
        )
        predictions = None
        if text_loss.prediction is not None and audio_loss.prediction is not None:
            predictions = Predictions(
                text_loss.prediction[:, 0],
                (len(batch.text_labels), native.config.vocab_size),
                audio_loss.prediction,
                (*batch.audio_labels.shape, native.config.codebook_size),
            )
        return loss_sums(text_loss, audio_loss, batch), predictions

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Text logits (L, vocabulary) and audio logits (M, K, V), where there are labels."""
        native, hidden = self.native, self.backbone(batch)
        text_logits = native.text_lm_head(hidden.index_select(0, batch.text_predictors))
        audio_logits = native.audio_lm_head(hidden.index_select(0, batch.audio_predictors))
        return text_logits, audio_logits.unflatten(-1, (native.config.num_codebooks, -1))

    def backbone(self, batch: PackedBatch) -> Tensor:
        """The body's last hidden states, in the order of the samples: (S, H)."""
        hidden: Tensor = self.native.model(
            input_ids=batch.input_ids,
            audio_input_ids=batch.audio_input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            routing=Routing(
                len(batch.text_positions),
                len(batch.audio_positions),
                batch.routed,
                batch.unrouted,
                Samples(batch.sample_lengths, batch.sample_offsets),
            ),
        ).last_hidden_state[0]
        return hidden


def _body_forward(
    self: Any,
    input_ids: Tensor,  # (1, S)
    audio_input_ids: Tensor,  # (1, F, K)
    position_ids: Tensor,  # (1, S)
    use_cache: bool,  # False, as for the native forward
    routing: Routing,
) -> BaseModelOutputWithPast:
    """The native body's forward over a packed row: (1, S, H), in the order of the samples."""
    text_ids = input_ids[0].index_select(0, routing.routed[: routing.num_text])
    hidden = torch.cat([self.embed_tokens(text_ids), self.embed_audio_tokens(audio_input_ids[0])])
    rotary = self.rotary_emb(hidden, position_ids)  # cos and sin, each (1, S, head_dim)
    for index, layer in enumerate(self.layers):
        inputs = (hidden, rotary, routing)
        if self.training and self.checkpoint_every and index % self.checkpoint_every == 0:
            hidden = checkpoint(layer, *inputs, use_reentrant=False)
        else:
            hidden = layer(*inputs)
    hidden = _permute(self.norm(hidden), routing.unrouted, routing.routed)
    return BaseModelOutputWithPast(last_hidden_state=hidden[None])


def _layer_forward(
    self: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], routing: Routing
) -> Tensor:
    """The native decoder layer's forward in routed order: (S, H) -> (S, H)."""
    query, key, value = self._before_attention(hidden, rotary, routing)
    dropout = self.self_attn.attention_dropout if self.training else 0.0
    attended = packed_attention(query, key, value, routing.samples, dropout)
    return self._after_attention(hidden, attended, routing)  # type: ignore[no-any-return]


def _before_attention(
    self: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], routing: Routing
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in the order of the samples, each (S, heads, head_dim)."""
    attention = self.self_attn
    normed = routing.apply(hidden, self.input_layernorm, self.audio_input_layernorm)
    query, key, value = (
        _permute(project(normed), routing.unrouted, routing.routed).unflatten(
            -1, (-1, attention.head_dim)
        )
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, rotary[0][0], rotary[1][0], unsqueeze_dim=1)
    return query, key, value


def _after_attention(self: Any, hidden: Tensor, attended: Tensor, routing: Routing) -> Tensor:
    """Both residual sums: (S, H) and (S, heads, head_dim) -> (S, H)."""
    attended = _permute(attended.flatten(1), routing.routed, routing.unrouted)
    hidden = hidden + self.self_attn.o_proj(attended)
    normed = routing.apply(
        hidden, self.post_attention_layernorm, self.audio_post_attention_layernorm
    )
    return hidden + routing.apply(normed, self.mlp, self.audio_mlp)


class _Permute(torch.autograd.Function):
    """Rows in another order; the gradient takes the inverse order, where autograd would add up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


_permute: Any = _Permute.apply  # it has no type
