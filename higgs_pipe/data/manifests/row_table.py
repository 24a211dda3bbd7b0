"""The table of rows that ``list_rows`` writes and ``validate`` reads."""

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.manifests.row import ManifestRows, Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import ROWS
from higgs_pipe.data.tables import read_table, write_table

PATHS = ("audio_path", "ref_audio_path")
# What many rows say alike.
SHARED = ("manifest", "audio", "speaker", "language", "scene", "dialogue_id", "split")
ROWS_AT_ONCE = 10_000


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


def read_rows(path: Path, clip_ids: Collection[str] | None = None) -> ManifestRows:
    """Read what :func:`write_rows` wrote.

    Args:
        path: The table.
        clip_ids: Read only these rows.

    Raises:
        UserError: The table is missing or of another version.
    """
    table, stamp = read_table(path, ROWS)
    if clip_ids is not None:
        table = table.filter(pc.is_in(table["clip_id"], pa.array(sorted(clip_ids), pa.string())))
    known: dict[str, Any] = {}
    batches = table.to_batches(max_chunksize=ROWS_AT_ONCE)
    rows = tuple(_row(columns, known) for batch in batches for columns in batch.to_pylist())
    return ManifestRows(rows, stamp["ignored_keys"], tuple(stamp["notes"]), stamp["left_out"])


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
