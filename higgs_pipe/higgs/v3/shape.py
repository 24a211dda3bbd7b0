"""Sizes and token ids of Higgs TTS 3, from the contents of a ``config.json``."""

from collections.abc import Mapping
from typing import Any

from higgs_pipe.higgs.shape import BaseShape

AUDIO_TOKEN_ID = -100  # the placeholder of a frame, where the config names none


def shape_of(config: Mapping[str, Any]) -> BaseShape:
    """Return the shape of a base; BOC and EOC are a codebook's last two entries."""
    text, audio = config["text_config"], config["audio_encoder_config"]
    audio_token_id = config.get("audio_token_id", AUDIO_TOKEN_ID)
    return BaseShape(
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        num_attention_heads=text["num_attention_heads"],
        num_key_value_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        vocab_size=text["vocab_size"],
        num_codebooks=audio["num_codebooks"],
        codebook_size=audio["vocab_size"],
        audio_token_id=audio_token_id,
        audio_delay_token_id=audio_token_id,
        audio_stream_bos_id=audio["vocab_size"] - 2,
        audio_stream_eos_id=audio["vocab_size"] - 1,
        num_margin_frames=0,
        num_eos_labels=audio["num_codebooks"],  # all: docs/decisions/0023
        has_text_loss=False,
        normalizes_heads=True,
    )
