"""Folders: of recordings with transcripts, of an older trainer's samples, of Hugging Face."""

import os
from pathlib import Path
from typing import Any

from higgs_pipe.data.conversation import SCENE, USER, Conversation
from higgs_pipe.data.manifests.fields import Fields, RowFault, shown
from higgs_pipe.data.manifests.formats.tables import read_csv, read_jsonl, typed
from higgs_pipe.data.manifests.layout import SPEAKER_TAG, arranged, recording_turn, text_turn
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed
from higgs_pipe.data.spans import Span
from higgs_pipe.planning.file_names import (
    AUDIO_ENDINGS,
    METADATA_CSV,
    METADATA_JSON,
    METADATA_JSONL,
)

AUDIOFOLDER_COLUMNS = {"audio": "file_name"}
FOLDER_COLUMNS = {
    "audio": "audio_file",
    "speaker": "speaker_id",
    "ref_audio": "ref_audio_file",
    "ref_text": "ref_transcript",
}


def read_audiofolder(source: Source) -> RawRows:
    """Read ``{"file_name": "a.wav", "text": "What is said."}`` in metadata.jsonl, or as CSV.

    The text may also be called ``transcription``.
    """
    folder = Path(source.path)
    if folder.is_dir():
        name = METADATA_JSONL if (folder / METADATA_JSONL).exists() else METADATA_CSV
        source = Source(str(folder / name), source.root, source.columns, source.faults)
    read = read_csv if source.path.endswith(".csv") else read_jsonl
    plain = Source(source.path, source.root, {}, source.faults)
    for record in read(plain):
        text = "transcription" if record.fields.get("text") is None else "text"
        columns = {**AUDIOFOLDER_COLUMNS, "text": text, **source.columns}
        fields = renamed(record.fields, columns)
        yield RawRow(record.file, record.line, fields if read is read_jsonl else typed(fields))


def read_folder(source: Source) -> RawRows:
    """Read a folder of ``x.wav`` and ``x.txt``, or one with the older trainers' ``metadata.json``.

    ``{"samples": [{"id": "x", "audio_file": "x.wav", "transcript_file": "x.txt",
    "speaker_id": "ada"}]}``; a sample's number stands for its line.
    """
    folder = Path(source.path)
    metadata = folder / METADATA_JSON if folder.is_dir() else folder
    if metadata.exists() or not folder.is_dir():
        yield from _samples(str(metadata), source)
        return
    files = sorted(file for file in folder.iterdir() if file.is_file())
    transcripts = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    for file in files:
        if file.suffix.lower() not in AUDIO_ENDINGS:
            continue
        transcript = transcripts.pop(file.stem, None)
        if transcript is None:
            source.faults.append(f"{file}: there is no transcript {file.stem}.txt beside it")
            continue
        audio = str(file.absolute()) if source.root != folder.absolute() else file.name
        with source.at(str(transcript)):
            fields = {"id": file.stem, "audio": audio, "text": source.transcript(str(transcript))}
            yield RawRow(str(transcript), 1, fields)
    for transcript in transcripts.values():
        source.faults.append(f"{transcript}: there is no recording {transcript.stem}.* beside it")


def _samples(path: str, source: Source) -> RawRows:
    """Read the samples of an older trainer's metadata.json."""
    with source.at(path):
        match source.json_document(path):
            case {"samples": list(samples)}:
                pass
            case None:
                return
            case _:
                raise RowFault("expected an object with a list `samples`")
        for number, sample in source.numbered(samples, path):
            with source.at(f"{path}:{number}"):
                fields = renamed(sample, FOLDER_COLUMNS)
                transcript = fields.pop("transcript_file", None)
                if isinstance(transcript, str) and transcript.strip():
                    fields["text"] = source.transcript(os.fspath(source.root / transcript))
                elif transcript is not None:
                    raise RowFault("`transcript_file` must be a path")
                yield _with_ref_speakers(RawRow(path, number, fields))


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
        raise RowFault(f"the text has {unknown[0]}, and `ref_speakers` has no reference for it")
    if len(references) > 1 and not tags:
        raise RowFault(
            f"there are {len(references)} `ref_speakers`, and no tag such as [SPEAKER0] in the "
            "text says who speaks"
        )
    turns = [text_turn(SCENE, scene)] if scene and scene.strip() else []
    for tag, (words, path) in references.items():
        turns += [text_turn(USER, f"{tag} {words}" if tags else words), recording_turn(path)]
    return arranged([*turns, text_turn(USER, text), recording_turn(audio, is_target=True)])
