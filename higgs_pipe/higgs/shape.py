"""Sizes and token ids of a base, which packing, training and evaluation read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseShape:
    """Values of a base's config, by the same names for every family."""

    hidden_size: int  # H
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_codebooks: int  # K
    codebook_size: int  # V, with stream BOS and EOS
    audio_token_id: int  # the placeholder of a frame
    audio_delay_token_id: int  # the placeholder of the last K - 1 frames
    audio_stream_bos_id: int
    audio_stream_eos_id: int
    num_margin_frames: int  # of stream BOS before codebook 0, and of EOS after codebook K - 1
    num_eos_labels: int  # the most stream EOS of a codebook that are labels of a target
    has_text_loss: bool
    normalizes_heads: bool = False  # queries and keys, each head by itself

    @property
    def query_size(self) -> int:
        """Width of the queries and of the attention output, all heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of the keys, and of the values, all heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def products_per_layer(self) -> int:
        """Multiplications per position in the matrices of a layer, with one FFN."""
        attention = 2 * self.query_size + 2 * self.key_value_size
        return self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def num_end_frames(self) -> int:
        """Frames of a recording that hold a stream EOS; codebook k has one in all but k of them."""
        return self.num_codebooks - 1 + self.num_margin_frames

    @property
    def num_first_stop_labels(self) -> int:
        """Stream EOS labels of a target's codebook 0."""
        return min(self.num_eos_labels, self.num_end_frames)

    @property
    def num_stop_labels(self) -> int:
        """Stream EOS labels of a target, of all codebooks."""
        held = (self.num_end_frames - k for k in range(self.num_codebooks))
        return sum(min(self.num_eos_labels, num_eos) for num_eos in held)
