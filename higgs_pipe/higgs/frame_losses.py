"""Losses of single frames of the targets, and the probability of the stream's end at each.

A target of T codec frames has T + K rows of labels, or T + K - 1 if the last codebook has no
EOS: codebook k's code t is in row t + k, its stream EOS in row T + k.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.loss import LossSums, loss_sums
from higgs_pipe.higgs.model import DualLossModel

NUM_PARTS = 3  # of a target: its start, middle and end

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FrameLosses:
    """Losses of a sample: its sums, and the loss by position in its first target."""

    sums: LossSums  # (2 + K,) over the whole sample
    part_loss: Array  # (NUM_PARTS, K) nats, stream EOS left out
    part_count: Array  # (NUM_PARTS, K) labels
    stop_at_end: float  # probability of codebook 0's stream EOS at the true end
    stop_before_end: float  # probability of one in any frame before it


class _Target(NamedTuple):
    """The rows of a sample's first target."""

    rows: slice
    num_frames: int  # T


def frame_losses(model: DualLossModel, batch: PackedBatch) -> Iterator[FrameLosses]:
    """Yield the losses of each sample of a batch in one forward pass.

    Args:
        model: In evaluation mode.
        batch: On the model's device.
    """
    hidden = model.backbone(batch)
    text, audio = model.text_loss(hidden, batch.text), model.audio_loss(hidden, batch.audio)
    stops = torch.full_like(batch.audio.values, IGNORED)
    stops[:, 0] = batch.stream_eos
    stop = model.audio_loss(hidden, batch.audio._replace(values=stops), predict=False)
    labels, losses, stop_losses = (
        _array(part) for part in (batch.audio.values, audio.loss, stop.loss[:, 0])
    )
    samples = _array(batch.audio.samples)
    for number, sums in enumerate(loss_sums(text, audio, batch).samples()):
        (rows,) = np.nonzero(samples == number)
        target = _first_target(labels, rows, batch.stream_eos, model.shape.num_end_frames)
        part_loss, part_count = _by_part(labels[target.rows], losses[target.rows], target)
        stop_probability = np.exp(-stop_losses[target.rows][: target.num_frames + 1])
        yield FrameLosses(
            sums=sums,
            part_loss=part_loss,
            part_count=part_count,
            stop_at_end=float(stop_probability[-1]),
            # In logarithms: a product of many numbers just below 1.
            stop_before_end=float(-np.expm1(np.log1p(-stop_probability[:-1]).sum())),
        )


def _array(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.double().cpu().numpy()


def _first_target(
    labels: Array, rows: npt.NDArray[np.intp], stream_eos: int, num_end_frames: int
) -> _Target:
    num_frames = int(np.flatnonzero(labels[rows, 0] == stream_eos)[0])
    start = int(rows[0])
    return _Target(slice(start, start + num_frames + num_end_frames), num_frames)


def _by_part(labels: Array, losses: Array, target: _Target) -> tuple[Array, Array]:
    """Sum the losses of a target's codes by part."""
    num_codebooks = labels.shape[1]
    part_loss, part_count = (np.zeros((NUM_PARTS, num_codebooks)) for _ in range(2))
    for codebook in range(num_codebooks):
        rows = slice(codebook, codebook + target.num_frames)
        parts = NUM_PARTS * np.arange(target.num_frames) // target.num_frames
        is_label = labels[rows, codebook] != IGNORED
        np.add.at(part_loss[:, codebook], parts, losses[rows, codebook] * is_label)
        np.add.at(part_count[:, codebook], parts, is_label)
    return part_loss, part_count
