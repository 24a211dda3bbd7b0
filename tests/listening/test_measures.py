"""Measures of generated speech, calculated by hand."""

import numpy as np
import pytest

from higgs_pipe.listening.measures import (
    code_distance,
    code_histogram,
    measure_speech,
    repeated_frame_share,
)

RATE_HZ = 1000  # 20 samples a frame


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    """A square wave: its level is that of every frame."""
    return np.where(np.arange(round(seconds * RATE_HZ)) % 2, level, -level).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def test_silence_is_counted_in_frames_of_20_ms() -> None:
    samples = np.concatenate([tone(0.4), silence(0.2), tone(0.2), silence(0.1), tone(0.1)])
    found = measure_speech(samples, RATE_HZ)
    assert found.duration_seconds == pytest.approx(1)
    assert found.silence_share == pytest.approx(0.3)
    assert found.longest_silence_seconds == pytest.approx(0.2)
    assert found.repeated_frame_share is None
    with_half = np.concatenate([tone(0.4), silence(0.13), tone(0.47)])  # 6.5 frames
    found = measure_speech(with_half, RATE_HZ)
    assert (found.silence_share, found.longest_silence_seconds) == pytest.approx((0.12, 0.12))


def test_a_silent_waveform_is_all_silence() -> None:
    found = measure_speech(silence(1), RATE_HZ)
    assert found.silence_share == 1
    assert found.longest_silence_seconds == pytest.approx(1)


def test_sound_below_minus_60_dbfs_is_silence() -> None:
    assert measure_speech(tone(1, 0.0009), RATE_HZ).silence_share == 1  # -60.9 dBFS
    assert measure_speech(tone(1, 0.0011), RATE_HZ).silence_share == 0


def test_noise_40_db_below_the_speech_is_silence() -> None:
    samples = np.concatenate([tone(0.8, 0.5), tone(0.2, 0.0049)])
    assert measure_speech(samples, RATE_HZ).silence_share == pytest.approx(0.2)
    samples = np.concatenate([tone(0.8, 0.5), tone(0.2, 0.0051)])
    assert measure_speech(samples, RATE_HZ).silence_share == 0


def test_faint_noise_around_a_single_word_is_silence() -> None:
    samples = np.concatenate([tone(0.1, 0.5), tone(0.9, 0.003)])  # -50 dBFS
    assert measure_speech(samples, RATE_HZ).silence_share == pytest.approx(0.9)


def test_a_click_does_not_turn_soft_speech_into_silence() -> None:
    """The 95th percentile is set by the speech, 30 dB above its soft parts, not by the click."""
    samples = np.concatenate([tone(0.8, 0.1), tone(0.16, 0.1 / 10**1.5), tone(0.04, 1.0)])
    assert measure_speech(samples, RATE_HZ).silence_share == 0


def test_empty_audio_is_all_silence_of_zero_length() -> None:
    found = measure_speech(silence(0), RATE_HZ, np.zeros((0, 8), np.int16))
    assert (found.duration_seconds, found.silence_share) == (0, 1)
    assert (found.longest_silence_seconds, found.repeated_frame_share) == (0, 0)


def test_a_frame_is_a_repeat_only_if_all_codebooks_match() -> None:
    codes = np.array([[1, 2], [1, 2], [1, 3], [1, 3], [1, 3]], np.int16)
    assert repeated_frame_share(codes) == pytest.approx(3 / 4)
    assert [repeated_frame_share(codes[:n]) for n in (1, 2)] == [0, 1]


def test_code_histograms_are_per_codebook() -> None:
    codes = np.array([[0, 2], [0, 1], [2, 2]], np.int16)
    assert code_histogram(codes, 4).tolist() == [[2, 0, 1, 0], [0, 1, 2, 0]]


def test_the_code_distance_is_0_for_equal_and_1_for_disjoint_distributions() -> None:
    first = np.array([[2.0, 2, 0, 0]])
    assert code_distance(first, first * 7) == pytest.approx(0)
    assert code_distance(first, first[:, ::-1]) == pytest.approx(1)


def test_the_code_distance_matches_the_jensen_shannon_formula() -> None:
    """P = (1, 0), Q = (1/2, 1/2), M = (3/4, 1/4); two codebooks, the other one equal."""
    first = np.array([[1.0, 0], [1, 1]])
    second = np.array([[1.0, 1], [1, 1]])
    of_p = np.log2(4 / 3)
    of_q = 0.5 * np.log2((1 / 2) / (3 / 4)) + 0.5 * np.log2((1 / 2) / (1 / 4))
    expected = np.sqrt((of_p + of_q) / 2) / 2
    assert code_distance(first, second) == pytest.approx(expected)
    assert code_distance(np.stack([first, second]), second) == pytest.approx([expected, 0])
