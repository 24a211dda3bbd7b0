"""From a row as its reader gives it to a checked one, or to all that is wrong with it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from higgs_pipe.data.manifests.fields import (
    OUR_KEYS,
    REQUIRED_KEYS,
    SECONDS_KEYS,
    Fields,
    is_encodable,
    is_number,
    is_whole_number,
    shown,
)
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.source import RawRow
from higgs_pipe.data.specs import EVAL, TRAIN

# The ids that `validate` gives to reference recordings.
RESERVED_ID = re.compile(r"ref-[0-9a-f]{16}")


def faults_of(raw: RawRow, names: Mapping[str, str]) -> list[str]:
    """Return everything about one row that no later stage could use.

    ``names`` are the manifest's names of our keys.
    """
    fields = raw.fields
    faults = [
        f"the key {names.get(key, key)!r} is missing"
        for key in REQUIRED_KEYS
        if fields.get(key) is None
    ]
    for key, value in fields.items():
        if not is_encodable(key):
            faults.append(f"the key {key!r} is not valid text")
        if key not in OUR_KEYS or value is None:
            continue
        if key in SECONDS_KEYS:
            if not is_number(value) or value < 0:
                faults.append(f"`{key}` must be a number of seconds, found {shown(value)}")
        elif key == "turn":
            if not is_whole_number(value):
                faults.append(f"`turn` must be a whole number from 0, found {shown(value)}")
        elif not isinstance(value, str):
            faults.append(f"`{key}` must be a string, found {shown(value)}")
        elif not is_encodable(value):
            faults.append(f"`{key}` is not valid text: {value!r:.60}")
    turns = raw.conversation.turns if raw.conversation else ()
    for number, turn in enumerate(turns, start=1):
        for text in (part if isinstance(part, str) else part.audio_path for part in turn.parts):
            if not is_encodable(text):
                faults.append(f"turn {number} is not valid text: {text!r:.60}")
    if faults:
        return faults
    if not fields["audio"].strip():
        faults.append("`audio` is blank")
    split = _optional(fields, "split")
    if split not in (None, TRAIN, EVAL):
        faults.append(f"`split` must be {TRAIN!r} or {EVAL!r}, found {split!r}")
    if (_optional(fields, "ref_audio") is None) != (_optional(fields, "ref_text") is None):
        faults.append("`ref_audio` and `ref_text` must be given together")
    if (_optional(fields, "dialogue_id") is None) != (fields.get("turn") is None):
        faults.append("`dialogue_id` and `turn` must be given together")
    start_seconds, end_seconds = _segment(fields)
    if end_seconds is not None and end_seconds <= (start_seconds or 0):
        faults.append(
            f"`end_seconds` must be above `start_seconds`, found {end_seconds:g} and "
            f"{start_seconds or 0:g}"
        )
    if RESERVED_ID.fullmatch(_clip_id(fields)):
        faults.append(f"the id {_clip_id(fields)!r} is of the form kept for reference rawings")
    return faults


def _optional(fields: Fields, key: str) -> str | None:
    """Return a text, or None for a blank one."""
    value = cast("str | None", fields.get(key))
    return value if value and value.strip() else None


def _segment(fields: Fields) -> tuple[float | None, float | None]:
    start_seconds, end_seconds = (fields.get(key) for key in SECONDS_KEYS)
    return (
        None if start_seconds is None else float(start_seconds),
        None if end_seconds is None else float(end_seconds),
    )


def _clip_id(fields: Fields) -> str:
    """Return the row's id, or one made of its audio path and its segment."""
    if clip_id := _optional(fields, "id"):
        return clip_id
    # As written: a Path would tidy it up.
    stem: str = os.path.splitext(fields["audio"])[0]  # noqa: PTH122
    start_seconds, end_seconds = _segment(fields)
    if start_seconds is None and end_seconds is None:
        return stem
    return f"{stem}_{start_seconds or 0.0}-{'end' if end_seconds is None else end_seconds}"


def checked_row(raw: RawRow, root: Path) -> Row:
    """Return a row without faults, its paths absolute."""
    fields = raw.fields
    ref_audio = _optional(fields, "ref_audio")
    audio_path = root / fields["audio"]
    ref_audio_path = root / ref_audio if ref_audio is not None else None
    start_seconds, end_seconds = _segment(fields)
    conversation = raw.conversation and raw.conversation.map_recordings(
        lambda span: span._replace(audio_path=str(root / span.audio_path))
    )
    utterances = conversation.utterances() if conversation else []
    return Row(
        manifest=raw.file,
        line=raw.line,
        clip_id=_clip_id(fields),
        audio=fields["audio"],
        audio_path=audio_path,
        text=fields["text"],
        speaker=_optional(fields, "speaker"),
        language=_optional(fields, "language"),
        scene=_optional(fields, "scene"),
        ref_audio_path=ref_audio_path,
        ref_text=_optional(fields, "ref_text"),
        split=_optional(fields, "split"),
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        dialogue_id=_optional(fields, "dialogue_id"),
        turn=None if fields.get("turn") is None else int(fields["turn"]),
        conversation=conversation,
        is_outside_root=any(
            path is not None and _is_outside(path, root)
            for path in (
                audio_path,
                ref_audio_path,
                *(Path(heard.recording.audio_path) for heard in utterances),
            )
        ),
    )


def _is_outside(path: Path, root: Path) -> bool:
    """Return whether ``..`` or an absolute path leads out of the root; links are not followed."""
    return not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root))
