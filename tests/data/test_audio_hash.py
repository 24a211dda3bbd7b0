"""The PCM hash of a recording: equal exactly for equal audio."""

import numpy as np

from higgs_pipe.data.audio import pcm_sha256


def test_the_pcm_hash_depends_on_rate_channels_and_samples() -> None:
    sound = np.array([[0, 1], [2, 3], [4, 5]], np.int16)
    hashes = {
        pcm_sha256(sound, 24_000),
        pcm_sha256(sound, 16_000),
        pcm_sha256(sound.reshape(6, 1), 24_000),
        pcm_sha256(sound[::-1].copy(), 24_000),
        pcm_sha256(sound[:, ::-1].copy(), 24_000),
    }
    assert len(hashes) == 5
    assert pcm_sha256((sound / 32768).astype(np.float32), 24_000) in hashes


def test_the_pcm_hash_rounds_samples_to_16_bits() -> None:
    steps = np.array([[0.6], [1.4], [-0.6], [40_000]], np.float32)
    rounded = np.array([[1], [1], [-1], [32_767]], np.int16)
    assert pcm_sha256(steps / np.float32(32768), 24_000) == pcm_sha256(rounded, 24_000)
