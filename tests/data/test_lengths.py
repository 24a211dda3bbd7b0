"""Headers and audio that disagree in formats other than WAV: read whole or refused."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from data.test_containers import RATE, noise

from higgs_pipe.data.audio import AudioError, decode, read_header
from higgs_pipe.data.audio_formats.flac import flac_fault
from higgs_pipe.data.audio_formats.mp3 import Mp3Frames, mp3_fault
from higgs_pipe.data.audio_formats.ogg import ogg_checksum, ogg_fault, ogg_pages, opus_with_rate

NUM_BYTES = 2 * RATE  # of a second
CHECKED = {"a.wav": "RF64", "a.w64": "W64", "a.caf": "CAF", "a.sph": "NIST"}


def second(path: Path, container: str | None = None) -> bytes:
    """A second of 16 bits, written to ``path``; its bytes."""
    sf.write(path, noise(1), RATE, subtype="PCM_16", format=container)
    return path.read_bytes()


@pytest.mark.parametrize(("name", "container"), CHECKED.items())
@pytest.mark.parametrize("num_off", [-1500, 1500])
def test_a_file_shorter_or_longer_than_declared_is_refused(
    tmp_path: Path, name: str, container: str, num_off: int
) -> None:
    content = second(tmp_path / name, container)
    assert len(decode(tmp_path / name).samples) == RATE
    audio = noise(1)[:-1].tobytes()  # not a chunk, and not zeros
    (tmp_path / name).write_bytes(content[:num_off] if num_off < 0 else content + audio[:num_off])
    with pytest.raises(AudioError, match=rf"{name} .*(declares|is cut off|damaged)") as caught:
        read_header(tmp_path / name)
    if " bytes of audio and holds " in str(caught.value):
        declared, held = re.findall(r" ([\d,]+)\b", str(caught.value))
        assert int(declared.replace(",", "")) - int(held.replace(",", "")) == 1500


def test_an_rf64_is_whole_if_only_the_chunk_after_its_audio_is_cut_off(tmp_path: Path) -> None:
    """The ds64 chunk has the size of the file before that of the audio."""
    content = second(tmp_path / "a.wav", "RF64")
    size, num_audio_bytes = struct.unpack("<QQ", content[20:36])
    assert (content[12:16], num_audio_bytes) == (b"ds64", NUM_BYTES)
    content = content[:20] + struct.pack("<Q", size + 4008) + content[28:]
    chunk = b"LIST" + struct.pack("<I", 4000) + b"\x01" * 4000
    (tmp_path / "a.wav").write_bytes((content + chunk)[:-3000])
    assert len(decode(tmp_path / "a.wav").samples) == RATE


@pytest.mark.parametrize(
    "container", ["VOC", "IRCAM", "PVF", "PAF", "SVX", "MAT5", "XI", "WVE", "W64"]
)
def test_a_format_that_cannot_show_it_is_complete_is_refused(
    tmp_path: Path, container: str
) -> None:
    subtypes = {"XI": "DPCM_16", "WVE": "ALAW", "W64": "IMA_ADPCM"}
    subtype = subtypes.get(container, "PCM_16")
    sf.write(tmp_path / "a.bin", noise(1), RATE, format=container, subtype=subtype)
    with pytest.raises(AudioError, match=r"a\.bin .* complete; convert it to WAV or FLAC$"):
        read_header(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("ending", "num_channels"), [("f3acd3118cd100c04f8edb8a", 1), ("2d39d21186c700c04f8edb8a", 2)]
)
def test_a_chunk_after_wave64_audio_is_not_decoded_as_audio(
    tmp_path: Path, ending: str, num_channels: int
) -> None:
    samples = np.stack([noise(1)] * num_channels, axis=1)
    sf.write(tmp_path / "a.w64", samples, RATE, subtype="PCM_16", format="W64")
    content = (tmp_path / "a.w64").read_bytes()
    expected = decode(tmp_path / "a.w64").samples
    chunk = b"abcd" + bytes.fromhex(ending) + struct.pack("<q", 24 + 4400) + b"\x55" * 4400
    (tmp_path / "a.w64").write_bytes(content + chunk)
    assert sf.info(tmp_path / "a.w64").frames > RATE + 1000  # what libsndfile alone would read
    assert np.array_equal(decode(tmp_path / "a.w64").samples, expected)
    assert read_header(tmp_path / "a.w64").num_samples == RATE


@pytest.mark.parametrize("name", ["a.w64", "a.sph"])
def test_a_w64_of_unknown_length_is_read_and_a_sphere_file_is_refused(
    tmp_path: Path, name: str
) -> None:
    content = second(tmp_path / name, CHECKED[name])
    if name == "a.w64":  # as a writer to a pipe leaves it: read to its end
        place = content.index(b"data\xf3\xac") + 16
        (tmp_path / name).write_bytes(content[:place] + bytes(8) + content[place + 8 :])
        assert len(decode(tmp_path / name).samples) == RATE
    else:  # without a length, nothing tells whether it is whole
        (tmp_path / name).write_bytes(content.replace(b"sample_count", b"sample_kount"))
        with pytest.raises(AudioError, match=r"a\.sph does not say how long it is$"):
            read_header(tmp_path / name)


@pytest.mark.parametrize(("num_bits", "num_bytes"), [(24, 4), (8, 2), (16, 1)])
def test_a_wav_with_contradictory_format_fields_is_refused(
    tmp_path: Path, num_bits: int, num_bytes: int
) -> None:
    content = bytearray(second(tmp_path / "a.wav"))
    content[28:36] = struct.pack("<IHH", RATE * num_bytes, num_bytes, num_bits)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=rf"contradicts itself: .* {num_bits} bits.* {num_bytes} "):
        read_header(tmp_path / "a.wav")


def test_a_wav_of_20_bits_in_3_bytes_is_read(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", noise(1), RATE, subtype="PCM_24")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    assert struct.unpack("<HH", content[32:36]) == (3, 24)
    content[34:36] = struct.pack("<H", 20)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(decode(tmp_path / "a.wav").samples) == RATE


@pytest.mark.parametrize("field", [slice(28, 32), slice(32, 34)], ids=["byte rate", "block align"])
def test_a_zero_byte_rate_or_block_align_in_a_wav_is_tolerated(
    tmp_path: Path, field: slice
) -> None:
    content = bytearray(second(tmp_path / "a.wav"))
    expected = decode(tmp_path / "a.wav").samples
    content[field] = bytes(field.stop - field.start)
    (tmp_path / "a.wav").write_bytes(content)
    assert np.array_equal(decode(tmp_path / "a.wav").samples, expected)


def without_frame(content: bytes, number: int) -> bytes:
    """A FLAC file without one of its frames, whose numbers below 128 are a byte."""
    first, end = (
        content.index(b"\xff\xf8" + content[content.index(b"\xff\xf8") + 2 :][:2] + bytes([n]))
        for n in (number, number + 1)
    )
    return content[:first] + content[end:]


def test_a_flac_with_a_missing_frame_is_refused(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", noise(6), RATE, subtype="PCM_16")
    content = without_frame((tmp_path / "a.flac").read_bytes(), 20)
    (tmp_path / "a.flac").write_bytes(content)
    samples = sf.read(tmp_path / "a.flac")[0]  # libsndfile alone gives silence
    assert len(samples) == 6 * RATE
    assert not samples[20 * 4096 : 21 * 4096].any()
    with pytest.raises(AudioError, match=rf"a\.flac .* 144,000 .* {20 * 4096:,} "):
        read_header(tmp_path / "a.flac")


@pytest.mark.parametrize("rate_hz", [24_000, 12_000, 11_025])
def test_a_flac_without_its_last_frame_is_refused(tmp_path: Path, rate_hz: int) -> None:
    """Without all of it, and with a damaged header: of 117 frames, each of 4,096 samples."""
    num_samples = 117 * 4096
    sf.write(tmp_path / "a.flac", noise(20)[:num_samples], rate_hz, subtype="PCM_16")
    content = (tmp_path / "a.flac").read_bytes()
    assert flac_fault(content, num_samples) is None
    first = content.index(b"\xff\xf8")
    place = content.rindex(content[first : first + 4] + bytes([116]))
    header = bytearray(content[place : place + 16])
    header[5:8] = (byte ^ 1 for byte in header[5:8])  # among them the checksum
    for rest in (b"", header):
        fault = flac_fault(content[:place] + rest, num_samples)
        assert fault is not None
        assert fault.endswith(f" {num_samples:,} samples and lacks those from 475,136 on")
    assert flac_fault(content[:place], 2**63 - 1) is None  # a length that was not declared


def test_flac_streams_without_other_metadata_are_counted() -> None:
    stream = b"fLaC\x80\0\0\x22" + bytes(34)
    assert flac_fault(stream, 0) is None
    assert flac_fault(stream + stream, 0) == "holds several FLAC streams, one after the other"


def ogg_page(number: int, flags: int = 0, granule: int = 0, serial: int = 7) -> bytes:
    """A page of 200 bytes."""
    header = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, 1)
    return header + bytes([200]) + bytes(200)


def test_ogg_pages_must_be_whole_and_numbered_up_to_the_last() -> None:
    """The first has the flag 2, the last the flag 4; headers have the granule 0."""
    first, header, last = ogg_page(0, 2), ogg_page(1), ogg_page(2, 4, granule=9)
    assert ogg_fault(first + header + last) is None
    beside = [ogg_page(0, 2, serial=8), ogg_page(1, granule=9, serial=8)]
    pages = [ogg_page(1), ogg_page(2, granule=8), beside[1], ogg_page(3, 4, granule=9)]
    assert ogg_fault(first + beside[0] + b"".join(pages)) is None
    assert ogg_fault(first + header + ogg_page(500, granule=9) + ogg_page(501, 4)) is None
    wrapped = ogg_page(2**32 - 1, granule=8) + ogg_page(0, 4, granule=9)
    assert ogg_fault(first + header + wrapped) is None
    for cut_off in (first + header, (first + header + last)[:-1], b""):
        assert ogg_fault(cut_off) == "is cut off: its Ogg stream ends before its last page"
    missing = first + header + ogg_page(2, granule=8) + ogg_page(4, 4, granule=9)
    assert ogg_fault(missing) == "is damaged: page 4 of its Ogg stream follows page 2"
    assert ogg_fault(first + header + last + first) == (
        "holds several Ogg streams, one after the other"
    )


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("is_doubled", [False, True])
def test_an_ogg_with_a_missing_or_duplicate_page_is_refused(
    tmp_path: Path, subtype: str, is_doubled: bool
) -> None:
    sf.write(tmp_path / "a.ogg", noise(10), RATE, format="OGG", subtype=subtype)
    content = (tmp_path / "a.ogg").read_bytes()
    page = list(ogg_pages(content))[4]
    end = page.place + page.num_bytes
    rest = content[page.place :] if is_doubled else content[end:]
    (tmp_path / "a.ogg").write_bytes(content[: end if is_doubled else page.place] + rest)
    follows = "page 4 .* page 4" if is_doubled else "page 5 .* page 3"
    with pytest.raises(AudioError, match=rf"a\.ogg is damaged: {follows}$"):
        read_header(tmp_path / "a.ogg")


def opus(path: Path, rate_hz: int) -> npt.NDArray[np.float32]:
    """Write noise as Opus that was encoded from ``rate_hz``, as its header has it; decode it."""
    sf.write(path, noise(2), 24_000, format="OGG", subtype="OPUS")
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", rate_hz)
    content[22:26] = bytes(4)
    first = next(ogg_pages(bytes(content)))
    content[22:26] = struct.pack("<I", ogg_checksum(content[: first.num_bytes]))
    path.write_bytes(content)
    audio = decode(path)
    assert read_header(path).sample_rate_hz == audio.sample_rate_hz
    return audio.samples


def test_opus_of_an_unknown_rate_keeps_its_high_frequencies(tmp_path: Path) -> None:
    unknown, known = (opus(tmp_path / f"{rate}.opus", rate) for rate in (0, 48_000))
    assert sf.info(tmp_path / "0.opus").samplerate == 8000  # what libsndfile alone would read
    assert np.array_equal(unknown, known)
    filled_in = opus_with_rate(tmp_path / "0.opus")
    assert filled_in is not None
    page, others = bytearray(filled_in.getvalue()), (tmp_path / "0.opus").read_bytes()
    assert page[40:44] == struct.pack("<I", 48_000)
    assert page[:22] + page[26:40] + page[44:] == others[:22] + others[26:40] + others[44:]
    del page[next(ogg_pages(others)).num_bytes :]
    checksum, page[22:26] = page[22:26], bytes(4)
    assert checksum == struct.pack("<I", ogg_checksum(page))


@pytest.mark.parametrize(("rate_hz", "is_unknown"), [(7_999, True), (8_000, False)])
def test_an_opus_rate_below_8_khz_is_none(tmp_path: Path, rate_hz: int, is_unknown: bool) -> None:
    (tmp_path / "a.opus").write_bytes(ogg_page(0, 2)[:40] + struct.pack("<I", rate_hz) + bytes(200))
    assert (opus_with_rate(tmp_path / "a.opus") is not None) == is_unknown


@pytest.mark.parametrize("num_off", [-4, -1, 1, 4])
def test_an_mp3_may_differ_from_its_declared_frames_by_one(tmp_path: Path, num_off: int) -> None:
    sf.write(tmp_path / "a.mp3", noise(20), RATE)
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    place = max(content.find(b"Info"), content.find(b"Xing")) + 8
    num_frames = len(Mp3Frames(bytes(content)).places)
    assert struct.unpack(">I", content[place : place + 4]) == (num_frames,)
    content[place : place + 4] = struct.pack(">I", num_frames + num_off)
    (tmp_path / "a.mp3").write_bytes(content)
    if abs(num_off) == 1:
        assert decode(tmp_path / "a.mp3").duration_seconds == pytest.approx(20, abs=0.05)
    else:
        with pytest.raises(AudioError, match=rf"a\.mp3 .* {num_frames + num_off} .* {num_frames}$"):
            decode(tmp_path / "a.mp3")


def mp3_frame(header: bytes = b"\xff\xfb\x90\xc4", start: bytes = b"") -> bytes:
    """A frame of 417 bytes: 128 kbit/s at 44.1 kHz."""
    return (header + start).ljust(417, b"\x55")


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ([mp3_frame(b"\xff\xfb\x92\xc4"), b"p", mp3_frame()], [(0, 418), (418, 417)]),  # padded
        (
            [b"ID3\x03\0\0\0\0\x02\x2c", bytes(290), mp3_frame()[:10], mp3_frame()],
            [(310, 417)],
        ),
        ([mp3_frame(), b"\0", mp3_frame()[:100], mp3_frame()], [(0, 417), (518, 417)]),
        ([mp3_frame(), b"\0\0", mp3_frame()], [(0, 417), (419, 417)]),
        ([mp3_frame(), mp3_frame(b"\xff\xfb\x9c\xc4"), mp3_frame()], [(0, 417), (834, 417)]),
    ],
    ids=["padding", "tag with a header", "header without its frame", "bytes", "reserved rate"],
)
def test_mp3_frames_are_found_between_other_bytes(
    content: list[bytes], places: list[tuple[int, int]]
) -> None:
    assert Mp3Frames(b"".join(content)).places == places


@pytest.mark.parametrize(("flags", "num_declared"), [(1, 5), (2, 0), (3, 5)])
def test_the_first_flag_of_a_xing_frame_tells_whether_it_declares_frames(
    flags: int, num_declared: int
) -> None:
    header = mp3_frame(start=bytes(32) + b"Xing" + struct.pack(">II", flags, 5))
    frames = Mp3Frames(header + mp3_frame())
    assert (frames.num_declared_frames, frames.num_header_frames) == (num_declared, 1)
    assert frames.places == [(417, 417)]


def test_an_mp3_that_changed_is_read_anew(tmp_path: Path) -> None:
    header = mp3_frame(start=bytes(32) + b"Xing" + struct.pack(">II", 1, 5))
    for num_frames, fault in ((5, None), (2, "is cut off: it declares 5 MP3 frames and holds 2")):
        (tmp_path / "a.mp3").write_bytes(header + mp3_frame() * num_frames)
        assert mp3_fault(tmp_path / "a.mp3", 5 * 1152) == fault


def test_a_vbri_header_frame_is_checked_against_the_frames(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.mp3", noise(3), RATE)
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    num_frames = len(Mp3Frames(bytes(content)).places)
    place = max(content.find(b"Info"), content.find(b"Xing"))
    content[place : place + 18] = b"VBRI" + bytes(10) + struct.pack(">I", num_frames - 4)
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(AudioError, match=rf"declares {num_frames - 4} .* {num_frames}$"):
        read_header(tmp_path / "a.mp3")


def cut_flac(content: bytes) -> bytes:
    return without_frame(content, 115)  # of 118


def cut_mp3(content: bytes) -> bytes:
    return content[: Mp3Frames(content).places[-3][0]]


def cut_wav(content: bytes) -> bytes:
    return content[:-2000]


@pytest.mark.parametrize(
    ("name", "cut"), [("a.flac", cut_flac), ("a.mp3", cut_mp3), ("a.wav", cut_wav)]
)
def test_a_file_missing_less_than_1_percent_is_refused(
    tmp_path: Path, name: str, cut: Callable[[bytes], bytes]
) -> None:
    sf.write(tmp_path / name, noise(20), RATE)
    (tmp_path / name).write_bytes(cut((tmp_path / name).read_bytes()))
    with pytest.raises(AudioError, match=r"is cut off"):
        decode(tmp_path / name)
