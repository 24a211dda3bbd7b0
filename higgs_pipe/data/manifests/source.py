"""Helpers of all readers: lines, JSON objects, and the place of every fault."""

import codecs
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.manifests.fields import Fields, RowFault
from higgs_pipe.data.manifests.transcripts import kind_of_transcript
from higgs_pipe.data.spans import Span
from higgs_pipe.planning.bounds import (
    MAX_FAULTS,
    MAX_JSON_BYTES,
    MAX_KEYS,
    MAX_LINE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_TRANSCRIPT_BYTES,
)
from higgs_pipe.planning.recordings import FileState, state_of
from higgs_pipe.planning.user_files import UnfitFileError, read_file


class TooManyFaultsError(Exception):
    """Too many faults: the rest of the manifests is not read."""


@dataclass(frozen=True)
class RawRow:
    """One utterance before it is checked: our keys and unknown ones, values as in ``file``.

    The paths in a ``conversation`` are as written too.
    """

    file: str
    line: int
    fields: Fields
    conversation: Conversation[Span] | None = None
    guessed: frozenset[str] = frozenset()  # keys that the entry in the config overrides


RawRows = Iterator[RawRow]


@dataclass(frozen=True)
class Findings:
    """Faults, notes and files left out, collected while manifests are read."""

    faults: list[tuple[str, str]] = field(default_factory=list)  # places and facts
    notes: dict[str, None] = field(default_factory=dict)  # for the log, each once
    left_out: dict[str, list[str]] = field(default_factory=dict)  # files, by the reason
    transcripts: dict[str, FileState] = field(default_factory=dict)  # those read, by their paths


@dataclass(frozen=True)
class Source:
    """A manifest that is being read, and what is found in it."""

    path: str
    root: Path
    columns: Mapping[str, str]
    findings: Findings = field(default_factory=Findings)
    extract_to: Path | None = None  # folder for recordings that a manifest holds itself

    @cached_property
    def is_folder(self) -> bool:
        """Return whether the manifest is a folder."""
        return Path(self.path).is_dir()

    def file_of(self, *names: str) -> "Source":
        """Return the source of the first file in the folder that exists under these names."""
        if not self.is_folder:
            return self
        folder = Path(self.path)
        name = next((name for name in names if (folder / name).exists()), names[-1])
        return replace(self, path=str(folder / name))

    def for_a_look(self) -> "Source":
        """Return the source to look at first; what is found then will be found again."""
        return replace(self, findings=Findings())

    def fault(self, place: str, fact: str) -> None:
        """Note a fault that makes the manifest unusable.

        Raises:
            TooManyFaultsError: This is number ``MAX_FAULTS``.
        """
        self.findings.faults.append((place, fact))
        if len(self.findings.faults) >= MAX_FAULTS:
            raise TooManyFaultsError

    def note(self, text: str) -> None:
        """Note a message for the log."""
        self.findings.notes[text] = None

    def note_columns(self, columns: Mapping[str, str]) -> None:
        """Note the names of our keys that the user did not assign."""
        guessed = {ours: theirs for ours, theirs in columns.items() if ours not in self.columns}
        if guessed:
            names = ", ".join(f"{theirs!r} as {ours}" for ours, theirs in sorted(guessed.items()))
            self.note(f"{self.path}: read {names}")

    def leave_out(self, reason: str, name: str) -> None:
        """Note a file that no row uses."""
        self.findings.left_out.setdefault(reason, []).append(name)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Note a :class:`RowFault` with its place, and continue."""
        try:
            yield
        except RowFault as fault:
            self.fault(place, str(fault))

    def content(self, path: str, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes | None:
        """Return the bytes of a file, unzipped, UTF-16 as UTF-8; None after a fault."""
        try:
            content = read_file(Path(path), max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            whole = "" if Path(path).is_absolute() else f" (looked for {Path(path).absolute()})"
            self.fault(path, f"the manifest does not exist{whole}")
        except UnfitFileError as error:
            self.fault(path, f"the manifest {error}")
        except OSError as error:
            self.fault(path, f"the manifest cannot be read ({error.strerror})")
        except ValueError:
            self.fault(f"{path!r}", "no file can have this name")
        else:
            with self.at(path):
                return as_utf8(content)
        return None

    def lines(
        self, path: str, keep_blank: bool = False, max_bytes: int = MAX_LINE_BYTES
    ) -> Iterator[tuple[int, str]]:
        """Yield the lines of a UTF-8 file with their numbers, from 1; a longer one is a fault."""
        content = self.content(path)
        if content is None:
            return
        content = content.removeprefix(codecs.BOM_UTF8)
        if not content.strip():
            self.fault(path, "the manifest is empty")
            return
        for line, raw in enumerate(io.BytesIO(content), start=1):
            if raw.strip() or keep_blank:
                with self.at(f"{path}:{line}"):
                    if len(raw) > max_bytes:
                        raise RowFault(f"the line has more than {max_bytes:,} bytes")
                    yield line, decoded(raw.removesuffix(b"\n"))

    def json_objects(self, path: str) -> Iterator[tuple[int, Fields]]:
        """Yield the objects of a JSON Lines file with their line numbers."""
        for line, text in self.lines(path):
            with self.at(f"{path}:{line}"):
                value = parse_json(text)
                if not isinstance(value, dict):
                    raise RowFault(f"expected a JSON object, found {text:.60}")
                yield line, value

    def json_samples(self, path: str) -> Iterator[tuple[int, Fields]]:
        """Yield the objects of a JSON array with their numbers, or as :meth:`json_objects`."""
        if not self._is_array(path):
            yield from self.json_objects(path)
            return
        with self.at(path):
            value = self.json_document(path)
            yield from self.numbered(value if isinstance(value, list) else [], path)

    def _is_array(self, path: str) -> bool:
        content = self.for_a_look().content(path) or b""
        return content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")

    def json_document(self, path: str) -> Any:
        """Return the value of a JSON file; None after a fault of its lines.

        Raises:
            RowFault: The text is not JSON, or has more than ``MAX_JSON_BYTES``.
        """
        lines = [text for _, text in self.lines(path, keep_blank=True, max_bytes=MAX_JSON_BYTES)]
        if sum(map(len, lines)) > MAX_JSON_BYTES:
            raise RowFault(
                f"more than {MAX_JSON_BYTES:,} characters in one JSON value; save it as JSON Lines"
            )
        return parse_json("\n".join(lines)) if lines else None

    def numbered(self, values: list[Any], path: str) -> Iterator[tuple[int, Fields]]:
        """Yield the JSON objects among ``values`` with their numbers, from 1."""
        for number, value in enumerate(values, start=1):
            with self.at(f"{path}:{number}"):
                if not isinstance(value, dict):
                    raise RowFault(f"expected a JSON object as sample {number}")
                yield number, value

    def transcript(self, path: str) -> str:
        """Return the text of a transcript; an empty one is left to the validation.

        Raises:
            RowFault: There is no such file, it is not UTF-8 text of at most
                ``MAX_TRANSCRIPT_BYTES``, or it holds more than the words.
        """
        self.findings.transcripts[path] = state_of(path)
        try:
            content = as_utf8(read_file(Path(path), MAX_TRANSCRIPT_BYTES))
            text = decoded(content.removeprefix(codecs.BOM_UTF8), path).strip()
        except FileNotFoundError:
            raise RowFault(f"the transcript {path} does not exist") from None
        except UnfitFileError as error:
            raise RowFault(f"the transcript {path} {error}") from None
        except OSError as error:
            raise RowFault(f"the transcript {path} cannot be read ({error.strerror})") from None
        except ValueError:
            raise RowFault(f"the transcript {path!r:.60} is not a file name") from None
        if kind := kind_of_transcript(text):
            raise RowFault(f"the transcript holds {kind}; write what is said there, and no more")
        return text


def as_utf8(content: bytes) -> bytes:
    """Return text that begins with the byte order mark of UTF-16 as UTF-8; any other unchanged.

    Raises:
        RowFault: It is not whole UTF-16.
    """
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    try:
        return content.decode("utf-16").encode()
    except UnicodeError as error:
        raise RowFault(f"not valid UTF-16 ({error}); save it as UTF-8") from None


def decoded(raw: bytes, name: str = "") -> str:
    """Return UTF-8 text.

    Raises:
        RowFault: A byte of it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        subject = f"{name} is " if name else ""
        raise RowFault(f"{subject}not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None


def parse_json(text: str) -> Any:
    """Return the value of JSON text.

    Raises:
        RowFault: The text is not JSON, nests too deeply, has an object of too many keys or gives a
            key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        raise RowFault(f"not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise RowFault(f"not readable JSON: {error}") from None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> Fields:
    """Return a JSON object; json alone would drop all but the last value of a repeated key."""
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object of {len(pairs):,} keys; {MAX_KEYS:,} is the most")
    if repeated := repeated_name([key for key, _ in pairs]):
        raise ValueError(f"the key {repeated!r} is given twice")
    return dict(pairs)


def repeated_name(names: Iterable[str]) -> str | None:
    """Return the first name that is given more than once."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def renamed(fields: Fields, columns: Mapping[str, str]) -> Fields:
    """Return ``fields`` under our keys; ``columns`` gives the manifest's names of ours."""
    others = {k: v for k, v in fields.items() if k not in {*columns, *columns.values()}}
    return others | {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}
