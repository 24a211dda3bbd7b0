"""Sizes and token ids of Higgs Audio v2, from the contents of a ``config.json``."""

from collections.abc import Mapping
from typing import Any

from higgs_pipe.higgs.codes import MARGIN_FRAMES
from higgs_pipe.higgs.shape import BaseShape


def shape_of(config: Mapping[str, Any]) -> BaseShape:
    """Return the shape of a base, without class defaults, which may be wrong for it."""
    return BaseShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab_size=config["vocab_size"],
        num_codebooks=config["num_codebooks"],
        codebook_size=config["codebook_size"],
        audio_token_id=config["audio_token_id"],
        audio_delay_token_id=config["audio_delay_token_id"],
        audio_stream_bos_id=config["audio_stream_bos_id"],
        audio_stream_eos_id=config["audio_stream_eos_id"],
        num_margin_frames=MARGIN_FRAMES,
        num_eos_labels=1,
        has_text_loss=True,
    )
