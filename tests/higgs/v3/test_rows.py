"""Rows and labels of Higgs TTS 3 against plain loops, and by hand."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reference_v3 import BOC, EOC, IGNORED, delayed_rows, row_labels

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.codes import delay, num_delayed_frames, target_labels, undelay
from higgs_pipe.higgs.renderers import renderer_of


@st.composite
def recordings(draw: st.DrawFn) -> list[Any]:
    num_codebooks = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    return [rng.integers(0, 1024, (n, num_codebooks)).astype(np.int16) for n in lengths]


def test_the_delay_of_two_frames_of_three_codebooks_matches_a_hand_example() -> None:
    codes = np.array([[1, 11, 21], [2, 12, 22]], np.int16)
    assert delay([codes], BOC, EOC, 0).T.tolist() == [
        [1, 2, EOC, EOC],
        [BOC, 11, 12, EOC],
        [BOC, BOC, 21, 22],
    ]
    assert target_labels([codes], EOC, margin=0, num_eos=3).T.tolist() == [
        [1, 2, EOC, EOC],
        [IGNORED, 11, 12, EOC],
        [IGNORED, IGNORED, 21, 22],
    ]


@given(recordings())
def test_rows_and_labels_match_plain_loops(codes: list[Any]) -> None:
    delayed, labels = delay(codes, BOC, EOC, 0), target_labels(codes, EOC, margin=0, num_eos=8)
    assert delayed.tolist() == [row for c in codes for row in delayed_rows(c.tolist())]
    assert labels.tolist() == [row for c in codes for row in row_labels(c.tolist())]
    assert len(delayed) == sum(num_delayed_frames(len(c), c.shape[1], 0) for c in codes)


@given(recordings())
def test_undelay_inverts_delay(codes: list[Any]) -> None:
    assert np.array_equal(undelay(delay(codes[:1], BOC, EOC, 0), 0), codes[0])


def test_a_target_has_28_eos_labels_and_a_reference_none() -> None:
    codes = [np.ones((n, 8), np.int16) for n in (3, 5)]
    labels = target_labels(codes, EOC, [False, True], margin=0, num_eos=8)
    assert (labels == EOC).sum(axis=0).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert (labels[: 3 + 7] == IGNORED).all()


def test_the_model_shape_gives_the_number_of_eos_labels_per_target(
    v3_base: Path, tiny_base: Path
) -> None:
    v3, v2 = (renderer_of(Pretrained("base_model", str(b))).shape for b in (v3_base, tiny_base))
    assert (v3.num_end_frames, v3.num_first_stop_labels, v3.num_stop_labels) == (7, 7, 28)
    assert (v2.num_end_frames, v2.num_first_stop_labels, v2.num_stop_labels) == (8, 1, 8)
