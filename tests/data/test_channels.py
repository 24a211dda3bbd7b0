"""Several channels are mixed to one signal, the same for measuring and encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from helpers import run_validation, write_stage_config

from higgs_pipe import tokenize_audio
from higgs_pipe.data import channels
from higgs_pipe.data.channels import channel_to_take, loss_of_mean_db, separate_share, to_mono
from higgs_pipe.higgs.v2 import miniature

RATE = 24_000


def speech(seed: int, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """Noise in syllables, on the 16-bit grid."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    sound = 0.05 * rng.standard_normal(len(times)) * (np.sin(2 * np.pi * 3 * times) > -0.5)
    return (np.rint(sound * 32768) / 32768).astype(np.float32)


A, B = speech(1), speech(2)


@pytest.mark.parametrize(
    ("sounds", "taken", "loss_db"),
    [
        ([A], None, 0),
        ([A, A], None, 0),
        ([A, B], None, 3),
        ([A, 0 * A], None, 3),
        ([A, *[0 * A] * 7], None, 9),
        ([A, -0.5 * A], None, 10),
        ([A, -A], 0, np.inf),
        ([-0.9 * A, A], 1, 26),
        ([A, 0.05 - A], 0, np.inf),  # an offset is no sound
        ([A, B - A, -B], 1, np.inf),
        ([0 * A, 0 * A], None, 0),
        ([A, 0.9 * np.concatenate([A[:16_000], -A[16_000:]])], 0, 1.7),  # turned in the last third
    ],
)
def test_the_loudest_channel_is_used_if_the_mean_is_far_quieter(
    sounds: list[npt.NDArray[np.float32]], taken: int | None, loss_db: float
) -> None:
    samples = np.stack(sounds, axis=1).astype(np.float32)
    assert min(loss_of_mean_db(samples), 60) == pytest.approx(min(loss_db, 60), abs=0.5)
    assert channel_to_take(samples) == taken
    expected = samples.mean(axis=1) if taken is None else samples[:, taken]
    assert np.array_equal(to_mono(samples, taken)[:, 0], expected)


TURN = np.arange(len(speech(1, 6.0))) // RATE % 2  # a second each, six blocks but those between


@pytest.mark.parametrize(
    ("gains", "share"),
    [
        ([(1.0, 0.0), (0.0, 1.0)], 0.43),  # a voice in each channel
        ([(1.0, 0.2), (0.2, 1.0)], 0.41),  # each is heard a little by the other's microphone
        ([(1.0, 0.0), (0.0, 0.5)], 0.18),  # one of them at half the level
        ([(1.0, 0.5), (0.5, 1.0)], 0.0),  # two voices in a stereo picture
        ([(1.0, 0.1), (1.0, 0.1)], 0.0),  # both on the left
        ([(1.0, 0.0)] * 2, 0.0),
        ([(1.0,), (1.0,)], 0.0),
        ([(1.0, 0.9, 0.0), (0.9, 1.0, 0.0)], 0.0),  # a third channel that is silent
        ([(1.0, 0.1, 0.0), (0.1, 1.0, 0.0)], 0.43),
    ],
)
def test_channels_that_alternate_count_as_separate(
    monkeypatch: pytest.MonkeyPatch, gains: list[tuple[float, ...]], share: float
) -> None:
    """All blocks at once, or a few at a time."""
    samples = speech(1, 6.0)[:, None] * np.array(gains)[TURN]  # (num_samples, num_channels)
    for num_blocks in (256, 8):
        monkeypatch.setattr(channels, "NUM_BLOCKS_AT_ONCE", num_blocks)
        assert separate_share(samples.astype(np.float32)) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("num_blocks_at_once", [256, 3])
def test_blocks_that_cancel_are_counted_by_their_power(
    monkeypatch: pytest.MonkeyPatch, num_blocks_at_once: int
) -> None:
    """Four of ten blocks, of which one is twice as loud: 7 / 13 of the power."""
    monkeypatch.setattr(channels, "NUM_BLOCKS_AT_ONCE", num_blocks_at_once)
    block = np.random.default_rng(0).standard_normal(4096, np.float32)
    left = np.concatenate([block * (2 if n == 2 else 1) for n in range(10)])
    right = left.copy()
    right[2 * 4096 : 6 * 4096] *= -1
    found = channels.lost_share(np.stack([left, right], axis=1))
    assert found == pytest.approx(7 / 13, rel=1e-6)


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    """Six recordings: one with inverted polarity, its louder channel, and four others."""
    sf.write(tmp_path / "turned.wav", np.stack([-0.75 * A, A], axis=1), RATE)
    sf.write(tmp_path / "louder.wav", A, RATE)
    for n in range(4):
        sf.write(tmp_path / f"{n}.wav", np.stack([speech(10 + n), speech(20 + n)], axis=1), RATE)
    names = ["turned", "louder", *map(str, range(4))]
    rows = [{"id": name, "audio": f"{name}.wav", "text": f"The {name} one."} for name in names]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def judged(folder: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Clips and rejected rows by id, and validation.json."""
    data = run_validation(
        folder,
        manifest=str(folder / "m.jsonl"),
        data={"num_shards": 1},
        validate={"max_rejected_fraction": 0.5, **settings},
    )
    clips, rejected = (
        {row["clip_id"]: row for row in pq.read_table(data / name).to_pylist()}
        for name in ("clips.parquet", "rejected.parquet")
    )
    return clips, rejected, json.loads((data / "validation.json").read_text())


def test_cancelling_channels_are_measured_and_encoded_by_the_louder_one(
    stereo: Path, tiny_base: Path
) -> None:
    clips, rejected, summary = judged(stereo)
    assert rejected == {}
    assert {name: clip["channel"] for name, clip in clips.items() if clip["channel"]} == {
        "turned": 1
    }
    assert summary["num_clips_of_one_channel"] == 1
    for measure in ("rms_dbfs", "snr_db", "bandwidth_hz", "silence_fraction"):
        assert clips["turned"][measure] == clips["louder"][measure]
    mean = sf.read(stereo / "0.wav")[0].mean(axis=1)
    expected = 10 * np.log10(np.mean(mean**2))
    assert clips["0"]["rms_dbfs"] == pytest.approx(expected, abs=1e-3)
    config = write_stage_config(stereo / "t.json", codec=str(tiny_base / miniature.AUDIO_TOKENIZER))
    tokenize_audio.run(config, stereo / "data/shards/shard-00000.parquet", stereo / "codes.parquet")
    rows = pq.read_table(stereo / "codes.parquet").to_pylist()
    codes = {row["clip_id"]: row["codes"] for row in rows}
    assert codes["turned"] == codes["louder"]


def test_clips_with_a_voice_per_channel_are_counted(stereo: Path) -> None:
    assert judged(stereo)[2]["num_clips_of_separate_channels"] == 0
    turns = np.concatenate([np.stack([A, 0 * A], axis=1), np.stack([0 * A, B], axis=1)])
    sf.write(stereo / "0.wav", turns, RATE)
    clips, _, summary = judged(stereo)
    assert summary["num_clips_of_separate_channels"] == 1
    assert clips["0"]["separate_share"] == pytest.approx(0.43, abs=0.08)


def test_cancelling_channels_are_rejected_if_so_configured(stereo: Path) -> None:
    clips, rejected, summary = judged(stereo, cancelling_channels="reject")
    assert {name: row["reason"] for name, row in rejected.items()} == {"turned": "channels_cancel"}
    assert " 17 dB " in rejected["turned"]["message"]
    assert len(clips) == 5
    assert summary["num_clips_of_one_channel"] == 0


def test_a_late_polarity_flip_in_a_long_recording_is_found() -> None:
    """In 44 of 300 blocks of 4096 samples: more than a tenth."""
    left = np.random.default_rng(0).standard_normal(300 * 4096, np.float32) / 20
    right = left.copy()
    right[256 * 4096 :] *= -1
    assert channel_to_take(np.stack([left, left], axis=1)) is None
    assert channel_to_take(np.stack([left, right], axis=1)) is not None
