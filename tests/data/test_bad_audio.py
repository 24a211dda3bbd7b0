"""Recordings of every format and defect: the measure stage gives measures or a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from helpers import recordings_of, write_stage_config

from higgs_pipe import measure
from higgs_pipe.data.audio import AudioError, read_header
from higgs_pipe.data.quality import AudioMeasures
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import MEASURED, RECORDINGS
from higgs_pipe.data.tables import read_table, write_table

NOBODY = 65534
RATE = 24_000

Row = dict[str, Any]


def speech(rate: int = RATE, seconds: float = 2.0) -> npt.NDArray[np.float64]:
    """Bursts of a tone and its overtones in a little noise."""
    times = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 200 * k * times) / k for k in range(1, 9))
    noise = np.random.default_rng(0).standard_normal(len(times))
    return 0.2 * tone * (np.sin(2 * np.pi * 2 * times) > 0) + 0.0005 * noise


def measured(folder: Path, *segments: tuple[str, float | None, float | None]) -> list[Row]:
    """The stage's rows for these segments."""
    rows = recordings_of(Span(*segment) for segment in segments)
    write_table(folder / "recordings.parquet", RECORDINGS, rows)
    config = write_stage_config(folder / "measure.json")
    measure.run(config, folder / "recordings.parquet", folder / "measured.parquet")
    found: list[Row] = read_table(folder / "measured.parquet", MEASURED).to_pylist()
    return found


def measured_file(path: Path) -> Row:
    [row] = measured(path.parent, (str(path), None, None))
    return row


# --- Accepted: every legal encoding ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_24"),
        ("a.wav", "PCM_32"),
        ("a.wav", "FLOAT"),
        ("a.wav", "DOUBLE"),
        ("a.flac", "PCM_24"),
        ("a.aiff", "PCM_16"),
    ],
)
def test_every_encoding_gives_the_measures_of_16_bit_pcm(
    tmp_path: Path, name: str, subtype: str
) -> None:
    sf.write(tmp_path / "16.wav", speech(), RATE, subtype="PCM_16")
    sf.write(tmp_path / name, speech(), RATE, subtype=subtype)
    expected, found = measured_file(tmp_path / "16.wav"), measured_file(tmp_path / name)
    assert (expected["encoding"], expected["reason"]) == ("WAV PCM_16", None)
    assert found["encoding"].endswith(subtype)
    for measure_name in AudioMeasures.__dataclass_fields__:
        assert found[measure_name] == pytest.approx(expected[measure_name], rel=0.01, abs=2**-15)


def test_8_bit_audio_gives_nearly_the_measures_of_16_bit(tmp_path: Path) -> None:
    for name, subtype in (("8.wav", "PCM_U8"), ("16.wav", "PCM_16")):
        sf.write(tmp_path / name, speech(), RATE, subtype=subtype)
    found, expected = measured_file(tmp_path / "8.wav"), measured_file(tmp_path / "16.wav")
    for measure_name in ("peak", "dc_offset"):
        assert found[measure_name] == pytest.approx(expected[measure_name], abs=2**-7)
    assert found["rms_dbfs"] == pytest.approx(expected["rms_dbfs"], abs=0.1)


@pytest.mark.parametrize("rate", [8000, 192_000])
@pytest.mark.parametrize("num_channels", [1, 8])
def test_any_sample_rate_and_channel_count_is_measured(
    tmp_path: Path, rate: int, num_channels: int
) -> None:
    samples = np.repeat(speech(rate)[:, None], num_channels, axis=1)
    sf.write(tmp_path / "a.wav", samples, rate)
    row = measured_file(tmp_path / "a.wav")
    assert (row["reason"], row["num_channels"], row["sample_rate_hz"]) == (None, num_channels, rate)
    assert (row["duration_seconds"], row["bandwidth_hz"]) == (2.0, pytest.approx(1600, abs=60))


def test_a_path_with_parent_folder_parts_is_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    sf.write(tmp_path / "a.wav", speech(), RATE)
    assert measured_file(tmp_path / "sub" / ".." / "a.wav")["reason"] is None


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_segment_has_the_same_measures_alone_and_with_others(tmp_path: Path, name: str) -> None:
    sf.write(tmp_path / name, speech(seconds=4), RATE)
    segments = [(str(tmp_path / name), k / 2, (k + 1) / 2) for k in range(8)]
    together = measured(tmp_path, *segments)
    assert together == [measured(tmp_path, segment)[0] for segment in segments]
    assert [row["reason"] for row in together] == [None] * 8


# --- Rejected -------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_a_truncated_file_is_unreadable(tmp_path: Path, name: str) -> None:
    sf.write(tmp_path / name, speech(), RATE)
    cut(tmp_path / name)
    row = measured_file(tmp_path / name)
    assert (row["reason"], row["peak"], row["audio_sha256"]) == ("audio_unreadable", None, None)
    assert str(tmp_path / name) in row["fact"]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (
            b"<!DOCTYPE html><html><body>Not found</body></html>",
            "it begins with b'<!DOCTYPE html><'",
        ),
        (b"", "is empty (0 bytes)"),
        (b"RIFF\x24\0\0\0WAVE", "it begins with b'RIFF"),
    ],
)
def test_a_file_that_is_not_audio_is_unreadable(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    row = measured_file(tmp_path / "a.wav")
    assert row["reason"] == "audio_unreadable"
    assert fact in row["fact"]


def test_a_recording_without_samples_is_unreadable(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(0), RATE)
    row = measured_file(tmp_path / "a.wav")
    assert (row["reason"], row["duration_seconds"]) == ("audio_unreadable", None)
    assert str(tmp_path / "a.wav") in row["fact"]


@pytest.mark.parametrize(
    ("value", "reason", "fact"),
    [
        (np.nan, "audio_non_finite", " 1 samples "),
        (-np.inf, "audio_non_finite", " 1 samples "),
        (-8000.0, "audio_out_of_range", " 8,000 times full scale"),
        (101.0, "audio_out_of_range", " 101 times full scale"),
        (1e38, "audio_out_of_range", " 1e+38 times full scale"),
    ],
)
def test_non_finite_and_extreme_samples_are_rejected(
    tmp_path: Path, value: float, reason: str, fact: str
) -> None:
    samples = speech()
    samples[7] = value
    sf.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    row = measured_file(tmp_path / "a.wav")
    assert row["reason"] == reason
    assert fact in row["fact"]


def test_samples_above_full_scale_are_accepted_and_count_as_clipped(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", 4 * speech(), RATE, subtype="FLOAT")
    row = measured_file(tmp_path / "a.wav")
    assert (row["reason"], row["peak"] > 1) == (None, True)
    assert row["clipping_fraction"] > 0.01


def test_folders_and_pipes_named_like_recordings_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")  # reading it would wait for ever
    for name in ("x.wav", "pipe.wav"):
        row = measured_file(tmp_path / name)
        assert (row["reason"], row["fact"]) == (
            "audio_unreadable",
            f"{tmp_path / name} is not a file",
        )


def test_a_file_without_read_permission_is_unreadable(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", speech(), RATE)
    (tmp_path / "a.wav").chmod(0)
    user = os.geteuid()
    if user == 0:  # whom no permission stops
        os.seteuid(NOBODY)
    try:
        with pytest.raises(AudioError, match=r"a\.wav cannot be read \(Permission denied\)$"):
            read_header(tmp_path / "a.wav")
    finally:
        os.seteuid(user)


def test_a_segment_shorter_than_a_sample_is_rejected(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", speech(), RATE)
    [row] = measured(tmp_path, (str(tmp_path / "a.wav"), 1.0, 1.000001))
    assert row["reason"] == "segment_outside"
    assert "24,000 Hz" in row["fact"]


def test_a_rejected_recording_has_no_measures(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    row = measured_file(tmp_path / "a.wav")
    assert row["reason"] == "silent"
    assert {row[name] for name in AudioMeasures.__dataclass_fields__} == {None}


@pytest.mark.parametrize(("peak", "reason"), [(0.9e-4, "silent"), (1.1e-4, None)])
def test_a_recording_is_silent_below_a_ten_thousandth_of_full_scale(
    tmp_path: Path, peak: float, reason: str | None
) -> None:
    samples = speech()
    sf.write(tmp_path / "a.wav", peak * samples / np.abs(samples).max(), RATE, "FLOAT")
    assert measured_file(tmp_path / "a.wav")["reason"] == reason
