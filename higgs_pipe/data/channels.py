"""Mixing a recording with several channels down to the one signal that the codec gets."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

# Channels that have nothing in common lose 3 dB in the mean of two, a single one that is not
# silent loses 3 dB per doubling of their number; turned polarity loses far more.
MAX_LOSS_DB = 12.0
# Polarity may turn within a recording: of the channels' power, at most this share may be in blocks
# that are lost.
MAX_LOST_SHARE = 0.1
# How far above the others a channel is alone in a block, and the share of a second channel's blocks
# of this kind from which on two voices are likely.
MIN_APART_DB = 12.0
MIN_SEPARATE_SHARE = 0.1
BLOCK_NUM_SAMPLES = 4096
NUM_BLOCKS_AT_ONCE = 256

Samples = npt.NDArray[np.float32]


def loss_of_mean_db(samples: Samples) -> float:
    """Return how far the mean of the channels lies below their mean power, in dB.

    Args:
        samples: (num_samples, num_channels). Channel offsets are ignored.
    """
    channels = samples.var(axis=0, dtype=np.float64).mean()
    mean = samples.mean(axis=1).var(dtype=np.float64)
    if channels == 0:
        return 0.0
    return 10 * math.log10(channels / mean) if mean > 0 else math.inf


def lost_share(samples: Samples) -> float:
    """Return the share of the channels' power that lies in blocks that cancel in their mean.

    Args:
        samples: (num_samples, num_channels). Samples after the last whole block are ignored.
    """
    power = lost = 0.0
    for blocks in _blocks(samples):
        channels = blocks.var(axis=2).mean(axis=0, dtype=np.float64)
        mean = blocks.mean(axis=0).var(axis=1)
        power += channels.sum()
        lost += channels[mean < channels / 10 ** (MAX_LOSS_DB / 10)].sum()
    return lost / power if power > 0 else 0.0


def separate_share(samples: Samples) -> float:
    """Return the share of power that a second channel has alone, where the others are quiet.

    Channels of one sound rise and fall together, and give 0. With a voice in each, as telephones
    are recorded, each is alone by turns, and two that speak alike give almost 0.5.

    Args:
        samples: (num_samples, num_channels). Samples after the last whole block are ignored.
    """
    num_channels = samples.shape[1]
    if num_channels == 1:
        return 0.0
    power, alone = 0.0, np.zeros(num_channels)
    for blocks in _blocks(samples):
        powers = blocks.var(axis=2).astype(np.float64)  # (num_channels, num_blocks)
        second, first = np.sort(powers, axis=0)[-2:]
        is_alone = first > 10 ** (MIN_APART_DB / 10) * second
        power += powers.sum()
        np.add.at(alone, powers.argmax(axis=0)[is_alone], first[is_alone])
    return float(np.sort(alone)[-2] / power) if power > 0 else 0.0


def _blocks(samples: Samples) -> Iterator[Samples]:
    """Yield blocks of (num_samples, num_channels), some at once, as (num_channels, n, BLOCK)."""
    num_blocks = len(samples) // BLOCK_NUM_SAMPLES
    for first in range(0, num_blocks, NUM_BLOCKS_AT_ONCE):
        last = min(first + NUM_BLOCKS_AT_ONCE, num_blocks)
        several = samples[first * BLOCK_NUM_SAMPLES : last * BLOCK_NUM_SAMPLES]
        # One channel after the other is several times faster.
        yield np.ascontiguousarray(several.T).reshape(-1, last - first, BLOCK_NUM_SAMPLES)


def channel_to_take(samples: Samples) -> int | None:
    """Return the loudest channel if the channels, or parts of them, cancel in their mean.

    None means to use their mean.

    Args:
        samples: (num_samples, num_channels), finite.
    """
    if samples.shape[1] == 1:
        return None
    if loss_of_mean_db(samples) <= MAX_LOSS_DB and lost_share(samples) <= MAX_LOST_SHARE:
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
