"""The part of a base model's config that packing, training and evaluation read."""

from typing import Protocol


class BaseConfig(Protocol):
    """Sizes and token ids; class defaults are never used, the checkpoint's own values are."""

    vocab_size: int
    num_codebooks: int  # K
    codebook_size: int  # V, with stream BOS and EOS
    audio_token_id: int  # the placeholder of a frame
    audio_delay_token_id: int  # the placeholder of the last K - 1 frames
    audio_stream_bos_id: int
    audio_stream_eos_id: int
