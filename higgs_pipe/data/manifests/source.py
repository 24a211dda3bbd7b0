"""What all readers share: lines, JSON objects, and a place for every fault."""

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.manifests.fields import Fields, RowFault
from higgs_pipe.data.spans import Span


@dataclass(frozen=True)
class RawRow:
    """One utterance before it is checked: our keys and unknown ones, values as in ``file``.

    The paths in a ``conversation`` are as written too.
    """

    file: str
    line: int
    fields: Fields
    conversation: Conversation[Span] | None = None


RawRows = Iterator[RawRow]


@dataclass(frozen=True)
class Source:
    """A manifest that is being read; what is wrong with it goes to ``faults``."""

    path: str
    root: Path
    columns: Mapping[str, str]
    faults: list[str]

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Note a :class:`RowFault` with its place, and go on."""
        try:
            yield
        except RowFault as fault:
            self.faults.append(f"{place}: {fault}")

    def content(self, path: str) -> bytes | None:
        """Return the bytes of a file, unzipped; None after a fault."""
        try:
            content = Path(path).read_bytes()
            if content.startswith(b"\x1f\x8b"):
                content = gzip.decompress(content)
        except (FileNotFoundError, NotADirectoryError):
            self.faults.append(f"{path}: the manifest does not exist")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            self.faults.append(f"{path}: the manifest is not a complete gzip file ({error})")
        except OSError as error:
            self.faults.append(f"{path}: the manifest cannot be read ({error.strerror})")
        except ValueError:
            self.faults.append(f"{path!r}: no file can have this name")
        else:
            return content
        return None

    def lines(self, path: str, keep_blank: bool = False) -> Iterator[tuple[int, str]]:
        """Yield the lines of a UTF-8 file with their numbers, from 1."""
        content = self.content(path)
        if content is None:
            return
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self.faults.append(f"{path}:1: UTF-16, not UTF-8; save the file as UTF-8")
            return
        content = content.removeprefix(codecs.BOM_UTF8)
        if not content.strip():
            self.faults.append(f"{path}: the manifest is empty")
            return
        for line, raw in enumerate(content.split(b"\n"), start=1):
            if raw.strip() or keep_blank:
                with self.at(f"{path}:{line}"):
                    yield line, decoded(raw)

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
        content = Source(path, self.root, {}, []).content(path)
        if content is None or not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield from self.json_objects(path)
            return
        with self.at(path):
            value = self.json_document(path)
            yield from self.numbered(value if isinstance(value, list) else [], path)

    def json_document(self, path: str) -> Any:
        """Return the value of a JSON file; None after a fault of its lines.

        Raises:
            RowFault: The text is not JSON.
        """
        lines = [text for _, text in self.lines(path, keep_blank=True)]
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
            RowFault: There is no such file, or it is not UTF-8 text.
        """
        try:
            return decoded(Path(path).read_bytes().removeprefix(codecs.BOM_UTF8), path).strip()
        except FileNotFoundError:
            raise RowFault(f"the transcript {path} does not exist") from None
        except OSError as error:
            raise RowFault(f"the transcript {path} cannot be read ({error.strerror})") from None
        except ValueError:
            raise RowFault(f"the transcript {path!r:.60} is not a file name") from None


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
        RowFault: The text is not JSON, nests too deeply or gives a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        raise RowFault(f"not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise RowFault(f"not JSON that can be read: {error}") from None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> Fields:
    """Return a JSON object; json alone would drop all but the last value of a repeated key."""
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
