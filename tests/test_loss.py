import math

import pytest
import torch

from higgs_pipe.config import LossWeights
from higgs_pipe.higgs.loss import LossSums, named_accuracies, named_losses, objective

# Two samples, two codebooks, by hand: columns text, codebook 0, codebook 1, stop.
SUMS = LossSums(
    loss=torch.tensor([[6.0, 8.0, 2.0, 1.0], [3.0, 1.0, 7.0, 2.0]]),
    count=torch.tensor([[3.0, 4.0, 4.0, 2.0], [3.0, 2.0, 2.0, 2.0]]),
    correct=torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 1.0]]),
)


def test_the_loss_divides_sums_by_counts_once_as_worked_by_hand():
    losses = named_losses(SUMS.total(), prefix="eval_")
    assert losses["eval_text_loss"] == pytest.approx(9 / 6)
    assert losses["eval_audio_loss_codebook_0"] == pytest.approx(9 / 6)
    assert losses["eval_audio_loss_codebook_1"] == pytest.approx(9 / 6)
    assert losses["eval_audio_loss"] == pytest.approx(1.5)
    assert losses["eval_stop_loss"] == pytest.approx(3 / 4)
    assert losses["eval_loss"] == pytest.approx(1.5 + 1.5)


def test_the_objective_of_parts_adds_up_to_the_objective_of_the_whole():
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
def test_weights_enter_the_objective_as_worked_by_hand(weights, expected):
    total = SUMS.total()
    loss, count = total.loss, total.count
    if "codebooks" in weights:  # the codebooks of the first sample differ
        loss, count = SUMS.loss[0], SUMS.count[0]
    assert objective(loss, count, LossWeights(**weights)).item() == pytest.approx(expected)


def test_accuracies_are_shares_of_the_labels():
    accuracies = named_accuracies(SUMS.total())
    assert accuracies == {
        "text_accuracy": 0.5,
        "audio_accuracy_codebook_0": 0.5,
        "audio_accuracy_codebook_1": 0.0,
    }
