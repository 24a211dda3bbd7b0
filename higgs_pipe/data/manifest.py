"""The user's manifest: JSON Lines, one utterance a line, paths relative to the manifest."""

import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_pipe.data.splits import EVAL, TRAIN
from higgs_pipe.errors import UserError, list_offenders

REQUIRED_KEYS = ("audio", "text")
OPTIONAL_KEYS = ("id", "speaker", "language", "scene", "ref_audio", "ref_text", "split")

# The ids that `validate` gives to reference recordings.
RESERVED_ID = re.compile(r"ref-[0-9a-f]{16}")

ROW_EXAMPLE = '{"audio": "wavs/a.wav", "text": "What is said."}'


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a manifest; ``audio`` is as written there, the paths are absolute."""

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

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.manifest}:{self.line}"


@dataclass(frozen=True)
class Manifest:
    """The rows of all manifests, in order, and how many rows had each unknown key."""

    rows: tuple[Row, ...]
    ignored_keys: dict[str, int]


def read_manifests(paths: Sequence[str]) -> Manifest:
    """Read and check the manifests; the audio is not looked at.

    A blank value of an optional key is as good as none. A row without an id takes its audio path
    without the suffix.

    Raises:
        UserError: A manifest is missing, empty or not UTF-8, or a line is not a row; lists every
            fault of every manifest.
    """
    faults: list[str] = []
    rows: dict[str, Row] = {}
    ignored_keys: Counter[str] = Counter()
    for path in paths:
        for line, fields in _read_objects(path, faults):
            if row_faults := _faults_of(fields):
                faults += [f"{path}:{line}: {fault}" for fault in row_faults]
                continue
            row = _row(path, line, fields)
            first = rows.setdefault(row.clip_id, row)
            if first is not row:
                faults.append(
                    f"{row.place}: the id {row.clip_id!r} is taken by {first.place}; give each row "
                    "an `id` of its own (without one, a row takes its audio path)"
                )
            ignored_keys.update(fields.keys() - {*REQUIRED_KEYS, *OPTIONAL_KEYS})
    if faults:
        raise UserError(
            f"the manifest has {len(faults):,} fault{'s' if len(faults) > 1 else ''}:\n"
            f"{list_offenders(faults)}\n"
            "Mend the manifest, or name another as `manifest` in config.yaml, and run again.\n"
            f"A manifest is UTF-8 text, a JSON object a line: {ROW_EXAMPLE}"
        )
    return Manifest(tuple(rows.values()), dict(sorted(ignored_keys.items())))


def _read_objects(path: str, faults: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """The objects of one manifest with their line numbers; what is wrong goes to ``faults``."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        faults.append(f"{path}: the manifest does not exist")
        return []
    except OSError as error:
        faults.append(f"{path}: the manifest cannot be read ({error.strerror})")
        return []
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        faults.append(f"{path}:1: not UTF-8 but UTF-16; save the file as UTF-8")
        return []
    objects = []
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        faults.append(f"{path}: the manifest is empty")
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeated_keys)
        except UnicodeDecodeError as error:
            faults.append(f"{path}:{line}: not UTF-8 (byte {error.start + 1}); save it as UTF-8")
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{line}: not JSON: {error.msg} (column {error.colno})")
        except (ValueError, RecursionError) as error:
            faults.append(f"{path}:{line}: not JSON that can be read: {error}")
        else:
            if isinstance(value, dict):
                objects.append((line, value))
            else:
                faults.append(f"{path}:{line}: expected a JSON object, found {raw.decode():.60}")
    return objects


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; json alone would drop all but the last value of a repeated key."""
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} is given twice")
    return dict(pairs)


def _faults_of(fields: dict[str, Any]) -> list[str]:
    """Everything about one row that no later stage could make sense of."""
    faults = [f"the key {key!r} is missing" for key in REQUIRED_KEYS if fields.get(key) is None]
    for key, value in fields.items():
        if not _is_encodable(key):
            faults.append(f"the key {key!r} is no valid text")
        if key not in {*REQUIRED_KEYS, *OPTIONAL_KEYS} or value is None:
            continue
        if not isinstance(value, str):
            faults.append(f"`{key}` must be a string, found {json.dumps(value):.60}")
        elif not _is_encodable(value):
            faults.append(f"`{key}` is no valid text: {value!r:.60}")
    if faults:
        return faults
    if not fields["audio"].strip():
        faults.append("`audio` is blank")
    split = _optional(fields, "split")
    if split not in (None, TRAIN, EVAL):
        faults.append(f"`split` must be {TRAIN!r} or {EVAL!r}, found {split!r}")
    if (_optional(fields, "ref_audio") is None) != (_optional(fields, "ref_text") is None):
        faults.append("`ref_audio` and `ref_text` must be given together")
    if RESERVED_ID.fullmatch(_clip_id(fields)):
        faults.append(f"the id {_clip_id(fields)!r} is of the form kept for reference recordings")
    return faults


def _is_encodable(text: str) -> bool:
    """Whether UTF-8 and a file system can take it: no half of a surrogate pair, no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _optional(fields: dict[str, Any], key: str) -> str | None:
    value: str | None = fields.get(key)
    return value if value and value.strip() else None


def _clip_id(fields: dict[str, Any]) -> str:
    # As written: a Path would tidy it up.
    return _optional(fields, "id") or os.path.splitext(fields["audio"])[0]  # noqa: PTH122


def _row(manifest: str, line: int, fields: dict[str, Any]) -> Row:
    folder = Path(manifest).parent.absolute()
    ref_audio = _optional(fields, "ref_audio")
    return Row(
        manifest=manifest,
        line=line,
        clip_id=_clip_id(fields),
        audio=fields["audio"],
        audio_path=folder / fields["audio"],
        text=fields["text"],
        speaker=_optional(fields, "speaker"),
        language=_optional(fields, "language"),
        scene=_optional(fields, "scene"),
        ref_audio_path=folder / ref_audio if ref_audio is not None else None,
        ref_text=_optional(fields, "ref_text"),
        split=_optional(fields, "split"),
    )
