"""The native model of Higgs Audio v2: its config, and access to its parts."""

from typing import Any

import torch
from torch import nn
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.higgs.packed_body import NativeParts
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.higgs.v2.shape import shape_of as shape_of_json


def shape_of(config: HiggsAudioV2Config) -> BaseShape:
    """Return the sizes and token ids of a native config."""
    return shape_of_json(config.to_dict())


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
    # By the weight, which PEFT's wrapper for train.lora.trainable_tokens has too.
    num_text = min(len(body.embed_tokens.weight), native.text_lm_head.out_features)
    num_audio = min(embedded, native.audio_lm_head.out_features)
    return num_text, num_audio // native.config.num_codebooks
