"""The native model, made exact and cheap on packed rows.

The native modules do the work. The forward passes that connect them are replaced:

- The body keeps text positions before audio positions (*routed* order), so that each FFN takes a
  slice. The native layer searches boolean masks 18 times and waits for the device each time.
- Only attention sees the samples in their own order, with one causal call per sample: samples in a
  row never see each other, and the cost grows with the sum of squared sample lengths.
- The heads run only where there are labels, in chunks that fit a memory budget.

Outputs and gradients equal the native model's, sample by sample.
"""

import types
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import HiggsAudioV2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import apply_rotary_pos_emb

from higgs_pipe.config.settings import Quantization
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.attention import packed_attention
from higgs_pipe.higgs.batch import Layout, PackedBatch
from higgs_pipe.higgs.dropout import draw_by_row
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
    """Load the base with its text head, frozen: on the CPU, or quantized on ``device``.

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


class DualLossModel(nn.Module):
    """The base, with or without an adapter: a packed batch in, its losses out.

    Backbone, heads and loss are all inside its forward.

    Args:
        model: The native model or a ``PeftModel`` of it; it is changed in place and no longer
            generates.
        max_logits_mb: Megabytes for the logits and their gradient; more are computed in chunks.
        recomputed_layers: The first layers that the backward pass computes again.
    """

    def __init__(
        self,
        model: nn.Module,
        max_logits_mb: float = DEFAULT_MAX_LOGITS_MB,
        recomputed_layers: int = 0,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.max_logits_mb = max_logits_mb
        body = self.native.model
        body.forward = types.MethodType(_body_forward, body)
        body.recomputed_layers = recomputed_layers
        for layer in body.layers:
            layer.forward = types.MethodType(_layer_forward, layer)
            for part in (_before_attention, _after_attention):
                setattr(layer, part.__name__, types.MethodType(part, layer))
        fuse_lora(body)
        body.position_keys = draw_by_row(body)

    @property
    def num_layers(self) -> int:
        """The layers of the body."""
        return len(self.native.model.layers)

    @property
    def recomputed_layers(self) -> int:
        """The first layers that the backward pass computes again, for less memory."""
        return int(self.native.model.recomputed_layers)

    @recomputed_layers.setter
    def recomputed_layers(self, number: int) -> None:
        self.native.model.recomputed_layers = number

    def compile_layers(self) -> None:
        """Compile the parts of each layer before and after attention, at their next call."""
        for part in (_before_attention, _after_attention):
            compiled = torch.compile(part, fullgraph=True, dynamic=True)
            for layer in self.native.model.layers:
                setattr(layer, part.__name__, types.MethodType(compiled, layer))

    @property
    def native(self) -> HiggsAudioV2ForConditionalGeneration:
        """The Transformers model, with the LoRA layers inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(
        self, batch: PackedBatch, label_weights: Tensor | None = None, predict: bool = True
    ) -> tuple[LossSums, Predictions | None]:
        """Compute the loss sums of each sample of the batch, and the predictions.

        Args:
            batch: On the model's device.
            label_weights: (2 + K,), :func:`loss.label_weights` of a whole step. With them only the
                sums' ``objective``, the batch's part of the step's, has a gradient; this is faster,
                because no logits are computed twice. Without them the sums have a gradient.
            predict: Also find the most likely tokens, for accuracies and the log.
        """
        native, hidden = self.native, self.backbone(batch)
        text_weights = audio_weights = None
        if label_weights is not None:
            weights = label_weights.to(torch.promote_types(hidden.dtype, torch.float32))
            text, codebooks, stop = torch.split(weights, [1, len(label_weights) - 2, 1])
            text_weights = text.expand(batch.text.values.shape)
            audio_weights = codebooks + stop * (batch.audio.values == batch.stream_eos)
        text_loss = chunked_loss(
            native.text_lm_head,
            hidden.index_select(0, batch.text.predictors),
            batch.text.values,
            native.config.vocab_size,
            self.max_logits_mb,
            text_weights,
            predict,
        )
        audio_loss = chunked_loss(
            native.audio_lm_head,
            hidden.index_select(0, batch.audio.predictors),
            batch.audio.values,
            native.config.codebook_size,
            self.max_logits_mb,
            audio_weights,
            predict,
        )
        predictions = None
        if text_loss.prediction is not None and audio_loss.prediction is not None:
            predictions = Predictions(
                text_loss.prediction,
                (len(batch.text.values), native.config.vocab_size),
                audio_loss.prediction,
                (*batch.audio.values.shape, native.config.codebook_size),
            )
        return loss_sums(text_loss, audio_loss, batch), predictions

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return text logits (L, vocabulary) and audio logits (M, K, V), where there are labels."""
        native, hidden = self.native, self.backbone(batch)
        text_logits = native.text_lm_head(hidden.index_select(0, batch.text.predictors))
        audio_logits = native.audio_lm_head(hidden.index_select(0, batch.audio.predictors))
        return text_logits, audio_logits.unflatten(-1, (native.config.num_codebooks, -1))

    def backbone(self, batch: PackedBatch) -> Tensor:
        """Return the body's last hidden states, in the order of the samples: (S, H)."""
        output = self.native.model(
            input_ids=batch.input_ids,
            audio_input_ids=batch.audio_input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            layout=batch.layout,
        )
        return cast(Tensor, output.last_hidden_state[0])


def _by_kind(
    hidden: Tensor, layout: Layout, text_module: nn.Module, audio_module: nn.Module
) -> Tensor:
    """Apply each position's own module: (S, H) -> (S, H), in routed order."""
    text, audio = torch.split(hidden, [layout.num_text, len(hidden) - layout.num_text])
    return torch.cat([text_module(text), audio_module(audio)])


def _body_forward(
    self: Any,
    input_ids: Tensor,  # (1, S)
    audio_input_ids: Tensor,  # (1, F, K)
    position_ids: Tensor,  # (1, S)
    use_cache: bool,  # False, as for the native forward
    layout: Layout,
) -> BaseModelOutputWithPast:
    """Replace the native body's forward: (1, S, H) of a packed row, in the order of the samples."""
    self.position_keys.put(layout.dropout_keys, layout.num_text)
    text_ids = input_ids[0].index_select(0, layout.routed[: layout.num_text])
    hidden = torch.cat([self.embed_tokens(text_ids), self.embed_audio_tokens(audio_input_ids[0])])
    rotary = self.rotary_emb(hidden, position_ids)  # cos and sin, each (1, S, head_dim)
    for index, layer in enumerate(self.layers):
        inputs = (hidden, rotary, layout)
        if self.training and index < self.recomputed_layers:
            hidden = checkpoint(layer, *inputs, use_reentrant=False)
        else:
            hidden = layer(*inputs)
    hidden = _permute(self.norm(hidden), layout.unrouted, layout.routed)
    return BaseModelOutputWithPast(last_hidden_state=hidden[None])


def _layer_forward(
    self: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout
) -> Tensor:
    """Replace the native decoder layer's forward: (S, H) -> (S, H), in routed order."""
    query, key, value = self._before_attention(hidden, rotary, layout)
    dropout = self.self_attn.attention_dropout if self.training else 0.0
    attended = packed_attention(query, key, value, layout.samples, dropout)
    return self._after_attention(hidden, attended, layout)  # type: ignore[no-any-return]


def _before_attention(
    self: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys, values in the order of the samples, each (S, heads, head_dim)."""
    attention = self.self_attn
    normed = _by_kind(hidden, layout, self.input_layernorm, self.audio_input_layernorm)
    query, key, value = (
        _permute(project(normed), layout.unrouted, layout.routed).unflatten(
            -1, (-1, attention.head_dim)
        )
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, rotary[0][0], rotary[1][0], unsqueeze_dim=1)
    return query, key, value


def _after_attention(self: Any, hidden: Tensor, attended: Tensor, layout: Layout) -> Tensor:
    """Add both residuals: (S, H) and (S, heads, head_dim) -> (S, H)."""
    attended = _permute(attended.flatten(1), layout.routed, layout.unrouted)
    hidden = hidden + self.self_attn.o_proj(attended)
    normed = _by_kind(
        hidden, layout, self.post_attention_layernorm, self.audio_post_attention_layernorm
    )
    return hidden + _by_kind(normed, layout, self.mlp, self.audio_mlp)


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


_permute: Any = _Permute.apply  # untyped in PyTorch
