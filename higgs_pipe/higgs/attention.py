"""Causal attention within each sample of a packed row, with the device's fastest kernel.

The cost grows with the sum of the squared sample lengths, and no mask is needed. N samples, S
positions in all.
"""

import inspect
import logging
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

logger = logging.getLogger("higgs_pipe")

MAX_FLASH_HEAD_DIM = 256
# Before PyTorch 2.12 grouped queries need no argument, and there is none.
GROUPED_QUERIES: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


class SampleBounds(NamedTuple):
    """Beginnings and ends of the samples of a packed row."""

    lengths: tuple[int, ...]  # (N,), sum S
    offsets: Tensor  # (N + 1,) int32, on the device: 0, then where each sample ends; padded with S
    longest: int  # at least the longest of ``lengths``


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, samples: SampleBounds, dropout: float = 0.0
) -> Tensor:
    """Compute causal attention within each sample of a packed row.

    Args:
        query: (S, heads, head_dim).
        key: (S, key-value heads, head_dim).
        value: As ``key``.
        samples: Where each sample begins and ends.
        dropout: Dropout of the attention weights.

    Returns:
        (S, heads, head_dim).
    """
    if dropout == 0 and has_varlen(query.device, query.dtype, query.shape[-1]):
        return varlen_attention(query, key, value, samples)
    return attention_by_sample(query, key, value, samples, dropout)


@cache
def has_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether PyTorch's variable-length attention runs here; the log names the choice."""
    is_able = (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= MAX_FLASH_HEAD_DIM
    )
    way = "SDPA, one call per sample"
    if is_able:
        way = f"torch.nn.attention.varlen, one call per row, {newest_flash(device)}"
    logger.info("attention on %s in %s: %s", device, str(dtype).removeprefix("torch."), way)
    return is_able


def newest_flash(device: torch.device) -> str:
    """Make PyTorch use FlashAttention 3 if it is installed for this GPU; return the name."""
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    # The function is in PyTorch 2.11 and later.
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if is_hopper and activate is not None and find_spec("flash_attn_interface") is not None:
        try:
            activate("FA3")
        except (ImportError, RuntimeError) as error:
            logger.warning("FlashAttention 3 is installed, but does not load: %s", error)
        else:
            return "FlashAttention 3"
    return "FlashAttention 2"


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, samples: SampleBounds) -> Tensor:
    """Attend in one call of the flash kernel for all samples (CUDA, half precision)."""
    attended = varlen_attn(
        query,
        key,
        value,
        samples.offsets,
        samples.offsets,
        samples.longest,
        samples.longest,
        window_size=(-1, 0),  # causal
        **GROUPED_QUERIES,
    )
    return cast(Tensor, attended)


def attention_by_sample(
    query: Tensor, key: Tensor, value: Tensor, samples: SampleBounds, dropout: float = 0.0
) -> Tensor:
    """Attend in one call of scaled dot-product attention per sample; runs everywhere."""
    lengths = list(samples.lengths)
    attended = []
    by_sample = (torch.split(tensor, lengths) for tensor in (query, key, value))
    for parts in zip(*by_sample, strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)  # (1, heads, length, head_dim)
        of_sample = scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=True
        )
        attended.append(of_sample[0].transpose(0, 1))
    return torch.cat(attended)
