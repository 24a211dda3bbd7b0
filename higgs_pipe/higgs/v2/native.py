"""The native model of Higgs Audio v2: what its config says, and where its parts are."""

from typing import Any

import torch
from torch import nn
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.higgs.codes import MARGIN_FRAMES
from higgs_pipe.higgs.packed_body import NativeParts
from higgs_pipe.higgs.shape import BaseShape


def shape_of(config: HiggsAudioV2Config) -> BaseShape:
    """Return the sizes and token ids of a base; class defaults are traps, so all are its own."""
    return BaseShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        audio_token_id=config.audio_token_id,
        audio_delay_token_id=config.audio_delay_token_id,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
        num_margin_frames=MARGIN_FRAMES,
        num_eos_labels=1,
        has_text_loss=True,
    )


def parts_of(native: HiggsAudioV2ForConditionalGeneration) -> NativeParts:
    """Return the parts that the packed forward pass connects."""
    body = native.model
    return NativeParts(
        body=body,
        embed_text=body.embed_tokens,
        embed_audio=body.embed_audio_tokens,
        audio_head=native.audio_lm_head,
        text_head=native.text_lm_head,
    )


def skeleton(config: HiggsAudioV2Config) -> nn.Module:
    """Return the model with its text head, without weights."""
    with torch.device("meta"):
        model: Any = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    return model  # type: ignore[no-any-return]


def num_ids(native: HiggsAudioV2ForConditionalGeneration) -> tuple[int, int]:
    """Return how many text ids, and how many ids of a codebook, have an embedding and an output."""
    body = native.model
    embedded = body.embed_audio_tokens.embed_audio_tokens.num_embeddings
    num_text = min(body.embed_tokens.num_embeddings, native.text_lm_head.out_features)
    num_audio = min(embedded, native.audio_lm_head.out_features)
    return num_text, num_audio // native.config.num_codebooks
