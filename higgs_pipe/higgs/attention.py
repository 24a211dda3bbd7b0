"""Causal attention inside each sample of a packed row, by what the device has for it.

The cost grows with the sum of the squared sample lengths, and no mask is needed. N samples, S
positions in all.
"""

import logging
from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

logger = logging.getLogger("higgs_pipe")

MAX_FLASH_HEAD_DIM = 256


class Samples(NamedTuple):
    """Where the samples of a packed row lie."""

    lengths: tuple[int, ...]  # (N,), sum S
    offsets: Tensor  # (N + 1,) int32, on the device: 0, then where each sample ends


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, samples: Samples, dropout: float = 0.0
) -> Tensor:
    """Causal attention of each sample of a packed row.

    Args:
        query: (S, heads, head_dim).
        key: (S, key-value heads, head_dim).
        value: As ``key``.
        samples: Where the samples lie.
        dropout: Of the attention weights.

    Returns:
        (S, heads, head_dim).
    """
    if dropout == 0 and has_varlen(query.device, query.dtype, query.shape[-1]):
        return varlen_attention(query, key, value, samples)
    return attention_by_sample(query, key, value, samples, dropout)


@cache
def has_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's variable-length attention runs here; what is used is said in the log."""
    is_able = (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= MAX_FLASH_HEAD_DIM
    )
    logger.info(
        "attention on %s in %s: %s",
        *(device, str(dtype).removeprefix("torch.")),
        "one call of torch.nn.attention.varlen a row" if is_able else "one SDPA call a sample",
    )
    return is_able


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, samples: Samples) -> Tensor:
    """All samples in one call of the flash kernel (CUDA, half precision)."""
    longest = max(samples.lengths)
    attended = varlen_attn(
        query,
        key,
        value,
        samples.offsets,
        samples.offsets,
        longest,
        longest,
        window_size=(-1, 0),  # causal
        enable_gqa=True,
    )
    return cast(Tensor, attended)


def attention_by_sample(
    query: Tensor, key: Tensor, value: Tensor, samples: Samples, dropout: float = 0.0
) -> Tensor:
    """One call of scaled dot-product attention a sample; runs everywhere."""
    lengths = list(samples.lengths)
    attended = []
    for parts in zip(
        *(torch.split(tensor, lengths) for tensor in (query, key, value)), strict=True
    ):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)  # (1, heads, length, head_dim)
        of_sample = scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=True
        )
        attended.append(of_sample[0].transpose(0, 1))
    return torch.cat(attended)
