"""Resampling in bounded time and memory, whatever the sample rate."""

import math

import soxr
import torch
import torchaudio
from torch import Tensor

# 4 MB of float32. All usual rates are far below: 44.1 kHz to 24 kHz takes 13 thousand values.
MAX_KERNEL_VALUES = 2**20


def resample(mono: Tensor, rate_hz: int, wanted_hz: int) -> Tensor:
    """Resample a signal: (n,) -> (ceil(n * wanted_hz / rate_hz),).

    torchaudio's filter bank grows with the product of both rates over their common divisor
    squared: a clip of 16,001 Hz took a minute and 7 GB. Such rates go through libsoxr, which
    interpolates between the filters of a small bank; the others give the values of torchaudio.
    """
    if rate_hz == wanted_hz:
        return mono
    divisor = math.gcd(rate_hz, wanted_hz)
    if (rate_hz // divisor) * (wanted_hz // divisor) <= MAX_KERNEL_VALUES:
        resampled: Tensor = torchaudio.functional.resample(mono, rate_hz, wanted_hz)
        return resampled
    samples = torch.from_numpy(soxr.resample(mono.numpy(), rate_hz, wanted_hz))
    num_samples = math.ceil(len(mono) * wanted_hz / rate_hz)
    return torch.nn.functional.pad(samples, (0, num_samples - len(samples)))
