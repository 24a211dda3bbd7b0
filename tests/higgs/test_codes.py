from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import audio_labels, delayed_frames
from transformers import HiggsAudioV2Processor

from higgs_pipe.higgs.codes import IGNORED, delay, num_delayed_frames, target_labels, undelay

BOS, EOS = 1024, 1025


@st.composite
def code_matrices(draw: st.DrawFn) -> np.ndarray:
    num_frames, num_codebooks = draw(st.integers(1, 30)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1024, (num_frames, num_codebooks)).astype(np.int16)


def test_the_delay_of_two_frames_of_three_codebooks_matches_a_hand_example() -> None:
    delayed = delay([np.array([[1, 11, 21], [2, 12, 22]], np.int16)], BOS, EOS)
    assert delayed.T.tolist() == [
        [BOS, 1, 2, EOS, EOS, EOS],
        [BOS, BOS, 11, 12, EOS, EOS],
        [BOS, BOS, BOS, 21, 22, EOS],
    ]


def test_labels_of_two_frames_of_three_codebooks_match_a_hand_example() -> None:
    assert target_labels([np.array([[1, 11, 21], [2, 12, 22]], np.int16)], EOS).T.tolist() == [
        [IGNORED, 1, 2, EOS, IGNORED, IGNORED],
        [IGNORED, IGNORED, 11, 12, EOS, IGNORED],
        [IGNORED, IGNORED, IGNORED, 21, 22, EOS],
    ]


@given(code_matrices())
def test_undelay_inverts_delay(codes: np.ndarray) -> None:
    assert np.array_equal(undelay(delay([codes], BOS, EOS)), codes)


@given(code_matrices())
def test_delay_and_labels_match_plain_loops(codes: np.ndarray) -> None:
    delayed = delay([codes], BOS, EOS)
    assert len(delayed) == num_delayed_frames(*codes.shape)
    assert delayed.tolist() == delayed_frames(codes.tolist(), BOS, EOS)
    assert target_labels([codes], EOS).tolist() == audio_labels(codes.tolist(), BOS, EOS)


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1))
def test_several_recordings_at_once_give_the_same_as_each_alone(
    num_codebooks: Any, described: Any
) -> None:
    rng = np.random.default_rng(0)
    recordings = [
        rng.integers(0, 1024, (num_frames, num_codebooks)).astype(np.int16)
        for num_frames, _ in described
    ]
    delayed = delay(recordings, BOS, EOS)
    labels = target_labels(recordings, EOS, [is_target for _, is_target in described])
    assert delayed.tolist() == [
        frame for codes in recordings for frame in delayed_frames(codes.tolist(), BOS, EOS)
    ]
    nothing = [[IGNORED] * num_codebooks]
    assert labels.tolist() == [
        label
        for codes, (_, is_target) in zip(recordings, described, strict=True)
        for label in (
            audio_labels(codes.tolist(), BOS, EOS)
            if is_target
            else nothing * num_delayed_frames(*codes.shape)
        )
    ]


@given(code_matrices())
def test_exactly_one_eos_per_codebook_is_a_label(codes: np.ndarray) -> None:
    labels = target_labels([codes], EOS)
    assert (labels == EOS).sum(axis=0).tolist() == [1] * codes.shape[1]
    assert not (labels == BOS).any()


@pytest.mark.parametrize("num_frames", [1, 7, 40])
def test_delay_matches_the_native_processor(num_frames: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (num_frames, 8)).astype(np.int16)
    stream = np.pad(codes.T, ((0, 0), (1, 1)))
    stream[:, 0], stream[:, -1] = BOS, EOS

    class Ids:
        audio_stream_bos_id, audio_stream_eos_id = BOS, EOS

    native = HiggsAudioV2Processor.build_delay_pattern(Ids, torch.from_numpy(stream)[None].long())
    assert delay([codes], BOS, EOS).T.tolist() == native[0].tolist()
