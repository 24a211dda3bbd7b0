"""The dual loss: next-position cross-entropy over text and over each codebook.

Sums and counts run over every label of an optimizer step, on all processes and in all
micro-batches; one division ends it::

    loss = text_sum / text_count + mean over k of (audio_sum_k / audio_count_k)

Nats per label. Nothing here averages averages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from higgs_pipe.config.settings import LossWeights
from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.codes import IGNORED

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

    def total(self) -> Self:
        """Add up the samples."""
        correct = None if self.correct is None else self.correct.sum(0)
        return type(self)(self.loss.sum(0), self.count.sum(0), correct, self.objective)

    def samples(self) -> list[Self]:
        """Return the sums of each sample, (2 + K,) float64 on the CPU."""
        parts = [self.loss, self.count, *([] if self.correct is None else [self.correct])]
        rows = zip(*(part.detach().double().cpu() for part in parts), strict=True)
        return [type(self)(*row) for row in rows]


@dataclass(frozen=True)
class Predictions:
    """The most likely next token of each label, for the log."""

    text: Tensor  # (L, 1)
    text_logits_shape: tuple[int, ...]
    audio: Tensor  # (M, K)
    audio_logits_shape: tuple[int, ...]


class HeadLoss(NamedTuple):
    """Losses of a head's labels (M, K); the text head has K = 1."""

    loss: Tensor  # (M, K) nats, 0 where there is no label
    prediction: Tensor | None  # (M, K) the most likely entries, where asked for
    weighted: Tensor | None  # () the weighted sum of the losses; where given, it has the gradient


def loss_sums(text: HeadLoss, audio: HeadLoss, batch: PackedBatch) -> LossSums:
    """Sum the losses of a batch, sample by sample.

    Args:
        text: Of the labels ``batch.text``.
        audio: Of the labels ``batch.audio``.
        batch: The labels.
    """
    labels = batch.audio.values
    has_label, is_stop = labels != IGNORED, labels == batch.stream_eos

    def by_sample(text_values: Tensor, audio_values: Tensor) -> Tensor:
        """Sum (L, 1) and (M, K) over each sample's labels: (N, 2 + K)."""
        dtype = text.loss.dtype
        text_values, audio_values = text_values.to(dtype), audio_values.to(dtype)
        stop = (audio_values * is_stop).sum(-1, keepdim=True)
        num_samples, num_codebooks = len(batch.sample_ids), audio_values.shape[1]
        sums = text_values.new_zeros(num_samples, 1).index_add(0, batch.text.samples, text_values)
        audio_sums = text_values.new_zeros(num_samples, num_codebooks + 1).index_add(
            0, batch.audio.samples, torch.cat([audio_values, stop], dim=1)
        )
        return torch.cat([sums, audio_sums], dim=1)

    correct = objective = None
    if text.prediction is not None and audio.prediction is not None:
        correct = by_sample(
            text.prediction == batch.text.values, (audio.prediction == labels) & has_label
        )
    if text.weighted is not None and audio.weighted is not None:
        objective = text.weighted + audio.weighted
    return LossSums(
        loss=by_sample(text.loss, audio.loss),
        count=by_sample(torch.ones_like(text.loss), has_label),
        correct=correct,
        objective=objective,
    )


def chunked_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    num_entries: int,
    max_logits_mb: float,
    weights: Tensor | None = None,
    predict: bool = True,
) -> HeadLoss:
    """Compute the cross-entropy of a head, in chunks whose logits fit the memory budget.

    With ``weights``, each chunk computes the gradients of the weighted sum in the forward pass and
    frees its logits. Without them the losses themselves have a gradient, and the backward pass
    computes the logits again.

    Args:
        head: From (m, H) to the logits (m, K * V).
        hidden: (M, H).
        labels: (M, K), IGNORED where there is none.
        num_entries: V.
        max_logits_mb: Megabytes (10^6 bytes) for the logits and their gradient.
        weights: (M, K), of each label's loss in ``weighted``.
        predict: Also return the most likely entries.
    """
    num_codebooks = labels.shape[1]
    # A row of logits in the base's dtype, in the dtype of the loss, and its gradient in both.
    bytes_per_row = num_codebooks * num_entries * (2 * hidden.element_size() + 2 * 4)
    size = max(1, int(max_logits_mb * 1e6 / bytes_per_row))
    shape = (num_codebooks, num_entries)
    if weights is not None and torch.is_grad_enabled():
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        weighted, loss, *prediction = _weighted_loss(
            head, shape, size, predict, hidden, labels, weights, *trained
        )
        return HeadLoss(loss, prediction[0] if predict else None, weighted)

    def of_chunk(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(-1, shape)
        loss = cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return loss.view_as(labels), logits.argmax(-1) if predict else None

    chunks = [
        checkpoint(of_chunk, *chunk, use_reentrant=False)
        for chunk in zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
    ]
    loss = torch.cat([chunk[0] for chunk in chunks])
    return HeadLoss(
        loss,
        torch.cat([chunk[1] for chunk in chunks]) if predict else None,
        None if weights is None else (loss * weights).sum(),
    )


class _WeightedLoss(torch.autograd.Function):
    """Weighted sum of a head's losses, with its gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        head: nn.Module,
        shape: tuple[int, int],  # K, V
        size: int,  # rows of a chunk
        predict: bool,
        hidden: Tensor,  # (M, H)
        labels: Tensor,  # (M, K)
        weights: Tensor,  # (M, K)
        *trained: Tensor,  # the head's parameters with a gradient
    ) -> tuple[Tensor, ...]:
        grad_hidden = torch.empty_like(hidden)
        grad_trained = [torch.zeros_like(parameter) for parameter in trained]
        losses: list[Tensor] = []
        predictions: list[Tensor] = []
        for start in range(0, max(len(hidden), 1), size):  # without labels, one empty chunk
            rows = slice(start, start + size)
            loss, prediction, (grad_rows, *grad_parameters) = _loss_and_gradients(
                head, shape, predict, hidden[rows], labels[rows], weights[rows], trained
            )
            losses.append(loss)
            predictions += [] if prediction is None else [prediction]
            grad_hidden[rows] = grad_rows
            for total, part in zip(grad_trained, grad_parameters, strict=True):
                total += part
        loss = torch.cat(losses)  # (M, K)
        ctx.save_for_backward(grad_hidden, *grad_trained)
        found = (loss, torch.cat(predictions)) if predict else (loss,)
        ctx.mark_non_differentiable(*found)
        return (loss * weights).sum(), *found

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> Any:
        grad_hidden, *grad_trained = (
            saved * grad_output.to(saved.dtype) for saved in ctx.saved_tensors
        )
        return None, None, None, None, grad_hidden, None, None, *grad_trained


def _loss_and_gradients(
    head: nn.Module,
    shape: tuple[int, int],
    predict: bool,
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor,
    trained: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Return a chunk's losses and predictions (m, K), and the gradients of hidden and trained.

    The gradient of a label's loss is softmax - 1 at the label, softmax elsewhere.
    """
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        logits = head(hidden)  # (m, K * V)
    loss_dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.detach().to(loss_dtype).unflatten(-1, shape)  # (m, K, V)
    prediction = scores.argmax(-1) if predict else None
    log_p = scores.log_softmax(-1)
    del scores
    label = labels.clamp_min(0)[..., None]
    has_label = labels != IGNORED
    loss = -log_p.gather(-1, label)[..., 0].masked_fill(~has_label, 0)
    grad_logits = log_p.exp_().scatter_add_(-1, label, -torch.ones_like(log_p[..., :1]))
    grad_logits *= (weights * has_label)[..., None]
    grad_logits = grad_logits.flatten(1).to(logits.dtype)
    return loss, prediction, torch.autograd.grad(logits, [hidden, *trained], grad_logits)


_weighted_loss: Any = _WeightedLoss.apply  # untyped in PyTorch


def label_weights(count: Tensor, weights: LossWeights = DEFAULT_WEIGHTS) -> Tensor:
    """Return the weight of a nat of each column in :func:`objective`: (2 + K,) -> (2 + K,)."""
    one_of_each = torch.eye(len(count), dtype=count.dtype, device=count.device)
    return objective(one_of_each, count, weights)


def objective(loss: Tensor, count: Tensor, weights: LossWeights = DEFAULT_WEIGHTS) -> Tensor:
    """Compute the dual loss from sums and counts, each (…, 2 + K).

    With T the mean of the text labels, A_k that of codebook k, E that of the stream EOS labels::

        weights.text * T + weights.audio * sum of c_k A_k / sum of c_k + weights.eos * E

    With default weights: text mean + mean of the codebooks' means.
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
    """Name the metrics of one total: ``loss``, ``audio_loss_codebook_0`` and so on.

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
    """Name the shares of right predictions as :func:`named_losses` names the losses.

    Args:
        sums: A :meth:`LossSums.total` with ``correct``.
        prefix: Put before each name.
    """
    shares = (cast(Tensor, sums.correct).double() / sums.count.double()).tolist()
    names = {"text_accuracy": shares[0]}
    names |= {f"audio_accuracy_codebook_{k}": share for k, share in enumerate(shares[1:-1])}
    return {prefix + name: value for name, value in names.items()}
