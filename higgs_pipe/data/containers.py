"""Files that hold more than libsndfile reads of them: found, and for MP3 put right.

libsndfile reads what a header declares, the first of several streams in a file, and of an MP3
without a header frame as much as it guesses from the first bit rate.
"""

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import soundfile as sf

from higgs_pipe.data.flac import num_samples_at_least

MAX_SHARE_BEHIND = 0.01  # of the audio; some writers are a few bytes off

NUM_HEAD_BYTES = 4096
NUM_FILES_REMEMBERED = 4096
# The name of the chunk that holds the audio.
DATA_CHUNKS = {"WAV": b"data", "WAVEX": b"data", "AIFF": b"SSND"}
# The byte order, as ``struct`` writes it, by the first four bytes of a file.
BYTE_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"FORM": ">", b".snd": ">", b"dns.": "<"}
# Of encodings that do not compress.
SAMPLE_NUM_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
}
MAX_CHUNK_NUM_BYTES = 2**32 - 2**16
OGG_FIRST_PAGE_FLAG = 2
OGG_LAST_PAGE_FLAG = 4
FLAC_START = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")  # and the size of STREAMINFO

# ISO/IEC 11172-3 and 13818-3, layer III: kbit/s by index, sample rates by version bits.
MP3_BIT_RATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_SAMPLE_RATES = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
MP3_HEADER_FRAMES = (b"Xing", b"Info", b"VBRI")
XING_HAS_FRAMES_AND_BYTES = 3


def wav_with_length(path: Path) -> io.BytesIO | None:
    """Return a WAV that declares no length with the one that it has; None for any other.

    Writers to a pipe cannot go back to their header and leave 0 there. What follows is audio to
    its end, unless it begins like another chunk.
    """
    content = path.read_bytes()
    place = content.find(b"data\0\0\0\0", 12)
    audio = content[place + 8 :]
    is_chunk = all(32 <= byte < 127 for byte in audio[:4])
    if place < 0 or place % 2 or is_chunk or not audio.strip(b"\0"):
        return None
    order = BYTE_ORDERS.get(content[:4], "<")  # an ID3 tag can be in front
    size = struct.pack(f"{order}I", min(len(audio), MAX_CHUNK_NUM_BYTES))
    return io.BytesIO(content[: place + 4] + size + audio)


def end_fault(path: Path, file: sf.SoundFile) -> str | None:
    """Return in words what a file lacks at its end, or holds behind what libsndfile reads, or None.

    Args:
        path: The file.
        file: The same file, open.
    """
    state = path.stat()
    if file.format in DATA_CHUNKS:
        num_audio_bytes = file.frames * file.channels * SAMPLE_NUM_BYTES.get(file.subtype, 0)
        if num_audio_bytes > (1 - MAX_SHARE_BEHIND) * state.st_size:
            return None  # there is no room for more
    return _end_fault(path, file.format, file.frames, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=NUM_FILES_REMEMBERED)  # a long recording is opened once per segment
def _end_fault(
    path: Path, container: str, num_samples: int, _num_bytes: int, _mtime_ns: int
) -> str | None:
    match container:
        case "WAV" | "WAVEX" if num_samples and b"data\0\0\0\0" in _head(path):
            return None  # read by wav_with_length
        case "WAV" | "WAVEX" | "AIFF":
            return _behind_data_chunk(path, DATA_CHUNKS[container])
        case "AU":
            return _behind_au_data(path)
        case "FLAC":
            content = path.read_bytes()
            if sum(content.count(start) for start in FLAC_START) > 1:
                return "holds several FLAC streams, one behind the other"
            present = num_samples_at_least(content)
            if 0 < num_samples <= present:
                return f"declares {num_samples:,} samples and holds more than {present:,}"
        case "OGG":
            content = path.read_bytes()
            return _ogg_end_fault(content) or _behind_ogg_stream(content)
        case "MP3":
            frames = _mp3_extent(path, _num_bytes, _mtime_ns)
            if frames.num_samples > num_samples + _mp3_tolerance(num_samples):
                return f"declares {num_samples:,} samples and holds {frames.num_samples:,}"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(NUM_HEAD_BYTES)


def _behind_au_data(path: Path) -> str | None:
    with path.open("rb") as stream:
        order = BYTE_ORDERS[stream.read(4)]
        start, data_size = struct.unpack(f"{order}II", stream.read(8))
    return _behind(path, start + data_size, data_size)


def _behind_data_chunk(path: Path, data_name: bytes) -> str | None:
    """Look behind the chunks of a RIFF, RIFX or AIFF file."""
    num_bytes = path.stat().st_size
    with path.open("rb") as stream:
        byte_order = BYTE_ORDERS.get(stream.read(4))
        if byte_order is None:
            return None  # a tag in front
        place, data_size, is_padded = 12, None, False
        while place + 8 <= num_bytes:
            stream.seek(place)
            name, size = struct.unpack(f"{byte_order}4sI", stream.read(8))
            if data_size is not None and name.startswith((b"ID3", b"TAG", b"APET")):
                return None  # a tag, without a chunk around it
            if data_size is not None and not all(32 <= byte < 127 for byte in name):
                if not is_padded:
                    break
                place, is_padded = place - 1, False  # some writers leave the padding out
                continue
            if name == data_name:
                data_size = size
            is_padded = size % 2 == 1
            place += 8 + size + size % 2
    return None if data_size is None else _behind(path, place, data_size)


def _behind(path: Path, place: int, data_size: int) -> str | None:
    """Return how much is behind the audio data, from ``place`` on; zeros do not count."""
    num_behind = path.stat().st_size - place
    if num_behind <= max(MAX_SHARE_BEHIND * data_size, 8):
        return None
    with path.open("rb") as stream:
        stream.seek(place)
        while block := stream.read(2**20):
            if block.strip(b"\0"):
                return f"declares {data_size:,} bytes of audio, and {num_behind:,} are behind them"
    return None


def _behind_ogg_stream(content: bytes) -> str | None:
    """Chained streams: a first page that comes after another kind of page."""
    place, has_other_page = content.find(b"OggS\0"), False
    while place >= 0 and place + 6 <= len(content):
        if not content[place + 5] & OGG_FIRST_PAGE_FLAG:
            has_other_page = True
        elif has_other_page:
            return "holds several Ogg streams, one behind the other"
        place = content.find(b"OggS\0", place + 6)
    return None


def _ogg_end_fault(content: bytes) -> str | None:
    """Check that an Ogg stream, which declares no length, ends with a whole last page."""
    page = content[max(0, content.rfind(b"OggS")) :]
    # A page: 27 bytes (flags at 5, number of segments at 26), the segments' sizes, the segments.
    num_segments = page[26] if len(page) > 26 else 0
    num_bytes = 27 + num_segments + sum(page[27 : 27 + num_segments])
    if len(page) < num_bytes or not page[5] & OGG_LAST_PAGE_FLAG:
        return "is cut off: its Ogg stream ends before its last page"
    return None


def mp3_length_is_a_guess(path: Path, num_samples: int) -> bool:
    """Return whether an MP3 has no header frame and libsndfile's guess, ``num_samples``, is off."""
    state = path.stat()
    extent = _mp3_extent(path, state.st_size, state.st_mtime_ns)
    is_off = abs(extent.num_samples - num_samples) > _mp3_tolerance(num_samples)
    return extent.num_header_frames == 0 and extent.num_samples > 0 and is_off


def _mp3_tolerance(num_samples: int) -> float:
    """Header frames may leave out the encoder's delay and padding, up to 4,095 samples each."""
    return max(MAX_SHARE_BEHIND * num_samples, 2 * 4095 + 1152)


class Mp3Extent(NamedTuple):
    """Samples and header frames of an MP3."""

    num_samples: int
    num_header_frames: int


@lru_cache(maxsize=NUM_FILES_REMEMBERED)
def _mp3_extent(path: Path, _num_bytes: int, _mtime_ns: int) -> Mp3Extent:
    frames = Mp3Frames(path.read_bytes())
    return Mp3Extent(frames.num_samples, frames.num_header_frames)


class Mp3Frames:
    """The frames of an MP3 file: ``places`` holds the first byte and the size of each.

    Bytes that are not a frame, such as ID3 tags, are skipped. A header frame (Xing, Info, VBRI),
    which holds no audio, is not among them.
    """

    def __init__(self, content: bytes) -> None:
        self.places: list[tuple[int, int]] = []
        self.num_header_frames = 0
        self.num_samples = 0
        for place, size, num_samples in _mp3_frames(content):
            if any(name in content[place : place + 48] for name in MP3_HEADER_FRAMES):
                self.num_header_frames += 1
                continue
            self.places.append((place, size))
            self.num_samples += num_samples


def _mp3_frames(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield first byte, size and number of samples of each frame of layer III."""
    place = 0
    while True:
        if content.startswith(b"ID3", place) and place + 10 <= len(content):
            size = 0
            for byte in content[place + 6 : place + 10]:
                size = size << 7 | byte & 0x7F
            place += 10 + size
            continue
        frame = _mp3_frame(content, place)
        if frame is None:
            place = content.find(b"\xff", place + 1)
            # A frame that follows bytes of another kind must be followed by one itself.
            while place >= 0 and not _is_followed(content, place):
                place = content.find(b"\xff", place + 1)
            if place < 0:
                return
            continue
        yield place, *frame
        place += frame[0]


def _is_followed(content: bytes, place: int) -> bool:
    frame = _mp3_frame(content, place)
    return frame is not None and (
        place + frame[0] == len(content) or _mp3_frame(content, place + frame[0]) is not None
    )


def _mp3_frame(content: bytes, place: int) -> tuple[int, int] | None:
    """Return the size and the number of samples of the frame at ``place``, if there is one."""
    if place + 4 > len(content):
        return None
    bits = int.from_bytes(content[place : place + 4], "big")
    version, layer, bit_rate, rate = bits >> 19 & 3, bits >> 17 & 3, bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or layer != 1 or bit_rate in (0, 15) or rate == 3:
        return None
    generation = 1 if version == 3 else 2
    num_samples = 1152 // generation
    bits_per_second = 1000 * MP3_BIT_RATES[generation][bit_rate]
    size = num_samples // 8 * bits_per_second // MP3_SAMPLE_RATES[version][rate] + (bits >> 9 & 1)
    return size, num_samples


def mp3_with_length(path: Path) -> io.BytesIO:
    """Return an MP3 behind a Xing header frame that declares the number of its frames.

    libsndfile takes the length from there.
    """
    content = path.read_bytes()
    frames = Mp3Frames(content)
    first = frames.places[0][0]
    bits = int.from_bytes(content[first : first + 4], "big")
    is_mono = bits >> 6 & 3 == 3
    generation = 1 if bits >> 19 & 3 == 3 else 2
    side_info = {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[generation, is_mono]
    # No checksum (bit 16), a bit rate with room for the header (index 9), no padding (bit 9).
    bits = (bits | 1 << 16) & ~(15 << 12) & ~(1 << 9) | 9 << 12
    header = bits.to_bytes(4, "big")
    size = next(size for _, size, _ in _mp3_frames(header))
    audio = b"".join(content[place : place + num_bytes] for place, num_bytes in frames.places)
    xing = struct.pack(
        ">4sIII", b"Xing", XING_HAS_FRAMES_AND_BYTES, len(frames.places), size + len(audio)
    )
    return io.BytesIO((header + bytes(side_info) + xing).ljust(size, b"\0") + audio)
