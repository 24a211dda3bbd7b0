"""Measures of generated speech without a model: stopping, length, silence, repetition.

Call :func:`measure_speech` for the recording, its codec round trip and the speech of each model;
then :mod:`higgs_pipe.listening.comparison` compares them over all prompts.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import jensenshannon

Samples = npt.NDArray[np.float32]  # (N,) mono, full scale is 1
Codes = npt.NDArray[np.int16]  # (T, K)
Histogram = npt.NDArray[np.float64]  # (K, V) frames per code

FRAME_SECONDS = 0.02  # of levels
# A frame is silent below either of these. The first finds pauses in noisy speech, the second
# whole silence, which has nothing loud to compare with.
SILENCE_BELOW_LOUD_DB = 40.0  # below the 95th percentile of the frames' levels
SILENCE_DBFS = -60.0
LOUD_PERCENTILE = 95.0


def _measure(description: str) -> Any:
    return field(metadata={"description": description})


@dataclass(frozen=True)
class SoundMeasures:
    """Measures of one waveform and, if known, of its codes."""

    duration_seconds: float = _measure("Length, in seconds.")
    silence_share: float = _measure(
        "Share of the time that is silent: 20 ms below -60 dBFS or 40 dB below loud speech."
    )
    longest_silence_seconds: float = _measure("Longest silence in a row, in seconds.")
    repeated_frame_share: float | None = _measure(
        "Share of the codec frames that equal the frame before them; missing: no codes."
    )


def measure_speech(
    samples: Samples, sample_rate_hz: int, codes: Codes | None = None
) -> SoundMeasures:
    """Measure a waveform.

    Args:
        samples: (N,) mono. An empty waveform counts as silent.
        sample_rate_hz: Their rate.
        codes: (T, K) of this waveform, if there are any.
    """
    is_silent = silent_frames(samples, sample_rate_hz)
    return SoundMeasures(
        duration_seconds=len(samples) / sample_rate_hz,
        silence_share=float(is_silent.mean()) if len(is_silent) else 1.0,
        longest_silence_seconds=_longest_run(is_silent) * FRAME_SECONDS,
        repeated_frame_share=None if codes is None else repeated_frame_share(codes),
    )


def silent_frames(samples: Samples, sample_rate_hz: int) -> npt.NDArray[np.bool_]:
    """Mark the silent frames of 20 ms: (N,) -> (number of whole frames,)."""
    length = round(FRAME_SECONDS * sample_rate_hz)
    frames = samples[: len(samples) // length * length].reshape(-1, length)
    if not len(frames):
        return np.zeros(0, np.bool_)
    powers = np.einsum("fs,fs->f", frames, frames, dtype=np.float64) / length
    with np.errstate(divide="ignore"):
        levels = 10 * np.log10(powers)  # dBFS
    loud = np.percentile(levels, LOUD_PERCENTILE, method="nearest")
    is_silent: npt.NDArray[np.bool_] = levels < max(SILENCE_DBFS, loud - SILENCE_BELOW_LOUD_DB)
    return is_silent


def repeated_frame_share(codes: Codes) -> float:
    """Share of the frames (T, K), from the second on, that equal the frame before; 0 if T < 2."""
    if len(codes) < 2:
        return 0.0
    return float((codes[1:] == codes[:-1]).all(axis=1).mean())


def code_histogram(codes: Codes, num_entries: int) -> Histogram:
    """Count the codes of each codebook: (T, K) -> (K, V).

    Args:
        codes: Without stream BOS and EOS.
        num_entries: V, codes of a codebook.
    """
    counts = [np.bincount(codebook, minlength=num_entries) for codebook in codes.T]
    return np.stack(counts).astype(np.float64)


def code_distance(first: Histogram, second: Histogram) -> npt.NDArray[np.float64]:
    """Distance of two code distributions, 0 (equal) to 1 (nothing in common).

    The Jensen-Shannon distance (square root of the divergence in bits), averaged over the
    codebooks. With few frames it is large, even between two halves of one recording: compare it
    only at similar lengths.

    Args:
        first: (..., K, V) counts; some in each codebook.
        second: As ``first``.

    Returns:
        (...)
    """
    distances = jensenshannon(first, second, base=2, axis=-1)  # (..., K)
    mean: npt.NDArray[np.float64] = np.asarray(distances).mean(axis=-1)
    return mean


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.view(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
