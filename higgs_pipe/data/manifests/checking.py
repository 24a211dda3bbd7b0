"""Checks of a row as its reader returns it: a checked row, or all that is wrong with it."""

import os
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

from higgs_pipe.data.conversation import SCENE, Conversation
from higgs_pipe.data.manifests.fields import (
    DECLARED_KEYS,
    OUR_KEYS,
    REQUIRED_KEYS,
    SECONDS_KEYS,
    Fields,
    as_number,
    is_encodable,
    is_number,
    is_whole_number,
    shown,
)
from higgs_pipe.data.manifests.formats.roles import is_audio_path
from higgs_pipe.data.manifests.paths import meant_path
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.source import RawRow
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.planning.bounds import MAX_TEXT_CHARS

# The ids that `validate` gives to reference recordings.
RESERVED_ID = re.compile(r"ref-[0-9a-f]{16}")
# A scene in a word or a few, such as quiet_room.
SCENE_TAG = re.compile(r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*|[a-z0-9]+(?:[ -][a-z0-9]+){0,2}")
# What people and tools write where they do not know.
NOT_KNOWN = frozenset({"unknown", "unknown_speaker", "none", "null", "nan", "n/a", "undefined"})
MAX_KILOHERTZ = 1000  # a sample rate below is in kHz


def faults_of(raw: RawRow) -> list[str]:
    """Return everything in a row that no later stage could use."""
    return [*_type_faults(raw)] or [*_value_faults(raw.fields)]


def _type_faults(raw: RawRow) -> Iterator[str]:
    """Yield what is missing, is of another type, or is no text that can be stored."""
    fields = raw.fields
    others = ", ".join(repr(key) for key in fields if key not in OUR_KEYS)
    found = f"; the row has {others:.200}, which `columns` can name" if others else ""
    for key in REQUIRED_KEYS:
        if fields.get(key) is None:
            yield f"the key {key!r} is missing{found}"
    for key, value in fields.items():
        if not is_encodable(key):
            yield f"the key {key!r} is not valid text"
        if key not in OUR_KEYS or value is None or key in DECLARED_KEYS:
            continue
        if key in SECONDS_KEYS:
            if not is_number(value) or value < 0:
                yield f"`{key}` must be a number of seconds, found {shown(value)}"
        elif key == "turn":
            if not is_whole_number(value):
                yield f"`turn` must be a whole number from 0, found {shown(value)}"
        elif not isinstance(value, str):
            yield f"`{key}` must be a string, found {shown(value)}"
        elif len(value) > MAX_TEXT_CHARS:
            yield f"`{key}` has more than {MAX_TEXT_CHARS:,} characters: {value[:60]!r}"
        elif not is_encodable(value):
            yield f"`{key}` is not valid text: {value!r:.60}"
    turns = raw.conversation.turns if raw.conversation else ()
    for number, turn in enumerate(turns, start=1):
        for text in (part if isinstance(part, str) else part.audio_path for part in turn.parts):
            if len(text) > MAX_TEXT_CHARS:
                yield f"turn {number} has more than {MAX_TEXT_CHARS:,} characters"
            elif not is_encodable(text):
                yield f"turn {number} is not valid text: {text!r:.60}"


def _value_faults(fields: Fields) -> Iterator[str]:
    """Yield what contradicts itself or cannot be what it should be, in fields of the right type."""
    if not fields["audio"].strip():
        yield "`audio` is blank"
    split = _optional(fields, "split")
    if split not in (None, TRAIN, EVAL):
        yield f"`split` must be {TRAIN!r} or {EVAL!r}, found {split!r}"
    if (_optional(fields, "ref_audio") is None) != (_optional(fields, "ref_text") is None):
        yield "`ref_audio` and `ref_text` must be given together"
    if (_optional(fields, "dialogue_id") is None) != (fields.get("turn") is None):
        yield "`dialogue_id` and `turn` must be given together"
    start_seconds, end_seconds = _segment(fields)
    if end_seconds is not None and end_seconds <= (start_seconds or 0):
        yield (
            f"`end_seconds` must be above `start_seconds`, found {end_seconds:g} and "
            f"{start_seconds or 0:g}"
        )
    if (language := _optional(fields, "language")) and not is_language(language):
        yield f"`language` is not a language: {language!r:.60}"
    for key in ("text", "ref_text"):
        if is_audio_path(fields.get(key) or "") and " " not in fields[key].strip():
            yield f"`{key}` is the name of a file: {fields[key]!r:.60}"
    if RESERVED_ID.fullmatch(_clip_id(fields)):
        yield f"the id {_clip_id(fields)!r} has the form of the ids of reference recordings"


def _optional(fields: Fields, key: str) -> str | None:
    """Return a text, composed and without white space around it, or None for a blank one."""
    value = cast("str | None", fields.get(key))
    return _composed(value.strip()) if value and value.strip() else None


def _segment(fields: Fields) -> tuple[float | None, float | None]:
    start_seconds, end_seconds = (fields.get(key) for key in SECONDS_KEYS)
    return (
        None if start_seconds is None else float(start_seconds),
        None if end_seconds is None else float(end_seconds),
    )


def _clip_id(fields: Fields) -> str:
    """Return the row's id, or one made from its audio path and its segment."""
    if clip_id := _optional(fields, "id"):
        return clip_id
    # As written: a Path would tidy it up.
    stem: str = os.path.splitext(fields["audio"])[0]  # noqa: PTH122
    start_seconds, end_seconds = _segment(fields)
    if start_seconds is None and end_seconds is None:
        return stem
    return f"{stem}_{start_seconds or 0.0}-{'end' if end_seconds is None else end_seconds}"


def checked_row(raw: RawRow, root: Path, extract_to: Path | None = None) -> Row:
    """Return a row without faults: paths absolute, texts composed (NFC), scenes as sentences.

    Args:
        raw: The row as its reader returns it.
        root: Folder that its paths are relative to.
        extract_to: Folder for recordings embedded in the manifest, if it may have any.
    """
    fields = raw.fields
    ref_audio = fields.get("ref_audio") if _optional(fields, "ref_audio") else None
    audio_path = meant_path(root, fields["audio"])
    ref_audio_path = meant_path(root, ref_audio) if ref_audio is not None else None
    start_seconds, end_seconds = _segment(fields)
    conversation = raw.conversation and _absolute(raw.conversation, root)
    recordings = conversation.utterances() if conversation else []
    paths = [audio_path, ref_audio_path, *(Path(u.recording.audio_path) for u in recordings)]
    scene = _optional(fields, "scene")
    seconds, sample_rate_hz = _declared(fields)
    own_folders = [root, extract_to or root]
    return Row(
        manifest=raw.file,
        line=raw.line,
        clip_id=_clip_id(fields),
        audio=fields["audio"],
        audio_path=audio_path,
        text=_composed(fields["text"]),
        speaker=_known(_optional(fields, "speaker")),
        language=_optional(fields, "language"),
        scene=scene and sentence_of_scene(scene),
        ref_audio_path=ref_audio_path,
        ref_text=_optional(fields, "ref_text"),
        split=_optional(fields, "split"),
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        dialogue_id=_optional(fields, "dialogue_id"),
        turn=None if fields.get("turn") is None else int(fields["turn"]),
        conversation=conversation,
        declared_seconds=seconds,
        declared_sample_rate_hz=sample_rate_hz,
        is_outside_root=any(
            path is not None and all(_is_outside(path, folder) for folder in own_folders)
            for path in paths
        ),
    )


def _absolute(conversation: Conversation[Span], root: Path) -> Conversation[Span]:
    """Return a conversation with absolute paths, composed texts and scenes as sentences."""
    found = conversation.map_recordings(
        lambda span: span._replace(audio_path=str(meant_path(root, span.audio_path)))
    ).map_texts(_composed)
    turns = (
        turn.map_texts(lambda text: sentence_of_scene(text) or text) if turn.role == SCENE else turn
        for turn in found.turns
    )
    return Conversation(tuple(turns))


def sentence_of_scene(scene: str) -> str | None:
    """Return a scene in the form that the model knows; None if a tag says that it is unknown.

    The trainer that writes ``quiet_room`` into its files trains on "Audio is recorded from quiet
    room.", and the model knows such sentences.
    """
    tag = scene.strip()
    if tag.lower() in NOT_KNOWN:
        return None
    if not SCENE_TAG.fullmatch(tag):
        return scene
    return f"Audio is recorded from {' '.join(re.split(r'[_ -]+', tag.lower()))}."


def _declared(fields: Fields) -> tuple[float | None, float | None]:
    """Return length and sample rate as the row declares them; None if it does not."""
    values = (as_number(fields.get(key)) for key in DECLARED_KEYS)
    seconds, sample_rate_hz = (
        float(value) if is_number(value) and value > 0 else None for value in values
    )
    if sample_rate_hz is not None and sample_rate_hz < MAX_KILOHERTZ:
        sample_rate_hz *= 1000
    return seconds, sample_rate_hz


def unusable_keys(fields: Fields) -> list[str]:
    """Return the keys of declared facts that are not numbers."""
    values = {key: as_number(fields.get(key)) for key in DECLARED_KEYS}
    return [key for key, value in values.items() if value is not None and not is_number(value)]


def _known(speaker: str | None) -> str | None:
    """Return a speaker, or None for a word that means unknown."""
    return None if speaker is None or speaker.strip().lower() in NOT_KNOWN else speaker


def _composed(text: str) -> str:
    """Return a text with composed characters (Unicode NFC), which tokenizers have seen most."""
    return unicodedata.normalize("NFC", text)


@cache
def is_language(value: str) -> bool:
    """Return whether a value may be a language: a code, or a name of a few words."""
    words = value.replace("(", " ").replace(")", " ").split()
    is_name = all(word[0].isupper() or not word.isascii() for word in words)
    has_sign = re.search(r"[.!?,;:。！？，]", value.strip()) is not None
    return len(words) <= 4 and not has_sign and (len(words) <= 2 or is_name)


def _is_outside(path: Path, root: Path) -> bool:
    """Return whether ``..`` or an absolute path leads out of the root; links are not followed."""
    return not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root))
