"""The one signal that the codec gets of a recording with several channels."""

import math

import numpy as np
import numpy.typing as npt

# Channels that have nothing in common lose 3 dB in the mean of two, a single one that is not
# silent loses 3 dB per doubling of their number; turned polarity loses far more.
MAX_LOSS_DB = 12.0

Samples = npt.NDArray[np.float32]


def loss_of_mean_db(samples: Samples) -> float:
    """Return how far the mean of the channels lies below their mean power, in dB.

    Args:
        samples: (num_samples, num_channels). An offset of a channel does not count.
    """
    channels = samples.var(axis=0, dtype=np.float64).mean()
    mean = samples.mean(axis=1).var(dtype=np.float64)
    if channels == 0:
        return 0.0
    return 10 * math.log10(channels / mean) if mean > 0 else math.inf


def channel_to_take(samples: Samples) -> int | None:
    """Return the loudest channel if the channels cancel in their mean, or None.

    Args:
        samples: (num_samples, num_channels), finite.
    """
    if samples.shape[1] == 1 or loss_of_mean_db(samples) <= MAX_LOSS_DB:
        return None
    return int(samples.var(axis=0, dtype=np.float64).argmax())


def to_mono(samples: Samples, channel: int | None) -> Samples:
    """Return one channel, or the mean of all: (num_samples, num_channels) -> (num_samples, 1)."""
    if samples.shape[1] == 1:
        return samples
    if channel is not None:
        return np.ascontiguousarray(samples[:, channel : channel + 1])
    mono: Samples = samples.mean(axis=1, keepdims=True)
    return mono
