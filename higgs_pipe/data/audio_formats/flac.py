"""Frame headers of FLAC files (RFC 9639), read to find where a stream ends."""

import re
import struct

SYNC = re.compile(rb"\xff\xf8")  # of a frame in a stream whose frames are of one size
MAX_HEADER_NUM_BYTES = 16
MAX_NUM_SAMPLES = 2**36  # libsndfile tells of more where none are declared
START = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")  # and the size of STREAMINFO


def _crc8_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte << 1) ^ 0x107 if byte & 0x80 else byte << 1
    return byte


CRC8 = tuple(map(_crc8_of_byte, range(256)))
# Bytes for the block size and for the sample rate behind a frame's number, by their codes.
NUM_BYTES_OF_SIZE = {6: 1, 7: 2}
NUM_BYTES_OF_RATE = {12: 1, 13: 2, 14: 2}


def flac_fault(content: bytes, num_samples: int) -> str | None:
    """Return in words how a FLAC file and its declared length differ, or None.

    libFLAC fills frames that are missing with silence.

    Args:
        content: The file.
        num_samples: What it declares, per channel.
    """
    if sum(content.count(start) for start in START) > 1:
        return "holds several FLAC streams, one after the other"
    start = content.find(b"fLaC")
    smallest, largest = struct.unpack(">HH", content[start + 8 : start + 12])
    num_frames = _num_frames(content)
    if 0 < num_samples <= (num_frames - 1) * smallest:
        return (
            f"declares {num_samples:,} samples and holds more than {(num_frames - 1) * smallest:,}"
        )
    if 0 < num_frames * largest < num_samples < MAX_NUM_SAMPLES:
        return (
            f"is cut off or damaged: it declares {num_samples:,} samples and lacks those from "
            f"{num_frames * largest:,} on"
        )
    return None


def _num_frames(content: bytes) -> int:
    """Return how many frames are numbered from 0 without a gap; 0 where frames differ in size."""
    num_frames = 0
    for match in SYNC.finditer(content):
        header = content[match.start() : match.start() + MAX_HEADER_NUM_BYTES]
        if _frame_number(header) == num_frames:
            num_frames += 1
    return num_frames


def _frame_number(header: bytes) -> int | None:
    """Return the number of the frame that begins with these 16 bytes, or None if none does."""
    header = header.ljust(MAX_HEADER_NUM_BYTES, b"\0")
    size, rate = header[2] >> 4, header[2] & 15
    # As in UTF-8, the first bits tell the number of bytes, and six bits follow in each.
    first = header[4]
    num_ones = 8 - (first ^ 0xFF).bit_length()
    if num_ones in (1, 8):
        return None
    number = first & (0x7F >> num_ones)
    end = 4 + max(num_ones, 1)
    for byte in header[5:end]:
        number = number << 6 | byte & 0x3F
    end += NUM_BYTES_OF_SIZE.get(size, 0) + NUM_BYTES_OF_RATE.get(rate, 0)
    return number if _crc8(header[:end]) == header[end] else None


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc = CRC8[crc ^ byte]
    return crc
