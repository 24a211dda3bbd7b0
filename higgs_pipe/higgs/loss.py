"""The dual loss: next-position cross-entropy over text and over each codebook.

Sums and counts run over every label of an optimizer step, on all processes and in all
micro-batches; one division ends it::

    loss = text_sum / text_count + mean over k of (audio_sum_k / audio_count_k)

Losses are in nats per label. Nothing here averages averages.
"""

from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor

from higgs_pipe.config.settings import LossWeights
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.head_loss import HeadLoss

DEFAULT_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class LossSums:
    """Sums over labels, one row per sample: each (N, 2 + K), or (2 + K,) after :meth:`total`.

    The columns are text, codebook 0 … K - 1, and stop: the stream EOS labels of all codebooks,
    which the codebooks' columns contain too.
    """

    loss: Tensor  # nats
    count: Tensor  # labels
    correct: Tensor | None = None  # labels whose most likely prediction is right, where asked for
    objective: Tensor | None = None  # () the weighted sum over all samples, where weights are given
    has_text: bool = True  # False: the family has no text loss, and that column is no result

    def total(self) -> Self:
        """Add up the samples."""
        correct = None if self.correct is None else self.correct.sum(0)
        return replace(self, loss=self.loss.sum(0), count=self.count.sum(0), correct=correct)

    def samples(self) -> list[Self]:
        """Return the sums of each sample, (2 + K,) float64 on the CPU."""
        parts = [self.loss, self.count, *([] if self.correct is None else [self.correct])]
        rows = zip(*(part.detach().double().cpu() for part in parts), strict=True)
        return [
            replace(self, loss=loss, count=count, correct=correct[0] if correct else None)
            for loss, count, *correct in rows
        ]


@dataclass(frozen=True)
class Predictions:
    """The most likely next token of each label, for the log."""

    text: Tensor | None  # (L, 1); None: the family has no text loss
    text_logits_shape: tuple[int, ...]
    audio: Tensor  # (M, K)
    audio_logits_shape: tuple[int, ...]


def loss_sums(text: HeadLoss | None, audio: HeadLoss, batch: PackedBatch) -> LossSums:
    """Sum the losses of a batch, sample by sample.

    Args:
        text: Losses of the labels ``batch.text``; None: the family has no text loss.
        audio: Losses of the labels ``batch.audio``.
        batch: The labels.
    """
    labels = batch.audio.values
    has_label, is_stop = labels != IGNORED, labels == batch.stream_eos
    dtype, num_samples = audio.loss.dtype, len(batch.layout.samples.offsets) - 1

    def by_sample(text_values: Tensor | None, audio_values: Tensor) -> Tensor:
        """Sum (L, 1) and (M, K) over each sample's labels: (N, 2 + K)."""
        audio_values = audio_values.to(dtype)
        stop = (audio_values * is_stop).sum(-1, keepdim=True)
        sums = audio_values.new_zeros(num_samples, 1)
        if text_values is not None:
            sums = sums.index_add(0, batch.text.samples, text_values.to(dtype))
        audio_sums = audio_values.new_zeros(num_samples, audio_values.shape[1] + 1).index_add(
            0, batch.audio.samples, torch.cat([audio_values, stop], dim=1)
        )
        return torch.cat([sums, audio_sums], dim=1)

    correct, objective = None, audio.weighted
    if audio.prediction is not None:
        of_text = None
        if text is not None and text.prediction is not None:
            of_text = text.prediction.eq(batch.text.values)
        correct = by_sample(of_text, (audio.prediction == labels) & has_label)
    if objective is not None and text is not None and text.weighted is not None:
        objective = text.weighted + objective
    return LossSums(
        loss=by_sample(None if text is None else text.loss, audio.loss),
        count=by_sample(None if text is None else batch.text.values != IGNORED, has_label),
        correct=correct,
        objective=objective,
        has_text=text is not None,
    )


def label_weights(
    count: Tensor, weights: LossWeights = DEFAULT_WEIGHTS, has_text: bool = True
) -> Tensor:
    """Return the weight of a nat of each column in :func:`objective`: (2 + K,) -> (2 + K,)."""
    one_of_each = torch.eye(len(count), dtype=count.dtype, device=count.device)
    return objective(one_of_each, count, weights, has_text)


def objective(
    loss: Tensor, count: Tensor, weights: LossWeights = DEFAULT_WEIGHTS, has_text: bool = True
) -> Tensor:
    """Compute the dual loss from sums and counts, each (…, 2 + K).

    With T the mean of the text labels, A_k that of codebook k, E that of the stream EOS labels::

        weights.text * T + weights.audio * sum of c_k A_k / sum of c_k + weights.eos * E

    With default weights: text mean + mean of the codebooks' means. Without a text loss the first
    term and its column are left out.
    """
    means = loss[..., 1:] / count[..., 1:]
    codebooks, stop = means[..., :-1], means[..., -1]
    if weights.codebooks is None:
        audio = codebooks.mean(-1)
    else:
        shares = codebooks.new_tensor(weights.codebooks)
        audio = (codebooks * shares).sum(-1) / shares.sum()
    of_audio = weights.audio * audio + weights.eos * stop
    return weights.text * loss[..., 0] / count[..., 0] + of_audio if has_text else of_audio


def named_losses(sums: LossSums, prefix: str = "") -> dict[str, float]:
    """Name the metrics of one total: ``loss``, ``audio_loss_codebook_0`` and so on.

    Args:
        sums: A :meth:`LossSums.total`: (2 + K,) each; every count of a loss is positive.
        prefix: Put before each name.
    """
    loss, count = sums.loss.double().cpu(), sums.count.double().cpu()
    means = (loss / count).tolist()
    names = {
        "loss": objective(loss, count, has_text=sums.has_text).item(),
        "text_loss": means[0],
        "audio_loss": (loss / count)[1:-1].mean().item(),
        "stop_loss": means[-1],
    }
    if not sums.has_text:
        del names["text_loss"]
    names |= {f"audio_loss_codebook_{k}": mean for k, mean in enumerate(means[1:-1])}
    return {prefix + name: value for name, value in names.items()}


def named_accuracies(sums: LossSums, prefix: str = "") -> dict[str, float]:
    """Name the shares of right predictions as :func:`named_losses` names the losses.

    Args:
        sums: A :meth:`LossSums.total` with ``correct``.
        prefix: Put before each name.
    """
    shares = (cast(Tensor, sums.correct).double() / sums.count.double()).tolist()
    names = {"text_accuracy": shares[0]} if sums.has_text else {}
    names |= {f"audio_accuracy_codebook_{k}": share for k, share in enumerate(shares[1:-1])}
    return {prefix + name: value for name, value in names.items()}
