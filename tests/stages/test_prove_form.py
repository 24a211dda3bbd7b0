"""The bounds and comparisons in the proof of a full checkpoint, calculated by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from higgs_pipe import prove_form
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import form_weights
from higgs_pipe.prove_form import _check_logits, _check_loss, _check_speech, _distance
from higgs_pipe.training.form_results import FirstSecond

FOLDER = Path("merged")


def test_the_logit_distance_is_that_of_the_worst_head() -> None:
    """Heads that are 3 from [0, 4], and equal."""
    found = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0]])]
    adapters = [torch.tensor([0.0, 4.0]), torch.tensor([[1.0, 1.0]])]
    assert _distance(found, adapters) == 3 / 4


@pytest.mark.parametrize(
    ("difference", "is_refused"), [(0.009, False), (0.011, True), (0.11, True), (math.nan, True)]
)
def test_logits_may_differ_by_no_more_than_rounding_or_the_adapter_explains(
    difference: float, is_refused: bool
) -> None:
    """The rounding bound is 0.1 and the adapter change 0.01, and vice versa."""
    for bound, change in ((0.1, 0.01), (0.01, 0.1)):
        if is_refused:
            with pytest.raises(UserError, match="logits differ"):
                _check_logits(FOLDER, difference, bound, change)
        else:
            _check_logits(FOLDER, difference, bound, change)


@pytest.mark.parametrize(
    ("loss", "is_refused"),
    [(5.004, False), (4.996, False), (5.006, True), (4.994, True), (math.nan, True)],
)
def test_rounding_may_move_the_loss_by_a_thousandth_at_most(loss: float, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(UserError, match="the held-out loss is"):
            _check_loss(FOLDER, loss, 5.0)
    else:
        _check_loss(FOLDER, loss, 5.0)


def second(sample_id: str, margin: float | None) -> FirstSecond:
    return FirstSecond(
        sample_id=sample_id,
        num_frames=25,
        num_equal_frames=7,
        margin=margin,
        largest_margin_of_a_tie=0.5,
    )


def test_codes_may_differ_only_at_ties() -> None:
    _check_speech(FOLDER, [second("equal", None), second("tied", 0.5)])
    with pytest.raises(UserError, match=r"prompts of\n *apart\nrun"):
        _check_speech(FOLDER, [second("tied", 0.5), second("apart", 0.51)])


def test_the_first_differing_frame_is_compared_by_the_logits_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frame 1 differs in codebook 1, by 4 in place of 9, or in codebook 0, by 8 in place of 3."""
    logits = torch.arange(20.0).reshape(2, 10)
    asked: list[Any] = []

    def look(model: Any, sample: Any, codes: Any) -> torch.Tensor:
        asked.append((model, sample, codes.tolist()))
        return logits

    monkeypatch.setattr(prove_form, "next_logits", look)
    sample: Any = SimpleNamespace(sample_id="a")
    model: Any = "the checkpoint"
    reference = np.array([[1, 2], [3, 9], [0, 6]])
    for found, margin in (
        (np.array([[1, 2], [3, 4], [5, 6], [7, 8]]), 5),
        (np.array([[1, 2], [8, 9], [0, 6]]), 5),
    ):
        compared = prove_form._first_second(sample, model, found, reference, tie=0.25)
        assert asked.pop() == (model, sample, [[1, 2]])
        assert vars(compared) == {
            **{"sample_id": "a", "num_frames": 3, "num_equal_frames": 1},
            **{"margin": margin, "largest_margin_of_a_tie": 0.25},
        }
    equal = prove_form._first_second(sample, model, reference[:2], reference, tie=0.25)
    assert (equal.num_frames, equal.num_equal_frames, equal.margin) == (2, 2, None)
    assert asked == []


def test_weights_are_compared_to_within_the_rounding_of_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest is -100: an error of 0.0005 is float32 rounding, and one of 0.002 is not."""
    monkeypatch.setattr(form_weights, "CHUNK", 2)
    expected = torch.tensor([[-100.0, 1.0, 2.0, 3.0]])
    for error, share in ((0.0005, 0), (-0.002, 0.25), (math.nan, 0.25)):
        found = expected.clone()
        found[0, 1] += error
        assert form_weights._share_of_others(found, expected) == share
    assert form_weights._share_of_others(expected.T, expected) == 1
