"""The table of rows that ``list_rows`` writes and ``validate`` reads."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.manifests.row import ManifestRows, Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import ROWS
from higgs_pipe.data.tables import open_table, write_table

PATHS = ("audio_path", "ref_audio_path")
# What many rows say alike.
SHARED = ("manifest", "audio", "speaker", "language", "scene", "dialogue_id", "split")
ROWS_AT_ONCE = 2_000


def write_rows(path: Path, manifest: ManifestRows, recordings_stamp: str = "") -> None:
    """Write the rows of all manifests, in order.

    Args:
        path: The table.
        manifest: The rows.
        recordings_stamp: Written to the metadata. Another stamp gives other bytes, so that
            Snakemake runs ``judge_clips`` after each ``list_rows``; otherwise it would take the
            shards of clips for updated, and encode all of them again.
    """
    rows = [_columns(row) for row in manifest.rows]
    metadata = {
        "ignored_keys": manifest.ignored_keys,
        "notes": manifest.notes,
        "left_out": manifest.left_out,
        "recordings_stamp": recordings_stamp,
    }
    write_table(path, ROWS, rows, metadata)


class StoredRows:
    """Rows on disk that :func:`write_rows` wrote; each loop reads them anew, a few at a time.

    Args:
        path: The table.
        changed: Changes each row that is read.

    Raises:
        UserError: The table is missing or of another version.
    """

    def __init__(self, path: Path, changed: Callable[[Row], Row] = lambda row: row) -> None:
        self._table, stamp = open_table(path, ROWS)
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
            known: dict[str, Any] = {}
            for columns in found.to_pylist():
                yield self._changed(_row(columns, known))

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
    rows = tuple(stored if clip_ids is None else stored.with_ids(clip_ids))
    return ManifestRows(rows, stored.ignored_keys, stored.notes, stored.left_out)


def _columns(row: Row) -> dict[str, Any]:
    columns = {field.name: getattr(row, field.name) for field in fields(Row)}
    for name in PATHS:
        columns[name] = None if columns[name] is None else str(columns[name])
    conversation = columns.pop("conversation")
    columns["file_conversation"] = conversation and conversation.to_json()
    return columns


def _row(columns: dict[str, Any], known: dict[str, Any]) -> Row:
    """Return the row; equal values of many rows are one object in memory, kept in ``known``."""
    text = columns.pop("file_conversation")
    shared = {name: known.setdefault(value, value) for name in SHARED if (value := columns[name])}
    paths = {name: None if columns[name] is None else Path(columns[name]) for name in PATHS}
    return Row(
        **columns | shared | paths, conversation=text and Conversation.from_json(text, Span.of)
    )
