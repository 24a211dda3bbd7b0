"""Pre-flight checks of the objective: the frame that each loss predicts, and the base's ability."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from higgs_pipe.higgs.batch import PackedBatch, PackedRow, collate
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.training.preflight.data_checks import (
    REPACK,
    Check,
    audio_turns,
    verdict,
    with_text_of,
)
from higgs_pipe.training.preflight.model_checks import seen_in_forward

MARGIN_STANDARD_ERRORS = 5.0
"""Labels of a clip are not independent, so their standard error is too small; hence not 2 or 3."""

Floats = npt.NDArray[np.float64]


@torch.no_grad()
def audio_losses_by_offset(native: Any, hidden: Tensor, batch: PackedBatch) -> Floats:
    """Compute each audio label's loss at three offsets: (3, M, K) nats, NaN without a label.

    A label at position q is predicted from position q - offset. Generation uses offset 1; at 0 the
    model sees the code that it should predict. A loss of NaN becomes infinite here.

    Args:
        native: The native model; its audio head is applied.
        hidden: (S, H) of the backbone.
        batch: Its labels.
    """
    head = family_of_model(native).parts_of(native).audio_head
    labelled, labels = batch.audio.predictors + 1, batch.audio.values
    has_label = (labels != IGNORED).cpu().numpy()
    losses = np.full((3, *has_label.shape), np.nan)
    for offset in range(3):
        logits = head(hidden.index_select(0, labelled - offset))
        nats = cross_entropy(
            logits.unflatten(-1, (labels.shape[1], -1)).flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        ).view_as(labels)
        nats = nats.double().masked_fill(nats.isnan(), math.inf)
        losses[offset][has_label] = nats.cpu().numpy()[has_label]
    return losses


def repeated_codes(batch: PackedBatch) -> Floats:
    """Mark labels whose next code is the same: (M, K) of 1, 0, or NaN without a next one."""
    labels, position = batch.audio.values.cpu().numpy(), batch.audio.predictors.cpu().numpy()
    is_next = np.diff(position) == 1  # (M - 1,); between two clips there is text
    both = (labels[:-1] != IGNORED) & (labels[1:] != IGNORED) & is_next[:, None]
    repeated = np.full(labels.shape, np.nan)
    repeated[:-1][both] = (labels[:-1] == labels[1:])[both]
    return repeated


def check_training_loss(losses: Floats, sums: LossSums) -> Check:
    """Check that training lowers the loss at the offset of generation, codebook by codebook.

    Args:
        losses: The result of :func:`audio_losses_by_offset`.
        sums: The loss sums of the model on the same batch.
    """
    expected = means_of_codebooks(losses[1])
    trained = (sums.loss / sums.count)[1:-1].tolist()
    different = [
        f"codebook {k}: {b:.4f} nats, the next frame's is {a:.4f}"
        for k, (a, b) in enumerate(zip(expected, trained, strict=True))
        if abs(a - b) > 0.01 * a  # bfloat16 rounds; a step of one frame is far more
    ]
    return verdict(
        "training loss",
        different,
        "asks for the frame after each position",
        "Training would not learn to predict the next frame. This is a bug in higgs_pipe/higgs/; "
        "please report it.",
    )


def check_offsets(
    losses: Floats, repeated: Floats, codebook_size: int, start: str = "base"
) -> Check:
    """Check that the base predicts the next frame better than this one or the one after next.

    A base no better than a blind guess (ln V) at any offset gives no evidence. A low loss at
    offset 0 may only mean that codes repeat; it counts only if the base predicts a frame's own code
    more often than codes repeat.

    Args:
        losses: (3, M, K) of :func:`audio_losses_by_offset`.
        repeated: (M, K) of :func:`repeated_codes`.
        codebook_size: V.
        start: What training starts from: the base, or an earlier adapter on it.
    """
    if np.isinf(losses).any():
        return Check("audio offset", "no evidence", f"the {start}'s audio loss is not finite")
    right, wrong = [], []
    for k in range(losses.shape[2]):
        at = losses[:, :, k]
        means = [float(np.nanmean(at[offset])) for offset in range(3)]
        if not any(_is_above(math.log(codebook_size) - at[offset], 0) for offset in range(3)):
            continue
        beyond_repeats = np.exp(-at[0]) - repeated[:, k]
        if _is_above(at[1] - at[2], 0):
            wrong.append(f"codebook {k}: {means[2]:.3f} at offset 2, {means[1]:.3f} at 1")
        elif _is_above(at[1] - at[0], 0) and _is_above(beyond_repeats, 0):
            wrong.append(f"codebook {k}: {means[0]:.3f} at offset 0, {means[1]:.3f} at 1")
        elif _is_above(at[0] - at[1], 0) and _is_above(at[2] - at[1], 0):
            right.append(k)
    if wrong:
        return Check(
            "audio offset",
            "failed",
            f"the {start} does not predict the next frame best ({'; '.join(wrong)}; nats per "
            "label): codes or labels are shifted, or `codec` is not the base model's, or the base "
            "itself was trained on labels that were not shifted. Check `codec` and `base_model`; "
            + REPACK,
        )
    if len(right) == losses.shape[2]:
        return Check("audio offset", "passed", f"the {start} predicts the next frame best")
    agreeing = f"codebooks {', '.join(map(str, right))} agree; in the others " if right else ""
    return Check(
        "audio offset",
        "no evidence",
        f"{agreeing}the {start}'s loss on held-out codes is no better than a blind guess (ln V = "
        f"{math.log(codebook_size):.2f} nats), or the same at offsets 0, 1 and 2. This is normal "
        "for a base with random weights; for a trained one, check `codec`.",
    )


def _is_above(values: Floats, bound: float) -> bool:
    """Return whether the mean exceeds the bound by the margin; NaN is left out."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return False
    standard_error = values.std(ddof=1) / math.sqrt(len(values))
    return bool(values.mean() - MARGIN_STANDARD_ERRORS * standard_error > bound)


def check_shuffled_text(
    model: DualLossModel,
    samples: Sequence[PackedRow],
    losses: Floats,
    device: torch.device,
    start: str = "base",
) -> Check:
    """Compare the base's audio loss with the right text and with another sample's; never fails.

    Samples with equally many audio turns exchange the texts of all their turns.

    Args:
        model: In evaluation mode.
        samples: One per row.
        losses: (3, M, K) of :func:`audio_losses_by_offset` on the samples.
        device: The device of the model.
        start: What training starts from: the base, or an earlier adapter on it.
    """
    config = model.shape
    by_turns: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        by_turns[len(audio_turns(sample, config))].append(i)
    donor = {
        i: others[(n + 1) % len(others)]
        for others in by_turns.values()
        if len(others) > 1
        for n, i in enumerate(others)
    }
    if not donor:
        return Check("shuffled text", "no evidence", "no two held-out samples can exchange texts")
    shuffled = [with_text_of(samples[i], samples[donor[i]], config) for i in sorted(donor)]
    batch = collate(shuffled, config).to(device)
    other = audio_losses_by_offset(model.native, seen_in_forward(model, batch).hidden, batch)[1]
    num_labels = [(sample.audio_labels != IGNORED).any(axis=1).sum() for sample in samples]
    own = losses[1][np.isin(np.repeat(np.arange(len(samples)), num_labels), sorted(donor))]
    if np.isinf(own).any() or np.isinf(other).any():
        return Check("shuffled text", "no evidence", f"the {start}'s audio loss is not finite")
    found = (
        f"the {start}'s audio loss is {np.nanmean(own):.3f} with a sample's own text and "
        f"{np.nanmean(other):.3f} with another's, nats per label"
    )
    knows = _is_above(math.log(config.codebook_size) - own, 0)
    if knows and _is_above(other - own, 0):
        return Check("shuffled text", "passed", found + ": it reads the text")
    if knows and _is_above(own - other, 0):
        found += ". Are the transcripts those of their clips?"
    return Check("shuffled text", "no evidence", found)


def means_of_codebooks(losses: Floats) -> list[float]:
    """Average each codebook, in nats per label: (M, K) -> K."""
    return [float(np.nanmean(codebook)) for codebook in losses.T]
