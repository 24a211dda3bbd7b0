"""Rows of manifests in columns: in memory as they are read, and in the table of ``list_rows``."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.data.arrow import to_arrow
from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import ROWS
from higgs_pipe.data.tables import open_table, write_parts
from higgs_pipe.planning.recordings import FileState

NAMES = tuple(field.name for field in fields(Row))
PATHS = ("audio_path", "ref_audio_path")
# What many rows say alike.
SHARED = ("manifest", "audio", "speaker", "language", "scene", "dialogue_id", "split")
ROWS_AT_ONCE = 2_000


class RowColumns:
    """Rows in memory as columns of ROWS, a fifth of their size as objects; made on access."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._parts: list[pa.Table] = []  # each of ROWS_AT_ONCE rows
        self._rest: list[Row] = []
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Add a row."""
        self._rest.append(row)
        if len(self._rest) == ROWS_AT_ONCE:
            self._parts.append(_to_arrow(self._rest))
            self._rest.clear()

    def __len__(self) -> int:
        return len(self._parts) * ROWS_AT_ONCE + len(self._rest)

    def __getitem__(self, index: int) -> Row:
        part, place = divmod(range(len(self))[index], ROWS_AT_ONCE)
        if part == len(self._parts):
            return self._rest[place]
        return next(_rows_of(self._parts[part].slice(place, 1)))

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            yield from _rows_of(part)
        yield from self._rest

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows as tables of ROWS, some at a time."""
        yield from self._parts
        if self._rest:
            yield _to_arrow(self._rest)


@dataclass(frozen=True)
class ManifestRows:
    """The rows of all manifests, in order, with notes on how they were read."""

    rows: RowColumns
    ignored_keys: dict[str, int]  # how many rows had each unknown key
    notes: tuple[str, ...] = ()  # such as names of columns that were guessed
    left_out: dict[str, list[str]] = field(default_factory=dict)  # files below folders, by reason
    transcripts: Mapping[str, FileState] = field(default_factory=dict)  # those read, by their paths


def write_rows(path: Path, manifest: ManifestRows, recordings_stamp: str = "") -> None:
    """Write the rows of all manifests, in order.

    Args:
        path: The table.
        manifest: The rows.
        recordings_stamp: Written to the metadata. Another stamp gives other bytes, so that
            Snakemake runs ``judge_clips`` after each ``list_rows``; otherwise it would take the
            shards of clips for updated, and encode all of them again.
    """
    metadata = {
        "ignored_keys": manifest.ignored_keys,
        "notes": manifest.notes,
        "left_out": manifest.left_out,
        "recordings_stamp": recordings_stamp,
    }
    write_parts(path, ROWS, manifest.rows.tables(), metadata)


class StoredRows:
    """Rows on disk that :func:`write_rows` wrote; each loop reads them anew, a few at a time.

    Args:
        path: The table.
        changed: Changes each row that is read.

    Raises:
        UserError: The table is missing or of another version.
    """

    def __init__(self, path: Path, changed: Callable[[Row], Row] = lambda row: row) -> None:
        self._table = open_table(path, ROWS)
        stamp = self._table.stamp()
        self._changed = changed
        self.ignored_keys: dict[str, int] = stamp["ignored_keys"]
        self.notes: tuple[str, ...] = tuple(stamp["notes"])
        self.left_out: dict[str, list[str]] = stamp["left_out"]

    def __len__(self) -> int:
        return int(self._table.metadata.num_rows)

    def __iter__(self) -> Iterator[Row]:
        return self.where(None)

    def where(self, is_wanted: pc.Expression | None) -> Iterator[Row]:
        """Yield the rows whose columns fulfil a condition, all without one."""
        for batch in self._table.iter_batches(ROWS_AT_ONCE):
            part = pa.Table.from_batches([batch])
            found = part if is_wanted is None else part.filter(is_wanted)
            yield from map(self._changed, _rows_of(found))

    def with_ids(self, clip_ids: Collection[str]) -> Iterator[Row]:
        """Yield the rows with some ids."""
        return self.where(pc.field("clip_id").isin(pa.array(sorted(clip_ids), pa.string())))


def read_rows(path: Path, clip_ids: Collection[str] | None = None) -> ManifestRows:
    """Read what :func:`write_rows` wrote.

    Args:
        path: The table.
        clip_ids: Read only these rows.

    Raises:
        UserError: The table is missing or of another version.
    """
    stored = StoredRows(path)
    rows = RowColumns(stored if clip_ids is None else stored.with_ids(clip_ids))
    return ManifestRows(rows, stored.ignored_keys, stored.notes, stored.left_out)


def _to_arrow(rows: Iterable[Row]) -> pa.Table:
    return to_arrow(ROWS, [_columns(row) for row in rows])


def _columns(row: Row) -> dict[str, Any]:
    columns = {name: getattr(row, name) for name in NAMES}
    for name in PATHS:
        columns[name] = None if columns[name] is None else str(columns[name])
    conversation = columns.pop("conversation")
    columns["file_conversation"] = conversation and conversation.to_json()
    return columns


def _rows_of(table: pa.Table) -> Iterator[Row]:
    """Yield the rows of a part of ROWS; equal values of many rows are one object in memory."""
    texts: dict[str, str] = {}
    paths: dict[str, Path] = {}
    for columns in table.to_pylist():
        for name in SHARED:
            if (value := columns[name]) is not None:
                columns[name] = texts.setdefault(value, value)
        for name in PATHS:
            if (value := columns[name]) is not None:
                columns[name] = paths.get(value) or paths.setdefault(value, Path(value))
        conversation = columns.pop("file_conversation")
        columns["conversation"] = conversation and Conversation.from_json(conversation, Span.of)
        yield Row(**columns)
