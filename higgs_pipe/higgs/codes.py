"""The delay pattern: how T frames of K codes become what the language model reads and predicts.

Each codebook's stream is ``[BOS, code 0, …, code T-1, EOS]``; codebook k starts k frames later than
codebook 0. What is before a stream is BOS, what is after it is EOS, so that T frames become
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
    """F for T frames of K codebooks."""
    return num_frames + 2 + num_codebooks - 1


def delay(recordings: Sequence[Codes], stream_bos: int, stream_eos: int) -> Codes:
    """Delay codebook k of each recording by k frames.

    Args:
        recordings: (T, K) each, at least one.
        stream_bos: What stands before a stream.
        stream_eos: What stands after it.

    Returns:
        (sum of F, K), the recordings one after the other.
    """
    num_codebooks = recordings[0].shape[1]
    # Codebook k goes K - k frames up, so that K - k of these are the EOS of the recording before
    # and the others the BOS of the one after.
    frame, codebook = np.ogrid[: num_codebooks + 1, :num_codebooks]
    between = np.where(frame < num_codebooks - codebook, stream_eos, stream_bos).astype(np.int16)
    undelayed = np.concatenate(
        [between, *(part for codes in recordings for part in (codes, between))]
    )
    delayed = np.empty_like(undelayed[num_codebooks + 1 :])
    for k in range(num_codebooks):
        delayed[:, k] = undelayed[num_codebooks - k :][: len(delayed), k]
    return delayed


def undelay(delayed: Codes) -> Codes:
    """Undo :func:`delay`: (F, K) -> (T, K)."""
    num_delayed, num_codebooks = delayed.shape
    num_frames = num_delayed - 2 - (num_codebooks - 1)
    return np.stack([delayed[k + 1 : k + 1 + num_frames, k] for k in range(num_codebooks)], axis=1)


def target_labels(
    delayed: Codes, num_frames: Sequence[int] | None = None, is_target: Sequence[bool] = (True,)
) -> Codes:
    """The labels of delayed frames: (sum of F, K) -> (sum of F, K).

    In a target, every code and the first EOS of each codebook, which is what makes generation stop;
    BOS, the EOS after the first one and all that is no target are ``IGNORED``. The label of a frame
    is the frame itself: whoever computes the loss predicts it from the position before.

    Args:
        delayed: Recordings of :func:`delay`, one after the other.
        num_frames: F of each; one recording if left out.
        is_target: Whether a recording is one.
    """
    lengths = np.asarray([len(delayed)] if num_frames is None else num_frames)
    labels = np.where(np.repeat(is_target, lengths)[:, None], delayed, np.int16(IGNORED))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    num_codebooks = delayed.shape[1]
    for k in range(num_codebooks):
        labels[np.add.outer(starts, np.arange(k + 1)), k] = IGNORED
        labels[np.subtract.outer(ends, np.arange(1, num_codebooks - k)), k] = IGNORED
    return labels
