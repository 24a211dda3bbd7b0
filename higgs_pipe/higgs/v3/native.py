"""The native model of Higgs TTS 3: Transformers' Qwen3 body under the checkpoint's own names.

Transformers has no class for it. The checkpoint's tensors are ``body.*`` and ``tied.embedding.*``::

    body.layers.0.self_attn.q_proj.weight …           Qwen3's layers, body.norm.weight
    tied.embedding.text_embedding.weight              (vocabulary, H)
    tied.embedding.modality_embeddings.0.embedding.weight   (K * V, H)
    tied.embedding.modality_embeddings.0.model.*      the codec

One audio matrix both embeds and predicts: a frame's embedding is the sum of its K rows
``V k + code``, and the logits of codebook k are the products with rows ``V k`` to ``V k + V - 1``.
The text head, the text embeddings again, has no part in speech.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3Model

from higgs_pipe.higgs.packed_body import NativeParts
from higgs_pipe.higgs.prompts import ModelPrompt
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.higgs.v3.shape import AUDIO_TOKEN_ID
from higgs_pipe.higgs.v3.shape import shape_of as shape_of_json
from higgs_pipe.planning import model_types

TEXT_EMBEDDING = "tied.embedding.text_embedding.weight"
AUDIO_EMBEDDING = "tied.embedding.modality_embeddings.0.embedding.weight"
# Copies of the embeddings, which the checkpoint stores outside its index.
TEXT_HEAD, AUDIO_HEAD = "tied.head.text_head.weight", "tied.head.modality_heads.0.weight"
ROPE_THETA = 1_000_000.0  # where the config has none, as SGLang-Omni and vLLM-Omni do


class HiggsV3Config(PreTrainedConfig):  # type: ignore[misc]  # Transformers has no types here
    """``config.json`` of a checkpoint; the part of the body is Transformers' own."""

    model_type = model_types.V3
    sub_configs = {"text_config": Qwen3Config}  # noqa: RUF012  # so in Transformers

    text_config: Any = None  # as in config.json, then a Qwen3Config
    audio_encoder_config: Any = None  # as in config.json
    audio_token_id: int = AUDIO_TOKEN_ID
    tie_word_embeddings: bool = False  # the tied matrix is one parameter here

    def __post_init__(self, **kwargs: Any) -> None:
        """Read the part of the body."""
        if not isinstance(self.text_config, Qwen3Config):
            text: dict[str, Any] = dict(self.text_config or {})
            rope = dict(text.pop("rope_parameters", None) or {"rope_type": "default"})
            rope["rope_theta"] = rope.get("rope_theta") or text.pop("rope_theta", None)
            rope["rope_theta"] = rope["rope_theta"] or ROPE_THETA
            self.text_config = Qwen3Config(**text, rope_parameters=rope)
        super().__post_init__(**kwargs)


class AudioEmbedding(nn.Module):
    """The tied audio matrix as an embedding: (…, K) codes -> (…, H)."""

    def __init__(self, num_codebooks: int, codebook_size: int, hidden_size: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.embedding = nn.Embedding(num_codebooks * codebook_size, hidden_size)

    def forward(self, codes: Tensor) -> Tensor:
        """Sum the embeddings of a frame's codes."""
        offsets = torch.arange(codes.shape[-1], device=codes.device) * self.codebook_size
        rows: Tensor = self.embedding(codes + offsets)
        return rows.sum(dim=-2)


class AudioHead(nn.Module):
    """The tied audio matrix as a head: (…, H) -> (…, K * V).

    Args:
        embedding: The matrix, perhaps trained in full; then it is kept in float32.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the logits in the dtype of ``hidden``."""
        weight: Tensor = self.embedding.weight  # type: ignore[assignment]  # PEFT passes it on
        return linear(hidden.to(weight.dtype), weight).to(hidden.dtype)


class _Embeddings(nn.Module):
    """``tied.embedding``."""

    def __init__(self, config: HiggsV3Config) -> None:
        super().__init__()
        text, audio = config.text_config, config.audio_encoder_config
        self.text_embedding = nn.Embedding(text.vocab_size, text.hidden_size)
        self.modality_embeddings = nn.ModuleList(
            [AudioEmbedding(audio["num_codebooks"], audio["vocab_size"], text.hidden_size)]
        )


class _Tied(nn.Module):
    """``tied``."""

    def __init__(self, config: HiggsV3Config) -> None:
        super().__init__()
        self.embedding = _Embeddings(config)


class HiggsV3Model(PreTrainedModel):  # type: ignore[misc]  # Transformers has no types here
    """Qwen3 with text and audio embeddings of its own; :func:`parts_of` names its parts."""

    config_class = HiggsV3Config
    config: HiggsV3Config
    base_model_prefix = ""
    generation_config: Any = None  # Transformers does not generate with it
    _no_split_modules = ("Qwen3DecoderLayer",)
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = (
        rf"^{model_types.BUNDLED_CODECS[model_types.V3]}".replace(".", r"\."),
        *(rf"^{name}$".replace(".", r"\.") for name in (TEXT_HEAD, AUDIO_HEAD)),
    )

    def __init__(self, config: HiggsV3Config) -> None:
        super().__init__(config)
        self.body = Qwen3Model(config.text_config)
        del self.body.embed_tokens  # ours is tied.embedding.text_embedding
        self.tied = _Tied(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights of a model that is not loaded."""
        deviation = self.config.text_config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)

    def get_input_embeddings(self) -> nn.Module:
        """Return the text embeddings, for PEFT."""
        return self.tied.embedding.text_embedding

    def forward(
        self,
        input_ids: Tensor,  # (1, S), with the placeholder of a frame
        audio_input_ids: Tensor,  # (1, F, K)
        **options: Any,  # of Qwen3Model
    ) -> Tensor:
        """Return the logits of one sample: (1, S, K, V)."""
        parts, shape = parts_of(self), shape_of(self.config)
        is_audio = input_ids == shape.audio_token_id
        embedded = parts.embed_text(input_ids.masked_fill(is_audio, 0))
        embedded = embedded.masked_scatter(is_audio[..., None], parts.embed_audio(audio_input_ids))
        hidden = self.body(inputs_embeds=embedded, **options).last_hidden_state
        logits: Tensor = parts.audio_head(hidden)
        return logits.view(*logits.shape[:-1], shape.num_codebooks, shape.codebook_size)


def next_frame_logits(native: HiggsV3Model, prompt: ModelPrompt) -> Tensor:
    """Return the logits of the frame after a prompt: (K, V)."""
    input_ids, frames = (
        torch.from_numpy(ids.astype(np.int64))[None].to(native.device)
        for ids in (prompt.input_ids, prompt.audio_input_ids)
    )
    logits: Tensor = native(input_ids, frames, use_cache=False)[0, -1]
    return logits


def shape_of(config: HiggsV3Config) -> BaseShape:
    """Return the sizes and token ids of a native config."""
    return shape_of_json(config.to_dict())


def parts_of(native: HiggsV3Model) -> NativeParts:
    """Return the parts that the packed forward pass connects."""
    audio: Any = native.tied.embedding.modality_embeddings[0]
    return NativeParts(
        body=native.body,
        embed_text=native.tied.embedding.text_embedding,
        embed_audio=audio,
        audio_head=AudioHead(audio.embedding),
        text_head=None,
    )


def skeleton(config: HiggsV3Config) -> nn.Module:
    """Return the model without weights."""
    with torch.device("meta"):
        model: nn.Module = HiggsV3Model(config)
    return model


def num_ids(native: HiggsV3Model) -> tuple[int, int]:
    """Return how many text ids, and how many ids of a codebook, have an embedding."""
    shape = shape_of(native.config)
    return shape.vocab_size, shape.codebook_size
