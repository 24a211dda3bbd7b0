"""The delay pattern: T frames of K codes as the language model reads and predicts them.

Each codebook's stream is ``[BOS, code 0, …, code T-1, EOS]``; codebook k starts k frames later than
codebook 0. BOS fills the frames before a stream and EOS those after it, so T frames become
F = T + 2 + (K - 1) (delay pattern of MusicGen, Copet et al. 2023, as Higgs Audio v2 uses it)::

    K = 3, T = 2          frame  0    1    2    3    4    5
    codebook 0                  BOS  a0   a1   EOS  EOS  EOS
    codebook 1                  BOS  BOS  b0   b1   EOS  EOS
    codebook 2                  BOS  BOS  BOS  c0   c1   EOS
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IGNORED = -100  # PyTorch's ignore_index: a position without a label

Codes = npt.NDArray[np.int16]


def num_delayed_frames(num_frames: int, num_codebooks: int) -> int:
    """Return F for T frames of K codebooks."""
    return num_frames + 2 + num_codebooks - 1


def delay(recordings: Sequence[Codes], stream_bos: int, stream_eos: int) -> Codes:
    """Delay codebook k of each recording by k frames.

    Args:
        recordings: (T, K) each, at least one.
        stream_bos: The code before a stream.
        stream_eos: The code after it.

    Returns:
        (sum of F, K), the recordings one after the other.
    """
    num_codebooks = recordings[0].shape[1]
    # Codebook k moves k + 1 frames down: of the K + 1 frames between two recordings, the first
    # K - k end up after the stream and the others before the next one.
    frame, codebook = np.ogrid[: num_codebooks + 1, :num_codebooks]
    return _delayed(recordings, np.where(frame < num_codebooks - codebook, stream_eos, stream_bos))


def _delayed(recordings: Sequence[Codes], between: npt.NDArray[np.int64]) -> Codes:
    """Move codebook k by k + 1 frames.

    Args:
        recordings: (T, K) each.
        between: (K + 1, K), the frames before, between and after the recordings.

    Returns:
        (sum of F, K).
    """
    gap = between.astype(np.int16)
    padded = np.concatenate([gap, *(part for codes in recordings for part in (codes, gap))])
    delayed = np.empty_like(padded[len(gap) :])
    for k in range(delayed.shape[1]):
        delayed[:, k] = padded[len(gap) - (k + 1) :][: len(delayed), k]
    return delayed


def undelay(delayed: Codes) -> Codes:
    """Undo :func:`delay`: (F, K) -> (T, K)."""
    num_delayed, num_codebooks = delayed.shape
    num_frames = num_delayed - 2 - (num_codebooks - 1)
    return np.stack([delayed[k + 1 : k + 1 + num_frames, k] for k in range(num_codebooks)], axis=1)


def target_labels(
    recordings: Sequence[Codes], stream_eos: int, is_target: Sequence[bool] | None = None
) -> Codes:
    """Return the labels of the frames that :func:`delay` makes of some recordings.

    In a target, every code and the first EOS of each codebook are labels; that EOS teaches
    generation to stop. BOS, every later EOS and all other recordings are ``IGNORED``. The label of
    a frame is the frame itself: the loss predicts it from the position before.

    Args:
        recordings: (T, K) each, at least one.
        stream_eos: The code after a stream.
        is_target: True for each recording that is a target; by default all are.

    Returns:
        (sum of F, K).
    """
    num_codebooks = recordings[0].shape[1]
    after_stream = np.full((num_codebooks + 1, num_codebooks), IGNORED)
    after_stream[0] = stream_eos
    labels = _delayed(recordings, after_stream)
    end = 0
    for codes, learned in zip(recordings, is_target or [True] * len(recordings), strict=True):
        start, end = end, end + num_delayed_frames(*codes.shape)
        if not learned:
            labels[start:end] = IGNORED
    return labels
