"""The user's manifests: an utterance a row, in any of the formats, checked row by row."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.conversation import Conversation, Utterance
from higgs_pipe.data.manifests.formats import (
    LOOKED_FOR,
    OUR_KEYS,
    READERS,
    REQUIRED_KEYS,
    SECONDS_KEYS,
    TABLES,
    Fields,
    Record,
    Source,
    detect,
)
from higgs_pipe.data.manifests.values import is_encodable, is_number, is_whole_number, shown
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.errors import UserError, list_offenders

# The ids that `validate` gives to reference recordings.
RESERVED_ID = re.compile(r"ref-[0-9a-f]{16}")

ROW_EXAMPLE = '{"audio": "wavs/a.wav", "text": "What is said."}'


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a manifest; ``audio`` is as written there, the paths are absolute.

    ``start_seconds`` and ``end_seconds`` are those of a segment of a longer recording; None is
    the recording's own start or end. Rows of one ``dialogue_id`` are its turns, in the order of
    ``turn``. A row with a ``conversation`` is trained on as that says; its ``audio_path`` is then
    the last target recording, and its ``text`` what is said there.
    """

    manifest: str
    line: int
    clip_id: str
    audio: str
    audio_path: Path
    text: str
    speaker: str | None
    language: str | None
    scene: str | None
    ref_audio_path: Path | None
    ref_text: str | None
    split: str | None
    start_seconds: float | None = None
    end_seconds: float | None = None
    dialogue_id: str | None = None
    turn: int | None = None
    conversation: Conversation[Span] | None = None
    is_outside_root: bool = False  # whether a path leads out of the manifest's root

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.manifest}:{self.line}"

    @property
    def span(self) -> Span:
        """The part of a file that the row is a clip of."""
        return Span(str(self.audio_path), self.start_seconds, self.end_seconds)

    @property
    def reference_span(self) -> Span | None:
        """The row's own reference recording: always a whole file."""
        return None if self.ref_audio_path is None else Span(str(self.ref_audio_path))

    @property
    def utterances(self) -> list[Utterance[Span]]:
        """The recordings of the row's conversation, in order; none without one."""
        return [] if self.conversation is None else self.conversation.utterances()

    @property
    def all_spans(self) -> list[Span]:
        """All that must be measured to judge the row."""
        references = [] if self.reference_span is None else [self.reference_span]
        return [self.span, *references, *(heard.recording for heard in self.utterances)]


@dataclass(frozen=True)
class Manifest:
    """The rows of all manifests, in order, and how many rows had each unknown key."""

    rows: tuple[Row, ...]
    ignored_keys: dict[str, int]


def read_manifests(manifests: Sequence[str | ManifestEntry]) -> Manifest:
    """Read and check the manifests; the audio is not looked at.

    A blank value of an optional key is as good as none. A row without an id takes its audio path
    without the suffix, and its segment if it is one.

    Args:
        manifests: Paths, or entries that say more of a manifest.

    Raises:
        UserError: A manifest is missing, empty, not UTF-8 or of no known format, or a line is not
            a row; lists every fault of every manifest.
    """
    faults: list[str] = []
    rows: dict[str, Row] = {}
    ignored_keys: Counter[str] = Counter()
    for manifest in manifests:
        entry = ManifestEntry(path=manifest) if isinstance(manifest, str) else manifest
        name, records = _read(entry, faults)
        names = {**TABLES.get(name, {}), **_columns(entry)}
        for record in records:
            fields = record.fields
            if row_faults := _faults_of(record, names):
                faults += [f"{record.file}:{record.line}: {fault}" for fault in row_faults]
                continue
            row = _row(record, _root(entry))
            first = rows.setdefault(row.clip_id, row)
            if first is not row:
                faults.append(
                    f"{row.place}: the id {row.clip_id!r} is taken by {first.place}; give each row "
                    "an `id` of its own (without one, a row takes its audio path)"
                )
            ignored_keys.update(fields.keys() - OUR_KEYS)
    if faults:
        raise UserError(
            f"the manifest has {len(faults):,} fault{'s' if len(faults) > 1 else ''}:\n"
            f"{list_offenders(faults)}\n"
            "Mend the manifest, or name another as `manifest` in config.yaml, and run again.\n"
            f"A manifest is UTF-8 text, a JSON object a line: {ROW_EXAMPLE}\n"
            "Other formats, each with an example: examples/manifests/README.md"
        )
    return Manifest(tuple(rows.values()), dict(sorted(ignored_keys.items())))


def _read(entry: ManifestEntry, faults: list[str]) -> tuple[str, list[Record]]:
    """The format of one manifest and its records; what is wrong goes to ``faults``."""
    columns = _columns(entry)
    name = detect(entry.path, columns) if entry.format == "auto" else entry.format
    if name is None:
        faults.append(
            f"{entry.path}: the manifest fits no format; looked for {LOOKED_FOR}. "
            "Or name its `format` in config.yaml"
        )
        return "auto", []
    if entry.columns and name not in TABLES:
        faults.append(f"{entry.path}: `columns` has no meaning for the format {name}; leave it out")
        return name, []
    num_faults = len(faults)
    records = list(READERS[name](Source(entry.path, _root(entry), columns, faults)))
    if not records and len(faults) == num_faults:
        faults.append(f"{entry.path}: the manifest is empty")
    for ours, theirs in columns.items():
        if records and not any(ours in record.fields for record in records):
            faults.append(f"{entry.path}: no row has {theirs!r}, which `columns` names as {ours}")
    given = {"speaker": entry.speaker, "language": entry.language, "split": entry.split}
    for record in records:
        for key, value in given.items():
            own = record.fields.get(key)
            if value is not None and (own is None or (isinstance(own, str) and not own.strip())):
                record.fields[key] = value
    return name, records


def _columns(entry: ManifestEntry) -> dict[str, str]:
    """The manifest's names of our keys."""
    return {str(ours): theirs for ours, theirs in entry.columns.items()}


def _root(entry: ManifestEntry) -> Path:
    """The folder that audio paths are relative to."""
    if entry.root is not None:
        return Path(entry.root).absolute()
    path = Path(entry.path)
    return (path if path.is_dir() else path.parent).absolute()


def _faults_of(record: Record, names: Mapping[str, str]) -> list[str]:
    """Everything about one row that no later stage could make sense of.

    ``names`` are the manifest's own of our keys.
    """
    fields = record.fields
    faults = [
        f"the key {names.get(key, key)!r} is missing"
        for key in REQUIRED_KEYS
        if fields.get(key) is None
    ]
    for key, value in fields.items():
        if not is_encodable(key):
            faults.append(f"the key {key!r} is no valid text")
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
            faults.append(f"`{key}` is no valid text: {value!r:.60}")
    turns = record.conversation.turns if record.conversation else ()
    for number, turn in enumerate(turns, start=1):
        for text in (part if isinstance(part, str) else part.audio_path for part in turn.parts):
            if not is_encodable(text):
                faults.append(f"turn {number} is no valid text: {text!r:.60}")
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
        faults.append(f"the id {_clip_id(fields)!r} is of the form kept for reference recordings")
    return faults


def _optional(fields: Fields, key: str) -> str | None:
    value: str | None = fields.get(key)
    return value if value and value.strip() else None


def _segment(fields: Fields) -> tuple[float | None, float | None]:
    start_seconds, end_seconds = (fields.get(key) for key in SECONDS_KEYS)
    return (
        None if start_seconds is None else float(start_seconds),
        None if end_seconds is None else float(end_seconds),
    )


def _clip_id(fields: Fields) -> str:
    if clip_id := _optional(fields, "id"):
        return clip_id
    # As written: a Path would tidy it up.
    stem: str = os.path.splitext(fields["audio"])[0]  # noqa: PTH122
    start_seconds, end_seconds = _segment(fields)
    if start_seconds is None and end_seconds is None:
        return stem
    return f"{stem}_{start_seconds or 0.0}-{'end' if end_seconds is None else end_seconds}"


def _row(record: Record, root: Path) -> Row:
    fields = record.fields
    ref_audio = _optional(fields, "ref_audio")
    audio_path = root / fields["audio"]
    ref_audio_path = root / ref_audio if ref_audio is not None else None
    start_seconds, end_seconds = _segment(fields)
    conversation = record.conversation and record.conversation.map_recordings(
        lambda span: span._replace(audio_path=str(root / span.audio_path))
    )
    utterances = conversation.utterances() if conversation else []
    return Row(
        manifest=record.file,
        line=record.line,
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
    """Whether ``..`` or an absolute path leads out of the root; links are not followed."""
    return not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root))
