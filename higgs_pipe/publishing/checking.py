"""Check that the files of an untrusted package are those that were packaged, and harmless.

Nothing is extracted, executed or unpickled, and no weight is loaded.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FILE,
)
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.planning.file_names import CHECKSUMS
from higgs_pipe.publishing.contents import Contents, Entry, open_contents
from higgs_pipe.publishing.provenance import PROVENANCE
from higgs_pipe.publishing.sealing import FILE_LIST, FileList, checksum_lines
from higgs_pipe.publishing.tensors import NotSafetensorsError, read_shapes

REQUIRED = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE, PROVENANCE, "README.md")
REQUIRED_OF_CHECKPOINT = ("config.json", "merge.json", "proof.json", "README.md")
TEXT_SUFFIXES = (".json", ".jinja", ".md", ".svg", ".txt")
MAX_TEXT_BYTES = 20_000_000
MAX_WAV_BYTES = 100_000_000
CHUNK_BYTES = 1 << 20
# What a browser would run in a drawing.
ACTIVE_SVG = re.compile(r"<\s*(script|foreignobject|iframe)|\son\w+\s*=|javascript:", re.IGNORECASE)
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class CheckedPackage:
    """A package whose files are those that were packaged.

    Attributes:
        files: Size and SHA-256 of each file except the list and the checksums.
        shapes: Shape of each tensor of the adapter.
        adapter_config: PEFT's config.
        base: The base that it was trained on.
    """

    files: FileList
    shapes: Mapping[str, tuple[int, ...]]
    adapter_config: Mapping[str, Any]
    base: PinnedModel


def check_package(path: Path) -> CheckedPackage:
    """Check the files of a package.

    Args:
        path: Its folder or its ZIP.

    Raises:
        UserError: A file was changed, truncated, renamed, removed or added, or is of a kind that
            packages do not have; or the archive has links, paths outside or compressed entries.
    """
    with open_contents(path) as contents:
        texts, faults = _read_texts(contents, contents.entries)
        files = _file_list(texts, faults)
        faults += _differences(contents, files, texts, REQUIRED)
        adapter_config = json.loads(texts.get(ADAPTER_CONFIG, "{}"))
        if not isinstance(adapter_config, dict):
            faults.append(f"{ADAPTER_CONFIG}: not a JSON object")
        _refuse(
            faults,
            f"{path}: not the package that was made",
            "Get it again from where it was published, or make it again: "
            "snakemake --forcerun package_adapter",
        )
        with contents.entries[ADAPTER_WEIGHTS].open() as stream:
            shapes = read_shapes(stream, contents.entries[ADAPTER_WEIGHTS].num_bytes)
    return CheckedPackage(
        files=files,
        shapes=shapes,
        adapter_config=adapter_config,
        base=PinnedModel.parse(texts[BASE_FILE], f"{path}: {BASE_FILE}"),
    )


def check_checkpoint(folder: Path) -> FileList:
    """Check that the files of a full checkpoint are those that were verified.

    Returns:
        Size and SHA-256 of each file except the list and the checksums.

    Raises:
        UserError: A file was changed, truncated, renamed, removed or added.
    """
    with open_contents(folder) as contents:
        texts, faults = _read_texts(contents, contents.entries.keys() & {FILE_LIST, CHECKSUMS})
        files = _file_list(texts, faults)
        faults += _differences(contents, files, texts, REQUIRED_OF_CHECKPOINT)
        _refuse(
            faults,
            f"{folder}: not the checkpoint that was made",
            "Make it again: snakemake --forcerun merge_adapter",
        )
    return files


def _refuse(faults: list[str], fact: str, advice: str) -> None:
    if faults:
        raise UserError(f"{fact}:\n{list_offenders(list(dict.fromkeys(faults)))}\n{advice}")


class _ForeignFileError(Exception):
    """A file that does not belong in a package; the message says why."""


def _read_texts(contents: Contents, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Read files of a package; also return all faults, those of its contents first."""
    texts, faults = {}, list(contents.faults)
    for name in names:
        try:
            texts[name] = _checked_text(contents.entries[name])
        except _ForeignFileError as error:
            faults.append(f"{name}: {error}")
    return texts, faults


def _checked_text(entry: Entry) -> str:
    """Return the text of a text file, and "" of weights and audio, whose form is checked.

    Raises:
        _ForeignFileError: The file is of another kind, or malformed.
    """
    suffix = PurePosixPath(entry.name).suffix
    try:
        with entry.open() as stream:
            if suffix == ".safetensors":
                read_shapes(stream, entry.num_bytes)
                return ""
            if suffix == ".wav":
                return _checked_wav(stream, entry.num_bytes)
            if suffix in TEXT_SUFFIXES or entry.name == CHECKSUMS:
                return _decoded(stream, suffix)
    except UNREADABLE as error:
        raise _ForeignFileError(f"cannot be read ({error})") from None
    except NotSafetensorsError as error:
        raise _ForeignFileError(f"not safetensors: {error}") from None
    raise _ForeignFileError("neither safetensors nor text nor WAV")


def _checked_wav(stream: IO[bytes], num_bytes: int) -> str:
    start = stream.read(12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE" or num_bytes > MAX_WAV_BYTES:
        raise _ForeignFileError("not a WAV, or too long a one")
    return ""


def _decoded(stream: IO[bytes], suffix: str) -> str:
    content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise _ForeignFileError(f"text of more than {MAX_TEXT_BYTES:,} bytes")
    try:
        text = content.decode()
        if suffix == ".json":
            json.loads(text)
    except (ValueError, RecursionError):
        kind = "JSON" if suffix == ".json" else "UTF-8"
        raise _ForeignFileError(f"not {kind}") from None
    if suffix == ".svg" and ACTIVE_SVG.search(text):
        raise _ForeignFileError("a drawing with a script")
    return text


def _file_list(texts: Mapping[str, str], faults: list[str]) -> FileList:
    """Return the list of files; without one, an empty list and a fault."""
    if FILE_LIST in texts:
        try:
            return FileList.parse(texts[FILE_LIST], FILE_LIST)
        except UserError as error:
            faults.append(
                f"{FILE_LIST}: not a list of files ({str(error).splitlines()[1].strip()})"
            )
    else:
        faults.append(f"{FILE_LIST}: missing")
    return FileList(files={})


def _differences(
    contents: Contents, files: FileList, texts: Mapping[str, str], required: Sequence[str]
) -> Iterator[str]:
    """Yield how the files differ from the list, each as ``name: fact``."""
    hashes = {}
    for name, entry in contents.entries.items():
        try:
            hashes[name] = _sha256(entry)
        except UNREADABLE as error:
            yield f"{name}: cannot be read ({error})"
    expected = {name: file.sha256 for name, file in files.files.items()}
    missing = expected.keys() - contents.entries.keys()
    for name in sorted({*required, *missing} - contents.entries.keys()):
        yield f"{name}: missing"
    for name in sorted(hashes.keys() - expected.keys() - {FILE_LIST, CHECKSUMS}):
        origins = [other for other in sorted(missing) if expected[other] == hashes[name]]
        yield f"{name}: " + (f"renamed from {origins[0]}" if origins else "not in the package")
    for name in sorted(hashes.keys() & expected.keys()):
        num_bytes, listed = contents.entries[name].num_bytes, files.files[name].num_bytes
        if num_bytes != listed:
            yield f"{name}: {num_bytes:,} bytes of {listed:,}"
        elif hashes[name] != expected[name]:
            yield f"{name}: changed"
    if FILE_LIST in hashes:
        expected[FILE_LIST] = hashes[FILE_LIST]
    if texts.get(CHECKSUMS) != checksum_lines(expected):
        yield f"{CHECKSUMS}: not the checksums of {FILE_LIST} and the files that it lists"


def _sha256(entry: Entry) -> str:
    digest = hashlib.sha256()
    with entry.open() as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
