"""The delay pattern: T frames of K codes as the language model reads and predicts them.

Codebook k starts k frames later than codebook 0; BOS fills the frames before its codes and EOS
those after them (delay pattern of MusicGen, Copet et al. 2023). Higgs Audio v2 has a margin of one
frame at both ends, so that each codebook has both, and T frames become F = T + 2 + (K - 1)::

    K = 3, T = 2          frame  0    1    2    3    4    5
    codebook 0                  BOS  a0   a1   EOS  EOS  EOS
    codebook 1                  BOS  BOS  b0   b1   EOS  EOS
    codebook 2                  BOS  BOS  BOS  c0   c1   EOS

Higgs Audio v3 has no margin: its frames are 1 to 4 of these, and F = T + (K - 1).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IGNORED = -100  # PyTorch's ignore_index: a position without a label
MARGIN_FRAMES = 1  # of Higgs Audio v2

Codes = npt.NDArray[np.int16]


def num_delayed_frames(num_frames: int, num_codebooks: int, margin: int = MARGIN_FRAMES) -> int:
    """Return F for T frames of K codebooks."""
    return num_frames + num_codebooks - 1 + 2 * margin


def delay(
    recordings: Sequence[Codes], stream_bos: int, stream_eos: int, margin: int = MARGIN_FRAMES
) -> Codes:
    """Delay codebook k of each recording by k frames.

    Args:
        recordings: (T, K) each, at least one.
        stream_bos: The code before a stream.
        stream_eos: The code after it.
        margin: Frames of BOS before codebook 0, and of EOS after codebook K - 1.

    Returns:
        (sum of F, K), the recordings one after the other.
    """
    is_after = _is_after(recordings[0].shape[1], margin)
    return _delayed(recordings, np.where(is_after, stream_eos, stream_bos), margin)


def _is_after(num_codebooks: int, margin: int) -> npt.NDArray[np.bool_]:
    """Return which values between two recordings belong to the first: (F - T, K).

    Codebook k moves by k frames and the margin, so the other values are before the second one.
    """
    num_between = num_codebooks - 1 + 2 * margin
    frame, codebook = np.ogrid[:num_between, :num_codebooks]
    return frame < num_codebooks - 1 + margin - codebook


def _delayed(recordings: Sequence[Codes], between: npt.NDArray[np.int64], margin: int) -> Codes:
    """Move codebook k by k frames and the margin.

    Args:
        recordings: (T, K) each.
        between: (F - T, K), the frames before, between and after the recordings.
        margin: As for :func:`delay`.

    Returns:
        (sum of F, K).
    """
    gap = between.astype(np.int16)
    padded = np.concatenate([gap, *(part for codes in recordings for part in (codes, gap))])
    delayed = np.empty_like(padded[len(gap) :])
    for k in range(delayed.shape[1]):
        delayed[:, k] = padded[len(gap) - (k + margin) :][: len(delayed), k]
    return delayed


def undelay(delayed: Codes, margin: int = MARGIN_FRAMES) -> Codes:
    """Undo :func:`delay`: (F, K) -> (T, K)."""
    num_delayed, num_codebooks = delayed.shape
    num_frames = num_delayed - num_delayed_frames(0, num_codebooks, margin)
    starts = range(margin, margin + num_codebooks)
    return np.stack([delayed[s : s + num_frames, k] for k, s in enumerate(starts)], axis=1)


def target_labels(
    recordings: Sequence[Codes],
    stream_eos: int,
    is_target: Sequence[bool] | None = None,
    margin: int = MARGIN_FRAMES,
    num_eos: int = 1,
) -> Codes:
    """Return the labels of the frames that :func:`delay` makes of some recordings.

    In a target, every code and the first EOS of each codebook are labels, of Higgs TTS 3 every
    EOS; they teach generation to stop. Without a margin the last codebook has none. BOS, every
    later EOS and all other recordings are ``IGNORED``. The label of a frame is the frame itself:
    the loss predicts it from the position before.

    Args:
        recordings: (T, K) each, at least one.
        stream_eos: The code after a stream.
        is_target: True for each recording that is a target; by default all are.
        margin: As for :func:`delay`.
        num_eos: The most EOS of a codebook that are labels.

    Returns:
        (sum of F, K).
    """
    is_after = _is_after(recordings[0].shape[1], margin)
    is_after[num_eos:] = False
    labels = _delayed(recordings, np.where(is_after, stream_eos, IGNORED), margin)
    end = 0
    for codes, learned in zip(recordings, is_target or [True] * len(recordings), strict=True):
        start, end = end, end + num_delayed_frames(len(codes), codes.shape[1], margin)
        if not learned:
            labels[start:end] = IGNORED
    return labels
