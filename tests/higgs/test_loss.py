import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from higgs_pipe.config.settings import LossWeights
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.head_loss import chunked_loss
from higgs_pipe.higgs.loss import (
    LossSums,
    label_weights,
    named_accuracies,
    named_losses,
    objective,
)

# Two samples, two codebooks, by hand: columns text, codebook 0, codebook 1, stop.
SUMS = LossSums(
    loss=torch.tensor([[6.0, 8.0, 2.0, 1.0], [3.0, 1.0, 7.0, 2.0]]),
    count=torch.tensor([[3.0, 4.0, 4.0, 2.0], [3.0, 2.0, 2.0, 2.0]]),
    correct=torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 1.0]]),
)


def test_the_loss_divides_sums_by_counts_once() -> None:
    losses = named_losses(SUMS.total(), prefix="eval_")
    assert losses["eval_text_loss"] == pytest.approx(9 / 6)
    assert losses["eval_audio_loss_codebook_0"] == pytest.approx(9 / 6)
    assert losses["eval_audio_loss_codebook_1"] == pytest.approx(9 / 6)
    assert losses["eval_audio_loss"] == pytest.approx(1.5)
    assert losses["eval_stop_loss"] == pytest.approx(3 / 4)
    assert losses["eval_loss"] == pytest.approx(1.5 + 1.5)


def test_the_audio_loss_is_the_unweighted_mean_of_codebook_losses() -> None:
    sums = LossSums(torch.tensor([0.0, 9.0, 3.0, 0.0]), torch.tensor([1.0, 9.0, 1.0, 1.0]))
    assert named_losses(sums)["audio_loss"] == 2.0  # of 1 and 3


def test_the_objective_of_parts_adds_up_to_that_of_the_whole() -> None:
    total = SUMS.total()
    parts = [objective(sample, total.count).item() for sample in SUMS.loss]
    assert math.fsum(parts) == pytest.approx(objective(total.loss, total.count).item())


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, 1.5 + 1.5),
        ({"text": 0.5}, 0.75 + 1.5),
        ({"audio": 2.0}, 1.5 + 3.0),
        ({"eos": 0.4}, 1.5 + 1.5 + 0.4 * 0.75),
        # Codebook 0: 8 nats over 4 labels; codebook 1: 2 over 4; three parts to one.
        ({"codebooks": [3.0, 1.0]}, 6 / 3 + (3 * 2.0 + 1 * 0.5) / 4),
        ({"codebooks": [0.0, 2.0], "text": 0}, 0.5),
    ],
)
def test_loss_weights_enter_the_objective_as_calculated_by_hand(
    weights: dict[str, Any], expected: Any
) -> None:
    total = SUMS.total()
    loss, count = total.loss, total.count
    if "codebooks" in weights:  # the codebooks of the first sample differ
        loss, count = SUMS.loss[0], SUMS.count[0]
    assert objective(loss, count, LossWeights(**weights)).item() == pytest.approx(expected)


def test_accuracies_are_fractions_of_the_labels() -> None:
    accuracies = named_accuracies(SUMS.total())
    assert accuracies == {
        "text_accuracy": 0.5,
        "audio_accuracy_codebook_0": 0.5,
        "audio_accuracy_codebook_1": 0.0,
    }


def test_each_named_loss_comes_from_its_own_column() -> None:
    sums = LossSums(
        loss=torch.tensor([1.0, 4.0, 9.0, 32.0]),
        count=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        correct=torch.ones(4),
    )
    assert named_losses(sums) == {
        **{"loss": 3.5, "text_loss": 1.0, "audio_loss": 2.5, "stop_loss": 8.0},
        **{"audio_loss_codebook_0": 2.0, "audio_loss_codebook_1": 3.0},
    }
    assert list(named_accuracies(sums).values()) == pytest.approx([1, 1 / 2, 1 / 3])


def test_label_weights_are_the_gradient_of_the_objective() -> None:
    weights = LossWeights(text=0.5, audio=2, eos=0.1, codebooks=[1, 3])
    loss = torch.tensor([6.0, 8.0, 2.0, 1.0], requires_grad=True)
    count = torch.tensor([3.0, 4.0, 4.0, 2.0])
    (gradient,) = torch.autograd.grad(objective(loss, count, weights), loss)
    assert torch.allclose(label_weights(count, weights), gradient)


NUM_LABELS, HIDDEN_SIZE, NUM_CODEBOOKS, NUM_ENTRIES = 11, 6, 3, 5
ALL_AT_ONCE_MB, TWO_ROWS_MB = 1.0, 2 * 15 * (2 * 8 + 2 * 4) / 1e6


def head_problem(is_trained: bool) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN_SIZE, NUM_CODEBOOKS * NUM_ENTRIES, dtype=torch.float64)
    head.requires_grad_(is_trained)
    hidden = torch.randn(NUM_LABELS, HIDDEN_SIZE, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, NUM_ENTRIES, (NUM_LABELS, NUM_CODEBOOKS))
    labels[::4, 1] = IGNORED
    return head, hidden, labels, torch.rand(NUM_LABELS, NUM_CODEBOOKS, dtype=torch.float64)


def plain_losses(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    log_p = head(hidden).view(NUM_LABELS, NUM_CODEBOOKS, NUM_ENTRIES).log_softmax(-1)
    losses = [
        [-log_p[m, k, label] if label != IGNORED else log_p.new_zeros(()) for k, label in row]
        for m, row in enumerate(map(enumerate, labels.tolist()))
    ]
    return torch.stack([torch.stack(row) for row in losses])


def test_the_weighted_loss_without_gradients_is_the_plain_one() -> None:
    head, hidden, labels, weights = head_problem(is_trained=True)
    expected = (plain_losses(head, hidden, labels) * weights).sum()
    with torch.no_grad():
        found = chunked_loss(head, hidden, labels, NUM_ENTRIES, TWO_ROWS_MB, weights)
    assert found.weighted is not None
    assert torch.allclose(found.weighted, expected)


def test_without_any_label_the_loss_and_its_gradients_are_0() -> None:
    head, *parts = head_problem(is_trained=True)
    hidden, labels, weights = (part[:0] for part in parts)
    found = chunked_loss(head, hidden, labels, NUM_ENTRIES, TWO_ROWS_MB, weights)
    assert found.weighted is not None
    assert (found.loss.shape, found.weighted.item()) == ((0, NUM_CODEBOOKS), 0)
    gradients = torch.autograd.grad(found.weighted, list(head.parameters()))
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("max_logits_mb", [ALL_AT_ONCE_MB, TWO_ROWS_MB])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("is_weighted_ahead", [False, True])
def test_the_chunked_loss_equals_the_plain_loss(
    max_logits_mb: Any, is_trained: bool, is_weighted_ahead: bool
) -> None:
    head, hidden, labels, weights = head_problem(is_trained)
    plain = plain_losses(head, hidden, labels)
    wanted = [hidden, *(head.parameters() if is_trained else [])]
    expected = torch.autograd.grad((plain * weights).sum(), wanted)

    ahead = weights if is_weighted_ahead else None
    found = chunked_loss(head, hidden, labels, NUM_ENTRIES, max_logits_mb, ahead)
    weighted = found.weighted if is_weighted_ahead else (found.loss * weights).sum()
    assert weighted is not None
    assert found.prediction is not None
    gradients = torch.autograd.grad(weighted, wanted)
    twice = chunked_loss(head, hidden, labels, NUM_ENTRIES, max_logits_mb, 2 * weights).weighted
    assert twice is not None
    half = torch.autograd.grad(twice / 2, wanted)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(half, expected, strict=True))
    assert torch.allclose(found.loss, plain, atol=1e-12)
    assert torch.equal(found.prediction, head(hidden).view(11, 3, 5).argmax(-1))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients, expected, strict=True))


class LivePeak(TorchDispatchMode):
    """Return the peak number of bytes held by operator results."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: item for key, item in self.live.items() if not item[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("num_codebooks", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_weighted_ahead", [False, True])
def test_logits_and_their_gradients_stay_within_the_budget(
    dtype: Any, is_weighted_ahead: bool, num_codebooks: int
) -> None:
    budget_mb, num_labels, num_logits = 1.0, 400, 8_000  # 12.8 MB of float32 logits
    num_entries = num_logits // num_codebooks
    head = nn.Linear(4, num_logits, bias=False, dtype=dtype).requires_grad_(False)
    hidden = torch.randn(num_labels, 4, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, num_entries, (num_labels, num_codebooks))
    weights = torch.ones(num_labels, num_codebooks) if is_weighted_ahead else None
    with LivePeak() as memory:
        found = chunked_loss(head, hidden, labels, num_entries, budget_mb, weights, predict=False)
        (found.weighted if is_weighted_ahead else found.loss.sum()).backward()
    assert 0.3e6 < memory.peak < 1.1e6  # beside the logits: hidden states, labels and losses


@pytest.mark.parametrize("is_weighted_ahead", [False, True])
def test_the_loss_of_a_bfloat16_head_is_computed_in_float32(is_weighted_ahead: bool) -> None:
    """Differences of 0.1 nats at logits near 100 vanish where bfloat16 rounds to 0.5."""
    torch.manual_seed(0)
    head = nn.Linear(4, 50, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden = (100 * torch.randn(9, 4)).to(torch.bfloat16).requires_grad_()
    labels = torch.randint(0, 50, (9, 1))
    weights = torch.ones(9, 1) if is_weighted_ahead else None
    found = chunked_loss(head, hidden, labels, 50, ALL_AT_ONCE_MB, weights, predict=False)
    expected = nn.functional.cross_entropy(head(hidden).double(), labels[:, 0], reduction="none")
    assert found.loss.dtype == torch.float32
    assert torch.allclose(found.loss[:, 0].double(), expected, rtol=1e-5, atol=1e-4)
