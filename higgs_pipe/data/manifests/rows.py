"""The rows of the manifests as a table, and what must be measured to judge them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from higgs_pipe.data.manifests.conversations import Conversation, Part, Turn, own_place, words_of
from higgs_pipe.data.manifests.reading import Manifest, Row
from higgs_pipe.data.segments import Segment
from higgs_pipe.data.specs import ROWS
from higgs_pipe.data.tables import read_table, write_table

PATHS = ("audio_path", "ref_audio_path")


def target_of(row: Row) -> Segment:
    """What the row is a clip of."""
    return Segment(str(row.audio_path), row.start_seconds, row.end_seconds)


def reference_of(row: Row) -> Segment | None:
    """The row's own reference recording: always a whole file."""
    return None if row.ref_audio_path is None else Segment(str(row.ref_audio_path))


class Heard(NamedTuple):
    """A recording in a row's conversation."""

    turn: int  # from 1
    segment: Segment
    text: str  # what is said there
    is_target: bool
    is_own: bool  # whether it is what the row is a clip of


def heard_in(row: Row) -> list[Heard]:
    """The recordings of the row's conversation, in order."""
    turns = row.conversation or ()
    own = own_place(turns)
    return [
        Heard(index + 1, _segment(part), words_of(turns, index), turn.is_target, is_own)
        for index, turn in enumerate(turns)
        for number, part in enumerate(turn.parts)
        if part.audio_path is not None
        for is_own in ((index, number) == own,)
    ]


def _segment(part: Part) -> Segment:
    return Segment(str(part.audio_path), part.start_seconds, part.end_seconds)


def segments_of(row: Row) -> list[Segment]:
    """Everything that must be measured to judge the row."""
    segments = [target_of(row)]
    if reference := reference_of(row):
        segments.append(reference)
    return [*segments, *(heard.segment for heard in heard_in(row))]


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


def conversation_text(turns: Conversation, recordings: Iterable[Mapping[str, Any]]) -> str:
    """The JSON text of a conversation's turns, for a column of a table.

    Args:
        turns: The turns.
        recordings: What stands for each recording, in order.
    """
    names = iter(recordings)
    return json.dumps(
        [
            {
                "role": turn.role,
                "parts": [
                    {"text": part.text} if part.audio_path is None else next(names)
                    for part in turn.parts
                ],
                "is_target": turn.is_target,
            }
            for turn in turns
        ],
        ensure_ascii=False,
    )


def _conversation(text: str | None) -> Conversation | None:
    if text is None:
        return None
    return tuple(
        Turn(turn["role"], tuple(_part(part) for part in turn["parts"]), turn["is_target"])
        for turn in json.loads(text)
    )


def _part(part: Mapping[str, Any]) -> Part:
    if "text" in part:
        return Part(text=part["text"])
    return Part(None, Path(part["audio_path"]), part["start_seconds"], part["end_seconds"])


def _columns(row: Row) -> dict[str, Any]:
    columns = {field.name: getattr(row, field.name) for field in fields(Row)}
    for name in PATHS:
        columns[name] = None if columns[name] is None else str(columns[name])
    if row.conversation is not None:
        recordings = [heard.segment._asdict() for heard in heard_in(row)]
        columns["conversation"] = conversation_text(row.conversation, recordings)
    return columns


def _row(columns: Mapping[str, Any]) -> Row:
    paths = {name: None if columns[name] is None else Path(columns[name]) for name in PATHS}
    return Row(**{**columns, **paths, "conversation": _conversation(columns["conversation"])})
