"""Measures of a recording."""

import math

import numpy as np
import numpy.typing as npt


def peak(samples: npt.NDArray[np.float32]) -> float:
    """The largest absolute sample of (num_samples, num_channels); full scale is 1."""
    return float(np.abs(samples).max())


def rms_dbfs(samples: npt.NDArray[np.float32]) -> float:
    """The root mean square level over all channels, in dB of full scale; silence is -inf."""
    mean_square = float(np.square(samples, dtype=np.float64).mean())
    return 10 * math.log10(mean_square) if mean_square > 0 else -math.inf
