"""The rows of the manifests as a table, and what must be measured to judge them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from higgs_pipe.data.conversations import Part, Turn
from higgs_pipe.data.manifest import Manifest, Row
from higgs_pipe.data.segments import Segment
from higgs_pipe.data.tables import ROWS, read_table, write_table

PATHS = ("audio_path", "ref_audio_path")


def target_of(row: Row) -> Segment:
    """What the row is a clip of."""
    return Segment(str(row.audio_path), row.start_seconds, row.end_seconds)


def reference_of(row: Row) -> Segment | None:
    """The row's own reference recording: always a whole file."""
    return None if row.ref_audio_path is None else Segment(str(row.ref_audio_path))


def segments_of(row: Row) -> list[Segment]:
    """Everything that must be measured to judge the row."""
    segments = [target_of(row)]
    if reference := reference_of(row):
        segments.append(reference)
    for turn in row.conversation or ():
        segments += [Segment(str(part.audio_path)) for part in turn.parts if part.audio_path]
    return segments


def write_rows(path: Path, manifest: Manifest) -> None:
    """Write the rows of all manifests, in order."""
    rows = [_columns(row) for row in manifest.rows]
    write_table(path, ROWS, rows, {"ignored_keys": manifest.ignored_keys})


def read_rows(path: Path) -> Manifest:
    """What :func:`write_rows` wrote.

    Raises:
        UserError: The table is missing or of another version.
    """
    table, stamp = read_table(path, ROWS)
    return Manifest(tuple(_row(columns) for columns in table.to_pylist()), stamp["ignored_keys"])


def conversation_text(conversation: Sequence[Turn] | None) -> str | None:
    """The JSON text of a conversation's turns, for a column of a table."""
    if conversation is None:
        return None
    turns = [
        {
            "role": turn.role,
            "parts": [
                {"audio_path": str(part.audio_path)} if part.audio_path else {"text": part.text}
                for part in turn.parts
            ],
            "is_target": turn.is_target,
        }
        for turn in conversation
    ]
    return json.dumps(turns, ensure_ascii=False)


def _conversation(text: str | None) -> tuple[Turn, ...] | None:
    if text is None:
        return None
    return tuple(
        Turn(turn["role"], tuple(_part(part) for part in turn["parts"]), turn["is_target"])
        for turn in json.loads(text)
    )


def _part(part: Mapping[str, str]) -> Part:
    if "text" in part:
        return Part(text=part["text"])
    return Part(audio_path=Path(part["audio_path"]))


def _columns(row: Row) -> dict[str, Any]:
    columns = {field.name: getattr(row, field.name) for field in fields(Row)}
    for name in PATHS:
        columns[name] = None if columns[name] is None else str(columns[name])
    return columns | {"conversation": conversation_text(row.conversation)}


def _row(columns: Mapping[str, Any]) -> Row:
    paths = {name: None if columns[name] is None else Path(columns[name]) for name in PATHS}
    return Row(**{**columns, **paths, "conversation": _conversation(columns["conversation"])})
