"""Files of an untrusted package, a folder or a ZIP: listed and read, never extracted."""

import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from higgs_pipe.errors import UserError

# What a download from the Hub and Snakemake add at the top of a folder.
ADDED_BY_TOOLS = (".gitattributes", ".cache", ".snakemake_timestamp")
MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class Entry:
    """A regular file of a package.

    Attributes:
        name: Its path within the package, with ``/``.
        num_bytes: Its size.
        open: Opens it for reading. Opening or reading raises OSError, BadZipFile or EOFError if
            the disk or the archive is damaged.
    """

    name: str
    num_bytes: int
    open: Callable[[], IO[bytes]]


@dataclass
class Contents:
    """Regular files by name, and faults on everything else, each as ``name: fact``."""

    entries: dict[str, Entry] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@contextmanager
def open_contents(path: Path) -> Iterator[Contents]:
    """Yield the contents of a folder or a ZIP.

    Raises:
        UserError: There is no folder or file of this name, or the file is not a ZIP.
    """
    if path.is_dir():
        yield _of_folder(path)
        return
    if not path.is_file():
        raise UserError(f"{path}: there is no folder or ZIP of this name.")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a ZIP, or not all of it ({error}); get the package again."
        ) from None
    with archive:
        yield _of_archive(archive, path.stat().st_size)


def _of_folder(folder: Path) -> Contents:
    contents = Contents()
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as found:
            for each in sorted(found, key=lambda item: item.name):
                path = Path(each.path)
                name = path.relative_to(folder).as_posix()
                if name in ADDED_BY_TOOLS:
                    continue
                if each.is_symlink():
                    contents.faults.append(f"{name}: a link")
                elif each.is_dir():
                    pending.append(path)
                elif each.is_file():
                    contents.entries[name] = Entry(name, each.stat().st_size, partial(_open, path))
                else:
                    contents.faults.append(f"{name}: not a regular file")
    return contents


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _of_archive(archive: zipfile.ZipFile, num_bytes: int) -> Contents:
    """List an archive's files without its top folder; each must be stored once, uncompressed."""
    contents = Contents()
    members = archive.infolist()
    if len(members) > MAX_ENTRIES:
        contents.faults.append(f"{len(members):,} entries, more than {MAX_ENTRIES:,}")
        return contents
    tops = {member.filename.split("/")[0] for member in members}
    if len(tops) > 1:
        contents.faults.append(f"{len(tops)} entries at the top, not one folder")
    for member in members:
        name = member.filename.partition("/")[2]
        if fault := _fault_of(member):
            contents.faults.append(f"{member.orig_filename!r}: {fault}")
        elif name in contents.entries:
            contents.faults.append(f"{name}: twice in the archive")
        else:
            contents.entries[name] = Entry(name, member.file_size, partial(archive.open, member))
    if sum(entry.num_bytes for entry in contents.entries.values()) > num_bytes:
        contents.faults.append("the archive is smaller than the files that it claims to hold")
        contents.entries.clear()
    return contents


def _fault_of(member: zipfile.ZipInfo) -> str | None:
    """Return the fault of an archive's entry; None for an uncompressed, regular file."""
    path = PurePosixPath(member.filename)
    if member.filename != member.orig_filename or "\\" in member.filename:
        return "a name that differs between systems"
    if path.is_absolute() or ".." in path.parts or str(path) != member.filename:
        return "a path that leads elsewhere"
    if len(path.parts) < 2:
        return "not in a folder"
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "a link or special file"
    if member.flag_bits & 1:
        return "encrypted"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return "compressed, which packages never are"
    return None
