"""The list of a package's files, and the ZIP, byte for byte equal on every machine."""

import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from higgs_pipe.data.files import write_text
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.planning.file_names import CHECKSUMS

FILE_LIST = "files.json"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP can hold
UNIX = 3
MODE = (stat.S_IFREG | 0o644) << 16


class ListedFile(ResultPart):
    """Size and SHA-256 of a file."""

    num_bytes: int
    sha256: str


class FileList(Result):
    """``files.json``: every file of a package by relative path, except itself and SHA256SUMS."""

    made_by: ClassVar[str] = "package_adapter"

    files: dict[str, ListedFile]


def seal(directory: Path) -> None:
    """List the files of a package: write ``files.json`` and ``SHA256SUMS``."""
    listed = {
        name: ListedFile(num_bytes=path.stat().st_size, sha256=sha256_of_file(path))
        for name, path in _files(directory).items()
    }
    FileList(files=listed).write(directory / FILE_LIST)
    hashes = {name: file.sha256 for name, file in listed.items()}
    hashes[FILE_LIST] = sha256_of_file(directory / FILE_LIST)
    write_text(directory / CHECKSUMS, checksum_lines(hashes))


def checksum_lines(hashes: Mapping[str, str]) -> str:
    """Return the text of ``SHA256SUMS``, as ``sha256sum`` writes it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def write_zip(directory: Path, archive: Path) -> None:
    """Archive a directory under its own name.

    Files are stored, not compressed: builds of zlib compress to different bytes, weights hardly
    shrink, and an archive without compression cannot be a decompression bomb.
    """
    with zipfile.ZipFile(archive, "w") as stream:
        for name, path in _files(directory).items():
            entry = zipfile.ZipInfo(f"{directory.name}/{name}", date_time=ZIP_TIME)
            entry.create_system = UNIX
            entry.external_attr = MODE
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, stream.open(entry, "w") as target:
                shutil.copyfileobj(source, target)


def _files(directory: Path) -> dict[str, Path]:
    """Return the files of a directory by relative path, sorted."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return dict(sorted((path.relative_to(directory).as_posix(), path) for path in paths))
