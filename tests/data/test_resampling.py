"""Resampling: equal to torchaudio at common rates, with bounded cost at any other rate."""

import time

import numpy as np
import pytest
import torch
import torchaudio
from memory import forget_peak, held_bytes, peak_bytes

from higgs_pipe.data.resampling import resample

USUAL_RATES_HZ = [8_000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]
ODD_RATES_HZ = [7_919, 16_001, 22_051, 44_101, 47_999, 191_999]


def tone(rate_hz: int, seconds: float = 2.0, pitch_hz: float = 440.0) -> torch.Tensor:
    time_seconds = np.arange(round(rate_hz * seconds)) / rate_hz
    return torch.from_numpy(np.sin(2 * np.pi * pitch_hz * time_seconds).astype(np.float32))


@pytest.mark.parametrize("rate_hz", USUAL_RATES_HZ)
def test_common_rates_match_torchaudio_exactly(rate_hz: int) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, rate_hz).astype(np.float32))
    expected = torchaudio.functional.resample(noise, rate_hz, 24_000)
    assert torch.equal(resample(noise, rate_hz, 24_000), expected)


def test_audio_at_the_target_rate_is_unchanged() -> None:
    assert torch.equal(resample(tone(24_000), 24_000, 24_000), tone(24_000))


@pytest.mark.parametrize("rate_hz", ODD_RATES_HZ)
def test_an_odd_rate_is_resampled_quickly_in_little_memory(rate_hz: int) -> None:
    forget_peak()
    before = held_bytes()
    start = time.process_time()
    found = resample(tone(rate_hz), rate_hz, 24_000)
    assert time.process_time() - start < 1.0
    assert peak_bytes() - before < 50 * 2**20
    assert len(found) == 48_000
    middle = slice(1_000, -1_000)  # the filter rings at both ends
    assert (found - tone(24_000))[middle].abs().max() < 1e-3


@pytest.mark.parametrize("rate_hz", [16_001, 44_101])
def test_the_resampled_length_is_rounded_up(rate_hz: int) -> None:
    for num_samples in (1, 999, 12_345):
        found = resample(torch.zeros(num_samples), rate_hz, 24_000)
        assert len(found) == -(-num_samples * 24_000 // rate_hz)
