"""Cross-entropy of a head, in chunks whose logits fit a memory budget."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from higgs_pipe.higgs.codes import IGNORED


class HeadLoss(NamedTuple):
    """Losses of a head's labels (M, K); the text head has K = 1."""

    loss: Tensor  # (M, K) nats, 0 where there is no label
    prediction: Tensor | None  # (M, K) the most likely entries, where asked for
    weighted: Tensor | None  # () the weighted sum of the losses; where given, it has the gradient


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
