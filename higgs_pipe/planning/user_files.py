"""Paths that a user names, and safe reading: no file can hang a stage or fill its memory."""

import gzip
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

GZIP_SIGN = b"\x1f\x8b"
BLOCK_BYTES = 2**20
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class UnfitFileError(Exception):
    """A file that cannot be what it should be; the message is a predicate."""


def path_fault(path: str) -> str | None:
    """Return why no file can be opened by a path, in a few words; None if one may be there.

    The file need not exist, unless the path begins with ``~``, which only a shell expands. After
    this check, no look at the path raises an exception. A URL has no fault.
    """
    if "://" in path:
        return None
    try:
        path.encode()
        os.stat(path)  # noqa: PTH116  (of the text as written: a Path is tidied up)
    except (FileNotFoundError, NotADirectoryError):
        return "~ is not expanded here; write the full path" if path.startswith("~") else None
    except OSError as error:  # a name that is too long, links in a circle, a folder closed to us
        return error.strerror
    except ValueError:
        return "it has a NUL or is not UTF-8"
    return None


def open_file(path: Path) -> BinaryIO:
    """Return a regular file, open for reading; links are followed.

    Raises:
        UnfitFileError: It is a named pipe, a socket, a device or a folder.
        OSError: It does not exist or cannot be read.
    """
    # Without waiting: a named pipe would hold us until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise UnfitFileError(f"is {KINDS.get(kind, 'of an unknown kind')}, not a file")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file, uncompressed if it is gzipped.

    Args:
        path: The file.
        max_bytes: Largest size, both compressed and uncompressed.

    Raises:
        UnfitFileError: It is not a regular file, is larger, or is not complete gzip.
        OSError: It cannot be read.
    """
    with open_file(path) as stream:
        content = _read(stream, max_bytes)
        if not content.startswith(GZIP_SIGN):
            return content
        stream.seek(0)
        try:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                return _read(unpacked, max_bytes, " unpacked")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UnfitFileError(f"is not a complete gzip file ({error})") from None


def _read(stream: BinaryIO | gzip.GzipFile, max_bytes: int, when: str = "") -> bytes:
    content = bytearray()
    while block := stream.read(BLOCK_BYTES):  # one read would reserve room for all of them
        content += block
        if len(content) > max_bytes:
            raise UnfitFileError(f"has more than {max_bytes:,} bytes{when}")
    return bytes(content)
