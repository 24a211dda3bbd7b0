"""Files longer or shorter than their header says: read whole or refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf

from higgs_pipe.data.audio import AudioError, decode, read_header
from higgs_pipe.data.audio_formats.mp3 import Mp3Frames
from higgs_pipe.data.audio_formats.repairs import wav_with_length

RATE = 24_000
ID3 = b"ID3\x03\0\0\0\0\x01\x00" + b"\xff\xfb" * 64  # a tag of 128 bytes that look like frames


def noise(seconds: float, quiet_seconds: float = 0.0) -> npt.NDArray[np.float32]:
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE))
    samples[: round(quiet_seconds * RATE)] *= 5e-4
    return samples.astype(np.float32)


def mp3(path: Path, samples: npt.NDArray[np.float32], rate_hz: int = RATE) -> bytes:
    """The bytes of an MP3 of variable bit rate, without a header frame."""
    sf.write(path, samples, rate_hz, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    content = path.read_bytes()
    frames = Mp3Frames(content)
    assert frames.num_header_frames == 1
    return content[frames.places[0][0] :]


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 44_100])
@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("quiet_seconds", [0, 2])
def test_an_mp3_without_a_header_frame_is_read_to_its_end(
    tmp_path: Path, rate_hz: int, num_channels: int, quiet_seconds: float
) -> None:
    samples = np.stack([noise(6, quiet_seconds)] * num_channels, axis=1)
    content = mp3(tmp_path / "a.mp3", samples, rate_hz)
    seconds = len(samples) / rate_hz
    (tmp_path / "b.mp3").write_bytes(content)
    guess = sf.info(tmp_path / "b.mp3").frames / rate_hz
    found = decode(tmp_path / "b.mp3")
    assert found.duration_seconds == pytest.approx(seconds, abs=0.1)
    assert read_header(tmp_path / "b.mp3").duration_seconds == found.duration_seconds
    if quiet_seconds or (rate_hz, num_channels) == (24_000, 1):
        assert abs(guess - seconds) > 0.5  # what libsndfile alone would read
    # The same sound as with its header frame, apart from the encoder's delay.
    expected = decode(tmp_path / "a.mp3").samples[:, 0]
    spectra = [np.abs(np.fft.rfft(sound[-rate_hz:])) for sound in (found.samples[:, 0], expected)]
    assert np.std(found.samples) == pytest.approx(np.std(expected), rel=0.02)
    assert np.corrcoef(spectra[0], spectra[1])[0, 1] > 0.5


def test_a_tag_in_the_middle_of_an_mp3_does_not_truncate_it(tmp_path: Path) -> None:
    content = mp3(tmp_path / "a.mp3", noise(6))
    place = Mp3Frames(content).places[100][0]
    (tmp_path / "b.mp3").write_bytes(content[:place] + ID3 + content[place:])
    assert decode(tmp_path / "b.mp3").duration_seconds == pytest.approx(6, abs=0.1)


def test_concatenated_mp3_files_are_refused(tmp_path: Path) -> None:
    mp3(tmp_path / "a.mp3", noise(3))
    content = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(content + ID3 + content)
    with pytest.raises(AudioError, match=r"b\.mp3 .* 72,000 .* 1\d\d,\d{3}$"):
        read_header(tmp_path / "b.mp3")


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.opus", "OPUS")]
)
def test_concatenated_streams_are_refused(tmp_path: Path, name: str, subtype: str) -> None:
    container = "FLAC" if name == "a.flac" else "OGG"
    sf.write(tmp_path / name, noise(2), RATE, format=container, subtype=subtype)
    content = (tmp_path / name).read_bytes()
    assert decode(tmp_path / name).duration_seconds == pytest.approx(2, abs=0.01)
    (tmp_path / name).write_bytes(content + content)
    with pytest.raises(AudioError, match=f"{name} holds several"):
        read_header(tmp_path / name)


@pytest.mark.parametrize("declared", [24_000, 100_000, 141_000])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_flac_longer_than_declared_is_refused(
    tmp_path: Path, declared: int, num_channels: int
) -> None:
    samples = np.stack([noise(6)] * num_channels, axis=1)
    sf.write(tmp_path / "a.flac", samples, RATE, subtype="PCM_16")
    content = bytearray((tmp_path / "a.flac").read_bytes())
    assert decode(tmp_path / "a.flac").samples.shape[0] == 144_000
    content[22:26] = struct.pack(">I", declared)  # the low bits of STREAMINFO's total
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(AudioError, match=rf"a\.flac declares {declared:,} samples"):
        read_header(tmp_path / "a.flac")


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_valid_flac_of_any_length_is_read_whole(
    tmp_path: Path, rate_hz: int, subtype: str
) -> None:
    for num_samples in (1, 4_096, 8_192, 40_960, 700_001):
        samples = np.random.default_rng(num_samples).uniform(-0.5, 0.5, num_samples)
        sf.write(tmp_path / "a.flac", samples, rate_hz, subtype=subtype)
        assert read_header(tmp_path / "a.flac").num_samples == num_samples


@pytest.mark.parametrize("num_zeros", [100, 5000, 300_000])
@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.wav", "a.mp3"])
def test_zeros_after_the_audio_are_ignored(tmp_path: Path, name: str, num_zeros: int) -> None:
    sf.write(tmp_path / name, noise(2), RATE)
    expected = decode(tmp_path / name).samples
    with (tmp_path / name).open("ab") as stream:
        stream.write(bytes(num_zeros))
    assert np.array_equal(decode(tmp_path / name).samples, expected)


def wav(path: Path, data_size: int, behind: bytes = b"", endian: str = "FILE") -> None:
    """A WAV of one second that declares another number of bytes."""
    sf.write(path, noise(1), RATE, subtype="PCM_16", endian=endian)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack(">I" if endian == "BIG" else "<I", data_size)
    path.write_bytes(content + behind)


@pytest.mark.parametrize("data_size", [0, 0xFFFFFFFF, 0x7FFFFFFF - 36, 0xFFFFFFFF - 36])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_a_wav_of_unknown_size_is_read_to_its_end(
    tmp_path: Path, data_size: int, endian: str
) -> None:
    wav(tmp_path / "a.wav", data_size, endian=endian)
    assert decode(tmp_path / "a.wav").duration_seconds == 1


def test_the_name_of_the_audio_chunk_at_an_odd_place_is_another_chunks_content(
    tmp_path: Path,
) -> None:
    for before, is_filled_in in ((b"", True), (b"x", False)):
        content = b"RIFF\0\0\0\0WAVE" + before + b"data\0\0\0\0" + noise(1).tobytes()
        (tmp_path / "a.wav").write_bytes(content)
        assert (wav_with_length(tmp_path / "a.wav") is not None) == is_filled_in


def test_a_compressed_wav_of_unknown_size_is_read_to_its_end(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1), RATE, subtype="ULAW")
    content = (tmp_path / "a.wav").read_bytes()
    expected = decode(tmp_path / "a.wav").samples
    size = b"data" + struct.pack("<I", 24_000)
    assert content.count(size) == 1
    (tmp_path / "a.wav").write_bytes(content.replace(size, b"data\0\0\0\0"))
    assert np.array_equal(decode(tmp_path / "a.wav").samples, expected)


def test_a_big_endian_wav_with_a_trailing_chunk_is_read_whole(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1), RATE, subtype="PCM_16", endian="BIG")
    content = (tmp_path / "a.wav").read_bytes()
    assert content.startswith(b"RIFX")
    expected = decode(tmp_path / "a.wav").samples
    chunk = b"LIST" + struct.pack(">I", 3000) + b"\x01" * 3000
    (tmp_path / "a.wav").write_bytes(content + chunk)
    assert len(expected) == RATE
    assert np.array_equal(decode(tmp_path / "a.wav").samples, expected)


@pytest.mark.parametrize("data_size", [2, 24_000, 40_000])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_a_wav_longer_than_declared_is_refused(tmp_path: Path, data_size: int, endian: str) -> None:
    wav(tmp_path / "a.wav", data_size, endian=endian)
    with pytest.raises(AudioError, match=rf"a\.wav .* {data_size:,} .* {48_000 - data_size:,} "):
        read_header(tmp_path / "a.wav")


@pytest.mark.parametrize(("num_behind", "is_refused"), [(90, False), (110, True)])
def test_a_tenth_of_a_short_recording_may_lie_behind_it(
    tmp_path: Path, num_behind: int, is_refused: bool
) -> None:
    sf.write(tmp_path / "a.wav", noise(1)[:500], RATE, subtype="PCM_16")  # 1,000 bytes
    with (tmp_path / "a.wav").open("ab") as stream:
        stream.write(b"\xff" * num_behind)
    if is_refused:
        with pytest.raises(AudioError, match=rf"declares 1,000 .* {num_behind} are behind"):
            read_header(tmp_path / "a.wav")
    else:
        assert read_header(tmp_path / "a.wav").num_samples == 500


def test_audio_behind_zeros_behind_the_declared_audio_is_found(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 48_000, bytes(2**20) + noise(1).tobytes())
    with pytest.raises(AudioError, match=rf"a\.wav .* {2**20 + 96_000:,} are behind"):
        read_header(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("name", "place", "endian"),
    [("a.aiff", None, "BIG"), ("a.au", 8, "BIG"), ("a.au", 8, "LITTLE")],
)
def test_aiff_and_au_files_longer_than_declared_are_refused(
    tmp_path: Path, name: str, place: int | None, endian: str
) -> None:
    sf.write(tmp_path / name, noise(1), RATE, subtype="PCM_16", endian=endian)
    assert decode(tmp_path / name).duration_seconds == 1
    content = bytearray((tmp_path / name).read_bytes())
    place = content.index(b"SSND") + 4 if place is None else place
    content[place : place + 4] = struct.pack(">I" if endian == "BIG" else "<I", 24_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=rf"{name} .* 24,000 "):
        read_header(tmp_path / name)


@pytest.mark.parametrize(
    "behind",
    [
        b"LIST" + struct.pack("<I", 3000) + bytes(range(256)) * 12,
        b"ID3\x03\0\0\0\0\x10\x00" + b"\x01" * 3000,
        b"TAG" + b"\x01" * 125,
    ],
    ids=["chunk", "ID3v2", "ID3v1"],
)
def test_a_wav_may_end_with_a_chunk_or_a_tag(tmp_path: Path, behind: bytes) -> None:
    wav(tmp_path / "a.wav", 48_000, behind)
    assert decode(tmp_path / "a.wav").duration_seconds == 1


def test_a_wav_with_a_leading_tag_and_a_trailing_chunk_is_read_whole(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 48_000, b"LIST" + struct.pack("<I", 6000) + bytes(range(250)) * 24)
    tag = b"ID3\x03\0\0\0\0\0\x10" + bytes(16)
    (tmp_path / "a.wav").write_bytes(tag + (tmp_path / "a.wav").read_bytes())
    assert decode(tmp_path / "a.wav").duration_seconds == 1


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_a_chunk_after_audio_of_odd_length_is_recognised(tmp_path: Path, padding: bytes) -> None:
    """Some writers leave the padding out."""
    sf.write(tmp_path / "a.wav", noise(0.5)[:11_999], RATE, subtype="PCM_U8")
    content = (tmp_path / "a.wav").read_bytes()
    unpadded = content[: 44 + 11_999]
    chunk = b"LIST" + struct.pack("<I", 3000) + b"\x01" * 3000
    (tmp_path / "a.wav").write_bytes(unpadded + padding + chunk)
    assert len(decode(tmp_path / "a.wav").samples) == 11_999
