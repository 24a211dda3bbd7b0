"""Audio reading: all formats give the same samples, and every broken file an error message."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf

from higgs_pipe.data.audio import (
    AudioError,
    AudioMissingError,
    Header,
    SegmentOutsideError,
    decode,
    pcm_sha256,
    read_header,
)

Samples = npt.NDArray[np.float32]


def noise(num_samples: int = 96_000, num_channels: int = 1, seed: int = 0) -> Samples:
    """Noise on the 16-bit grid, so that lossless formats give it back exactly."""
    steps = np.random.default_rng(seed).integers(-9000, 9000, (num_samples, num_channels))
    return (steps / 32768).astype(np.float32)


def cut(path: Path, share: float) -> Path:
    """The file's beginning, under another name."""
    content = path.read_bytes()
    shorter = path.with_name(f"cut{path.suffix}")
    shorter.write_bytes(content[: int(len(content) * share)])
    return shorter


def declare_num_bytes(path: Path, num_bytes: int) -> None:
    """Overwrite the data chunk's length in the 44-byte header of a plain WAV."""
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[40:44] = struct.pack("<I", num_bytes)
    path.write_bytes(content)


def test_samples_are_float32_with_shape_samples_by_channels(tmp_path: Path) -> None:
    written = np.array([[0.5, -0.25], [0.125, 0.0], [-1.0, 0.75]], dtype=np.float32)
    sf.write(tmp_path / "a.wav", written, 8000, subtype="PCM_16")
    audio = decode(tmp_path / "a.wav")
    assert audio.samples.dtype == np.float32
    assert audio.samples.tolist() == written.tolist()
    assert (audio.sample_rate_hz, audio.duration_seconds) == (8000, 3 / 8000)


def test_the_header_gives_length_rate_and_channels(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", noise(22_050, num_channels=2), 44_100)
    header = read_header(tmp_path / "a.flac")
    assert (header.num_samples, header.sample_rate_hz, header.num_channels) == (22_050, 44_100, 2)
    assert header.duration_seconds == 0.5


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_24"), ("a.aiff", "PCM_16")],
)
@pytest.mark.parametrize("rate", [8000, 22_050, 48_000])
def test_lossless_formats_preserve_the_samples(
    tmp_path: Path, name: str, subtype: str, rate: int
) -> None:
    sf.write(tmp_path / name, noise(), rate, subtype=subtype)
    assert np.array_equal(decode(tmp_path / name).samples, noise())


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "a.opus"])
def test_lossy_formats_preserve_the_length(tmp_path: Path, name: str) -> None:
    container, subtype = ("OGG", "OPUS") if name == "a.opus" else (None, None)
    sf.write(tmp_path / name, noise(), 16_000, format=container, subtype=subtype)
    assert decode(tmp_path / name).duration_seconds == 6.0


def test_audio_with_the_wrong_file_extension_is_read(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", noise(), 16_000)
    (tmp_path / "a.flac").rename(tmp_path / "a.wav")
    assert np.array_equal(decode(tmp_path / "a.wav").samples, noise())


def test_pcm_hash_is_sha256_over_rate_channels_and_int16() -> None:
    samples = np.array([[0.5, -1.0], [2.0, 1.4 / 32768]], dtype=np.float32)
    expected = hashlib.sha256(b"16000 2 " + struct.pack("<4h", 16384, -32768, 32767, 1))
    assert pcm_sha256(samples, 16_000) == expected.hexdigest()


def test_wav_and_flac_of_one_recording_have_the_same_pcm_hash(tmp_path: Path) -> None:
    hashes = set()
    for name, subtype in (("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("b.wav", "FLOAT")):
        sf.write(tmp_path / name, noise(), 16_000, subtype=subtype)
        hashes.add(pcm_sha256(decode(tmp_path / name).samples, 16_000))
    assert len(hashes) == 1


def test_another_sample_rate_or_shape_gives_another_pcm_hash() -> None:
    samples = noise(100)
    hashes = [pcm_sha256(samples, 16_000), pcm_sha256(samples, 8000)]
    hashes += [pcm_sha256(samples.reshape(50, 2), 16_000), pcm_sha256(samples[:-1], 16_000)]
    assert len(set(hashes)) == 4


def test_a_segment_may_end_up_to_10_ms_beyond_the_file() -> None:
    header = Header(24_000, sample_rate_hz=24_000, num_channels=1, encoding="WAV PCM_16")
    assert header.segment(0.29, 0.57) == (6960, 13_680)  # both products are a little less
    assert header.segment(0.5, 1.01) == (12_000, 24_000)
    with pytest.raises(SegmentOutsideError):
        header.segment(0.5, 1.011)


@pytest.mark.parametrize("first", [0, 1, 2, 5])
def test_a_segment_begins_at_the_exact_sample(tmp_path: Path, first: int) -> None:
    written = noise(20)
    sf.write(tmp_path / "a.wav", written, 8000, subtype="PCM_16")
    segment = decode(tmp_path / "a.wav", first / 8000, 10 / 8000)
    assert segment.samples.tolist() == written[first:10].tolist()


@pytest.mark.parametrize("read", [read_header, decode])
@pytest.mark.parametrize("name", ["none.wav", "file/a.wav"])
def test_a_missing_file_has_its_own_reason(
    tmp_path: Path, read: Callable[[Path], object], name: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioMissingError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} does not exist"


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("a.wav", b"", "is empty (0 bytes)"),
        ("a.wav", b"<!DOCTYPE html><html></html>", "begins with b'<!DOCTYPE html><'"),
        ("a.flac", b"version https://git-lfs.github.com", "begins with b'version https://'"),
        ("a.m4a", b"\0\0\0\x1cftypM4A ", "is MPEG-4"),
        ("a.raw", b"\1\2\3\4" * 100, "no header"),
        ("n" * 300 + ".wav", None, "cannot be read (File name too long)"),
    ],
)
def test_the_error_for_a_file_that_is_not_audio_says_what_it_is(
    tmp_path: Path, name: str, content: bytes | None, fact: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError) as caught:
        decode(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert fact in str(caught.value)
    assert not isinstance(caught.value, AudioMissingError)


def test_a_directory_is_not_audio(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="is not a file"):
        decode(tmp_path)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros((0, 1)), 16_000)
    with pytest.raises(AudioError, match=r"a\.wav"):
        read_header(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff", "a.au"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    container, subtype = ("OGG", "OPUS") if name == "a.opus" else (None, None)
    sf.write(tmp_path / name, noise(), 16_000, format=container, subtype=subtype)
    decode(tmp_path / name)
    with pytest.raises(AudioError, match=rf"cut\.{name[2:]} "):
        decode(cut(tmp_path / name, share))


def test_an_ogg_truncated_between_two_pages_is_refused(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.ogg", noise(), 16_000)
    content = (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "cut.ogg").write_bytes(content[: content.rindex(b"OggS")])
    with pytest.raises(AudioError, match=r"cut\.ogg is cut off"):
        read_header(tmp_path / "cut.ogg")


def test_reading_the_header_detects_a_truncated_wav_and_gives_the_numbers(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1000), 16_000, subtype="PCM_16")
    with pytest.raises(AudioError, match=r"cut\.wav .* 2,000 .* 978"):
        read_header(cut(tmp_path / "a.wav", 0.5))


@pytest.mark.parametrize("num_bytes", [0xFFFFFFFF, 0x7FFFF000, 192_004])
def test_a_wav_with_a_placeholder_or_wrong_size_is_read_whole(
    tmp_path: Path, num_bytes: int
) -> None:
    sf.write(tmp_path / "a.wav", noise(), 16_000, subtype="PCM_16")
    declare_num_bytes(tmp_path / "a.wav", num_bytes)
    assert np.array_equal(decode(tmp_path / "a.wav").samples, noise())


def test_a_flac_that_does_not_declare_its_length_is_refused(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", noise(), 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    stream_info = int.from_bytes(content[18:26], "big")
    content[18:26] = (stream_info >> 36 << 36).to_bytes(8, "big")  # the last 36 bits: the length
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.flac"):
        read_header(tmp_path / "a.flac")
