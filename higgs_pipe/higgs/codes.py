"""The delay pattern: how T frames of K codes become what the language model reads and predicts.

Each codebook's stream is ``[BOS, code 0, …, code T-1, EOS]``; codebook k starts k frames later than
codebook 0. What is before a stream is BOS, what is after it is EOS, so that T frames become
F = T + 2 + (K - 1) (delay pattern of MusicGen, Copet et al. 2023, as Higgs Audio v2 uses it)::

    K = 3, T = 2          frame  0    1    2    3    4    5
    codebook 0                  BOS  a0   a1   EOS  EOS  EOS
    codebook 1                  BOS  BOS  b0   b1   EOS  EOS
    codebook 2                  BOS  BOS  BOS  c0   c1   EOS
"""

import numpy as np
import numpy.typing as npt

IGNORED = -100  # PyTorch's ignore_index: a position without a label

Codes = npt.NDArray[np.int16]


def num_delayed_frames(num_frames: int, num_codebooks: int) -> int:
    """F for T frames of K codebooks."""
    return num_frames + 2 + num_codebooks - 1


def delay(codes: Codes, stream_bos: int, stream_eos: int) -> Codes:
    """Delay codebook k by k frames: (T, K) -> (F, K)."""
    num_frames, num_codebooks = codes.shape
    delayed = np.full(
        (num_delayed_frames(num_frames, num_codebooks), num_codebooks), stream_eos, np.int16
    )
    for k in range(num_codebooks):
        delayed[: k + 1, k] = stream_bos
        delayed[k + 1 : k + 1 + num_frames, k] = codes[:, k]
    return delayed


def undelay(delayed: Codes) -> Codes:
    """Undo :func:`delay`: (F, K) -> (T, K)."""
    num_delayed, num_codebooks = delayed.shape
    num_frames = num_delayed - 2 - (num_codebooks - 1)
    return np.stack([delayed[k + 1 : k + 1 + num_frames, k] for k in range(num_codebooks)], axis=1)


def target_labels(delayed: Codes) -> Codes:
    """The labels of a target's delayed frames: (F, K) -> (F, K).

    Every code and the first EOS of each codebook, which is what makes generation stop; BOS and the
    EOS after the first one are ``IGNORED``. The label of a frame is the frame itself: whoever
    computes the loss predicts it from the position before.
    """
    num_delayed, num_codebooks = delayed.shape
    num_labels = num_delayed - num_codebooks  # T codes and one EOS in each codebook
    labels = np.full_like(delayed, IGNORED)
    for k in range(num_codebooks):
        labels[k + 1 : k + 1 + num_labels, k] = delayed[k + 1 : k + 1 + num_labels, k]
    return labels
