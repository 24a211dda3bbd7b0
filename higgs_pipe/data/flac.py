"""Frames of FLAC files (RFC 9639), as far as their headers tell where a stream ends."""

import re

SYNC = re.compile(rb"\xff\xf8")  # of a frame in a stream whose frames are of one size
NUM_BYTES_LOOKED_AT = 2**17  # holds several frames of any usual recording
CRC8_POLYNOMIAL = 0x07
# Bytes for the block size and for the sample rate behind a frame's number, by their codes.
NUM_BYTES_OF_SIZE = {6: 1, 7: 2}
NUM_BYTES_OF_RATE = {12: 1, 13: 2, 14: 2}


def num_samples_at_least(content: bytes) -> int:
    """Return how many samples per channel lie before the last frame of a FLAC file; 0 if unknown.

    Two frames with numbers in a row must be found, so that compressed audio is not taken for them.
    """
    start = content.find(b"fLaC")
    block_num_samples = int.from_bytes(content[start + 8 : start + 10], "big")
    tail = content.rstrip(b"\0")[-NUM_BYTES_LOOKED_AT:]
    numbers = {_frame_number(tail, match.start()) for match in SYNC.finditer(tail)}
    known = {number for number in numbers if number is not None and number - 1 in numbers}
    return max(known, default=0) * block_num_samples


def _frame_number(content: bytes, place: int) -> int | None:
    """Return the number of the frame whose header is at ``place``, or None if none is there."""
    if place + 16 > len(content):
        return None
    size, rate = content[place + 2] >> 4, content[place + 2] & 15
    # As in UTF-8, the first bits tell the number of bytes, and six bits follow in each.
    first = content[place + 4]
    num_ones = 8 - (first ^ 0xFF).bit_length()
    if num_ones in (1, 8):
        return None
    number = first & (0x7F >> num_ones)
    end = place + 4 + max(num_ones, 1)
    for byte in content[place + 5 : end]:
        number = number << 6 | byte & 0x3F
    end += NUM_BYTES_OF_SIZE.get(size, 0) + NUM_BYTES_OF_RATE.get(rate, 0)
    return number if _crc8(content[place:end]) == content[end] else None


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ CRC8_POLYNOMIAL if crc & 0x80 else crc << 1) & 0xFF
    return crc
