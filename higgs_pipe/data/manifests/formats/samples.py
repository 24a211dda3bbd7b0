"""Samples of the older trainers of this model: a ``metadata.json`` and the files it names."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from higgs_pipe.data.conversation import SCENE, USER, Conversation
from higgs_pipe.data.manifests.columns import columns_of
from higgs_pipe.data.manifests.conversations import (
    SPEAKER_TAG,
    recording_turn,
    row_or_conversation,
    text_turn,
)
from higgs_pipe.data.manifests.fields import Fields, RowFault, shown
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed
from higgs_pipe.data.spans import Span
from higgs_pipe.planning.folders import files_below

FILE_KEYS = ("audio", "ref_audio", "transcript_file", "ref_transcript_file")


def read_samples(source: Source) -> RawRows:
    """Read the samples of a ``metadata.json``.

    ``{"samples": [{"id": "x", "audio_file": "x.wav", "transcript_file": "x.txt",
    "speaker_id": "ada"}]}``; a sample's number stands for its line. A file that is not where it is
    said to be may lie in a folder below.
    """
    path = source.path
    with source.at(path):
        match source.json_document(path):
            case {"samples": list(samples)}:
                pass
            case None:
                return
            case _:
                raise RowFault("expected an object with a list `samples`")
        below = FilesBelow(source.root)
        for number, sample in source.numbered(samples, path):
            with source.at(f"{path}:{number}"):
                fields = renamed(sample, columns_of(sample, source.columns))
                for key in FILE_KEYS:
                    if isinstance(fields.get(key), str):
                        fields[key] = below.find(fields[key])
                _read_transcripts(fields, source)
                yield _with_ref_speakers(RawRow(path, number, fields))


class FilesBelow:
    """The files below a folder, to find by its name one that is not where it should be."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def _by_name(self) -> Mapping[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in files_below(self._root):
            found.setdefault(file.name, []).append(file)
        return found

    def find(self, written: str) -> str:
        """Return the path as written, or that of the one file of its name below the folder."""
        try:
            if not written.strip() or (self._root / written).exists():
                return written
        except (OSError, ValueError):
            return written
        found = self._by_name.get(Path(written).name, [])
        return str(found[0].relative_to(self._root)) if len(found) == 1 else written


def _read_transcripts(fields: Fields, source: Source) -> None:
    """Replace the names of transcript files by the texts in them.

    Raises:
        RowFault: A transcript cannot be read, or a reference has none.
    """
    for key, text_key in (("transcript_file", "text"), ("ref_transcript_file", "ref_text")):
        transcript = fields.pop(key, None)
        if isinstance(transcript, str) and transcript.strip():
            fields[text_key] = source.transcript(os.fspath(source.root / transcript))
        elif transcript is not None:
            raise RowFault(f"`{key}` must be a path")
    ref_audio = fields.get("ref_audio")
    if isinstance(ref_audio, str) and ref_audio.strip() and not fields.get("ref_text"):
        beside = (source.root / ref_audio).with_suffix(".txt")
        if not beside.exists():
            raise RowFault(
                f"`ref_audio_file` has neither `ref_transcript` nor a transcript {beside.name}"
            )
        fields["ref_text"] = source.transcript(str(beside))


def _with_ref_speakers(row: RawRow) -> RawRow:
    """Return the row with a reference for each of its ``ref_speakers``, if it has any."""
    fields = dict(row.fields)
    ref_speakers = fields.pop("ref_speakers", None)
    if not ref_speakers:
        if fields.get("task_type") == "multi_speaker_voice_cloning":
            raise RowFault("`task_type` is multi_speaker_voice_cloning without `ref_speakers`")
        return row
    if fields.get("ref_audio") or fields.get("ref_text"):
        raise RowFault("`ref_speakers` and `ref_audio_file` are two kinds of reference; keep one")
    text, audio, scene = (fields.get(key) for key in ("text", "audio", "scene"))
    if not (isinstance(text, str) and isinstance(audio, str) and isinstance(scene, str | None)):
        return row
    if not SPEAKER_TAG.search(text) and isinstance(ref_speakers, list):
        # Some trainers list other speakers' references beside that of the one who speaks.
        speaker = fields.get("speaker")
        own = [r for r in ref_speakers if isinstance(r, dict) and r.get("speaker_id") == speaker]
        ref_speakers = own if speaker and len(own) == 1 else ref_speakers
    said, conversation = read_ref_speakers(text, audio, scene, ref_speakers)
    return RawRow(row.file, row.line, {**fields, "scene": None, **said}, conversation)


def read_ref_speakers(
    text: str, audio: str, scene: str | None, ref_speakers: Any
) -> tuple[Fields, Conversation[Span] | None]:
    """Return fields and turns of an older sample with a reference for each speaker.

    Raises:
        RowFault: A reference lacks its file or its words, or a text does not say who speaks.
    """
    references: dict[str, tuple[str, str]] = {}
    for index, entry in enumerate(ref_speakers if isinstance(ref_speakers, list) else [None]):
        match entry:
            case {"ref_audio_file": str(path), "ref_transcript": str(words)} if (
                path.strip() and words.strip()
            ):
                tag = entry.get("speaker_tag") or f"[SPEAKER{index}]"
            case _:
                raise RowFault(
                    f"`ref_speakers[{index}]`: expected an object with `ref_audio_file` and "
                    "`ref_transcript`"
                )
        if not (isinstance(tag, str) and SPEAKER_TAG.fullmatch(tag)) or tag in references:
            raise RowFault(
                f"`ref_speakers[{index}]`: `speaker_tag` must be [SPEAKER{index}] or another "
                f"number, each once, found {shown(tag)}"
            )
        references[tag] = words.removeprefix(tag).strip(), path
    tags = set(SPEAKER_TAG.findall(text))
    if unknown := sorted(tags - references.keys()):
        raise RowFault(f"the text has {unknown[0]}, but `ref_speakers` has no reference for it")
    if len(references) > 1 and not tags:
        raise RowFault(
            f"there are {len(references)} `ref_speakers`, but the text has no tag such as "
            "[SPEAKER0]"
        )
    turns = [text_turn(SCENE, scene)] if scene and scene.strip() else []
    for tag, (words, path) in references.items():
        turns += [text_turn(USER, f"{tag} {words}" if tags else words), recording_turn(path)]
    return row_or_conversation(
        [*turns, text_turn(USER, text), recording_turn(audio, is_target=True)]
    )
