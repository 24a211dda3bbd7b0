"""Frames of MP3 files: how long a recording is, whatever its header frame says."""

import io
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

NUM_FILES_REMEMBERED = 4096

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
MP3_HEADER_FRAME = re.compile(b"Xing|Info|VBRI")
XING_HAS_FRAMES, XING_HAS_FRAMES_AND_BYTES = 1, 3
MAX_FRAME_SAMPLES = 1152
NUM_FRAMES_OFF = 1  # some encoders count the header frame, or not the last one


def mp3_length_is_a_guess(path: Path, num_samples: int) -> bool:
    """Return whether no header frame tells the length and libsndfile's guess is off.

    Args:
        path: The file.
        num_samples: The guess.
    """
    extent = _extent(path)
    is_off = abs(extent.num_samples - num_samples) > NUM_FRAMES_OFF * MAX_FRAME_SAMPLES
    return not extent.num_declared_frames and extent.num_samples > 0 and is_off


def mp3_fault(path: Path, num_samples: int) -> str | None:
    """Return in words how an MP3 and its header frame differ, or None.

    Args:
        path: The file.
        num_samples: What libsndfile would read.
    """
    extent = _extent(path)
    if extent.num_header_frames > 1:
        return f"declares {num_samples:,} samples and holds {extent.num_samples:,}"
    num_off = extent.num_frames - extent.num_declared_frames
    if extent.num_declared_frames and abs(num_off) > NUM_FRAMES_OFF:
        cut_off = "is cut off: it " if num_off < 0 else ""
        return (
            f"{cut_off}declares {extent.num_declared_frames:,} MP3 frames and holds "
            f"{extent.num_frames:,}"
        )
    return None


class Extent(NamedTuple):
    """Samples and frames of an MP3, and the frames that its header frame declares, or 0."""

    num_samples: int
    num_frames: int
    num_header_frames: int
    num_declared_frames: int


def _extent(path: Path) -> Extent:
    state = path.stat()
    return _extent_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=NUM_FILES_REMEMBERED)  # a long recording is opened once per segment
def _extent_of(path: Path, _num_bytes: int, _mtime_ns: int) -> Extent:
    frames = Mp3Frames(path.read_bytes())
    return Extent(
        frames.num_samples,
        len(frames.places),
        frames.num_header_frames,
        frames.num_declared_frames,
    )


class Mp3Frames:
    """The frames of an MP3 file: ``places`` holds the first byte and the size of each.

    Bytes that are not a frame, such as ID3 tags, are skipped. A header frame (Xing, Info, VBRI),
    which holds no audio, is not among them.
    """

    def __init__(self, content: bytes) -> None:
        self.places: list[tuple[int, int]] = []
        self.num_header_frames = 0
        self.num_declared_frames = 0
        self.num_samples = 0
        for place, size, num_samples in _mp3_frames(content):
            header = MP3_HEADER_FRAME.search(content, place, place + 48)
            if header:
                self.num_header_frames += 1
                self.num_declared_frames = _declared_frames(content, header.start())
                continue
            self.places.append((place, size))
            self.num_samples += num_samples


def _declared_frames(content: bytes, place: int) -> int:
    """Return the number of frames that a header frame, whose name is at ``place``, declares."""
    if content.startswith(b"VBRI", place):
        return int.from_bytes(content[place + 14 : place + 18], "big")
    flags = int.from_bytes(content[place + 4 : place + 8], "big")
    return int.from_bytes(content[place + 8 : place + 12], "big") if flags & XING_HAS_FRAMES else 0


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
