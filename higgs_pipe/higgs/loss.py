"""The dual loss: next-position cross-entropy over text and over each codebook.

With sums and counts over every label of an optimizer step, on all processes and in all
micro-batches, and one division at the end::

    loss = text_sum / text_count + mean over k of (audio_sum_k / audio_count_k)

Nats per label. Nothing here averages averages.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from higgs_pipe.config import LossWeights
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.codes import IGNORED

PLAIN = LossWeights()


@dataclass(frozen=True)
class LossSums:
    """Sums over labels, one row a sample: each (N, 2 + K), or (2 + K,) after :meth:`total`.

    The columns are text, codebook 0 … K - 1, and stop: the stream EOS labels of all codebooks,
    which the codebooks' columns contain too.
    """

    loss: Tensor  # nats
    count: Tensor  # labels
    correct: Tensor  # labels whose most likely prediction is right

    def total(self) -> Self:
        """Summed over the samples."""
        return type(self)(self.loss.sum(0), self.count.sum(0), self.correct.sum(0))

    def detach(self) -> Self:
        """Without the graph."""
        return type(self)(self.loss.detach(), self.count, self.correct)


@dataclass(frozen=True)
class Predictions:
    """The most likely next token of each label, for the log."""

    text: Tensor  # (L,)
    text_logits_shape: tuple[int, ...]
    audio: Tensor  # (M, K)
    audio_logits_shape: tuple[int, ...]


def loss_sums(
    text_logits: Tensor, audio_logits: Tensor, batch: PackedBatch
) -> tuple[LossSums, Predictions]:
    """Sum the losses of a batch, sample by sample.

    Args:
        text_logits: (L, vocabulary) at ``batch.text_predictors``.
        audio_logits: (M, K, V) at ``batch.audio_predictors``.
        batch: The labels.
    """
    text_loss = cross_entropy(_at_least_float32(text_logits), batch.text_labels, reduction="none")
    audio_loss = cross_entropy(
        _at_least_float32(audio_logits).flatten(0, 1),
        batch.audio_labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(batch.audio_labels)  # (M, K), 0 where there is no label
    text_prediction = text_logits.argmax(-1)
    audio_prediction = audio_logits.argmax(-1)

    has_label = batch.audio_labels != IGNORED
    is_stop = batch.audio_labels == batch.stream_eos
    audio_correct = (audio_prediction == batch.audio_labels) & has_label
    text_correct = text_prediction == batch.text_labels

    def by_sample(text: Tensor, audio: Tensor) -> Tensor:
        """Sum (L,) and (M, K) over each sample's labels: (N, 2 + K)."""
        text, audio = text.to(text_loss.dtype), audio.to(text_loss.dtype)
        stop = (audio * is_stop).sum(-1, keepdim=True)
        num_samples, num_codebooks = len(batch.sample_ids), audio.shape[1]
        sums = text.new_zeros(num_samples, 1).index_add(0, batch.text_sample, text[:, None])
        audio_sums = text.new_zeros(num_samples, num_codebooks + 1).index_add(
            0, batch.audio_sample, torch.cat([audio, stop], dim=1)
        )
        return torch.cat([sums, audio_sums], dim=1)

    sums = LossSums(
        loss=by_sample(text_loss, audio_loss),
        count=by_sample(torch.ones_like(text_loss), has_label),
        correct=by_sample(text_correct, audio_correct),
    )
    predictions = Predictions(
        text_prediction, tuple(text_logits.shape), audio_prediction, tuple(audio_logits.shape)
    )
    return sums, predictions


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def objective(loss: Tensor, count: Tensor, weights: LossWeights = PLAIN) -> Tensor:
    """The dual loss from sums and counts, each (…, 2 + K).

    With T the mean of the text labels, A_k that of codebook k, E that of the stream EOS labels::

        weights.text * T + weights.audio * sum of c_k A_k / sum of c_k + weights.eos * E

    Plainly weighted: text mean + mean of the codebooks' means.
    """
    means = loss / count
    codebooks = means[..., 1:-1]
    if weights.codebooks is None:
        audio = codebooks.mean(-1)
    else:
        shares = codebooks.new_tensor(weights.codebooks)
        audio = (codebooks * shares).sum(-1) / shares.sum()
    return weights.text * means[..., 0] + weights.audio * audio + weights.eos * means[..., -1]


def named_losses(sums: LossSums, prefix: str = "") -> dict[str, float]:
    """The metrics of one total: ``loss``, ``audio_loss_codebook_0`` and so on.

    Args:
        sums: A :meth:`LossSums.total`: (2 + K,) each; every count is positive.
        prefix: Put before each name.
    """
    loss, count = sums.loss.double().cpu(), sums.count.double().cpu()
    means = (loss / count).tolist()
    names = {
        "loss": objective(loss, count).item(),
        "text_loss": means[0],
        "audio_loss": (loss / count)[1:-1].mean().item(),
        "stop_loss": means[-1],
    }
    names |= {f"audio_loss_codebook_{k}": mean for k, mean in enumerate(means[1:-1])}
    return {prefix + name: value for name, value in names.items()}


def named_accuracies(sums: LossSums, prefix: str = "") -> dict[str, float]:
    """The shares of right predictions, named as :func:`named_losses` names the losses."""
    shares = (sums.correct.double() / sums.count.double()).tolist()
    names = {"text_accuracy": shares[0]}
    names |= {f"audio_accuracy_codebook_{k}": share for k, share in enumerate(shares[1:-1])}
    return {prefix + name: value for name, value in names.items()}
