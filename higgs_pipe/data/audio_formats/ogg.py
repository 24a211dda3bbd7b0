"""Pages of Ogg files (RFC 3533): whole, one stream, none missing; and the rate of Opus in them."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FIRST_PAGE_FLAG = 2
LAST_PAGE_FLAG = 4
PAGE_HEADER = struct.Struct("<4sBBqIIIB")
CHECKSUM = slice(22, 26)  # of a page

# RFC 7845: where the first page has the rate of what was encoded, and the rates of Opus.
OPUS_RATE = slice(40, 44)
OPUS_MIN_RATE_HZ, OPUS_MAX_RATE_HZ = 8_000, 48_000
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """One page: its first byte and size, and what its header says."""

    place: int
    num_bytes: int
    flags: int
    granule: int  # samples up to its end; 0 for pages of headers
    serial: int
    number: int


def ogg_fault(content: bytes) -> str | None:
    """Return how the pages of an Ogg file are not one whole stream, as a predicate, or None."""
    previous: dict[int, Page] = {}  # by serial number
    page, has_other_page = None, False
    for page in ogg_pages(content):
        if not page.flags & FIRST_PAGE_FLAG:
            has_other_page = True
        elif has_other_page:
            return "holds several Ogg streams, one after the other"
        before = previous.get(page.serial)
        # Whoever joins a broadcast has its headers, then pages from its middle.
        if before and before.granule and page.number != (before.number + 1) % 2**32:
            return f"is damaged: page {page.number} of its Ogg stream follows page {before.number}"
        previous[page.serial] = page
    is_whole = page and page.place + page.num_bytes <= len(content)
    if page is None or not is_whole or not page.flags & LAST_PAGE_FLAG:
        return "is cut off: its Ogg stream ends before its last page"
    return None


def ogg_pages(content: bytes) -> Iterator[Page]:
    """Yield the pages; bytes between them are skipped, and the last page may be cut off."""
    place = content.find(b"OggS\0")
    while place >= 0:
        header = content[place : place + PAGE_HEADER.size].ljust(PAGE_HEADER.size, b"\0")
        _, _, flags, granule, serial, number, _, num_segments = PAGE_HEADER.unpack(header)
        start = place + PAGE_HEADER.size
        num_bytes = PAGE_HEADER.size + num_segments + sum(content[start : start + num_segments])
        yield Page(place, num_bytes, flags, granule, serial, number)
        place = content.find(b"OggS\0", place + num_bytes)


def opus_with_rate(path: Path) -> io.BytesIO | None:
    """Return an Ogg Opus file that declares no rate, with 48 kHz filled in; None for any other.

    Encoders may leave out the rate of what they encoded, as 0. libsndfile decodes at the lowest
    rate of Opus that is not below it, which would be 8 kHz.
    """
    with path.open("rb") as stream:
        head = stream.read(OPUS_RATE.stop)
    if int.from_bytes(head[OPUS_RATE], "little") >= OPUS_MIN_RATE_HZ:
        return None
    content = bytearray(path.read_bytes())
    first = next(ogg_pages(bytes(content)))
    content[OPUS_RATE] = OPUS_MAX_RATE_HZ.to_bytes(4, "little")
    content[CHECKSUM] = bytes(4)
    checksum = ogg_checksum(content[: first.num_bytes])
    content[CHECKSUM] = checksum.to_bytes(4, "little")
    return io.BytesIO(content)


def ogg_checksum(page: bytes | bytearray) -> int:
    """Return the checksum of a page, in which it is still 0: CRC-32 of reversed bits, from 0."""
    crc = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
