"""Folders of recordings, each with a transcript in a file of the same name."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from higgs_pipe.data.manifests.fields import Fields, is_language_code
from higgs_pipe.data.manifests.formats.samples import read_samples
from higgs_pipe.data.manifests.formats.tables import read_csv, read_jsonl
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source
from higgs_pipe.planning.file_names import (
    AUDIO_ENDINGS,
    METADATA,
    METADATA_CSV,
    METADATA_JSON,
    METADATA_JSONL,
    TRANSCRIPTS_ENDING,
)
from higgs_pipe.planning.folders import audio_stem, files_below, transcript_stem

# Folders that are named after what lies in them, not after who speaks.
NEUTRAL_FOLDER = re.compile(
    r"(wav|wave|flac|mp3|ogg|opus|audio|txt|text|lab|transcript|transcription)s?[\d_].*|"
    r"(wav|wave|flac|mp3|ogg|opus|audio|audio_?file|txt|text|lab|transcript|transcription|clip|"
    r"recording|record|sample|segment|sound|output|dataset)s?|"
    r"data|raw|processed|normalized|speech|corpus|"
    r"train|training|eval|evaluation|val|valid|validation|dev|test",
    re.IGNORECASE,
)


class Said(NamedTuple):
    """A text in a file of many."""

    file: str
    line: int
    text: str


def read_audiofolder(source: Source) -> RawRows:
    """Read ``{"file_name": "a.wav", "text": "What is said."}`` in metadata.jsonl, or as CSV.

    The text may also be called ``transcription``.
    """
    source = source.file_of(METADATA_JSONL, METADATA_CSV)
    yield from (read_csv if source.path.endswith(".csv") else read_jsonl)(source)


def read_folder(source: Source) -> RawRows:
    """Read a folder of ``x.wav`` and ``x.txt`` or ``x.lab``, or an older ``metadata.json``.

    Folders are read in depth; the first whose name is not that of a kind of files is the speaker.
    A transcript may also lie in a folder of its own: ``wavs/ada/x.wav`` and ``txt/ada/x.txt``. A
    folder below may have metadata of its own: ``train/metadata.csv``, or the transcripts of all
    its recordings in one file, as LibriSpeech has them: ``84-121123.trans.txt``.
    """
    folder = Path(source.path)
    samples = source.file_of(METADATA_JSON)
    if Path(samples.path).exists() or not folder.is_dir():
        yield from read_samples(samples)
        return
    files = files_below(folder)
    tables = [file for file in files if file.name in METADATA]
    for table in tables:
        yield from _rows_of_table(source, table)
    described = {table.parent for table in tables}
    # What a table does not name of its own folder is noted later.
    others = [file for file in files if described.isdisjoint(file.parents)]
    found = _sort_by_kind(source, folder, others)
    for stem, transcript in _pair(folder, found).items():
        yield from _row(
            source, folder, found.recordings[stem], transcript, found.said.pop(stem, None)
        )
    for said in found.said.values():
        source.leave_out("a transcript without a recording of its name", f"{said.file}:{said.line}")
    for left in found.transcripts.values():
        source.leave_out("a transcript without a recording of its name", str(left))


class _Found(NamedTuple):
    """Recordings and transcripts of a folder, by the path of the recording without its ending."""

    recordings: dict[Path, Path]
    transcripts: dict[Path, Path]
    said: dict[Path, Said]


def _sort_by_kind(source: Source, folder: Path, files: Iterable[Path]) -> _Found:
    """Sort files into recordings and transcripts; all others are left out."""
    found = _Found({}, {}, {})
    for file in files:
        if stem := audio_stem(file):
            if other := _take(found.recordings, _composed(folder, stem), file):
                reason = "a recording of this name was taken in another format"
                source.leave_out(reason, str(other))
        elif file.name.endswith(TRANSCRIPTS_ENDING):
            for line, text in source.lines(str(file)):
                name, _, words = text.strip().partition(" ")
                stem = _composed(folder, file.with_name(name))
                found.said[stem] = Said(str(file), line, words)
        elif stem := transcript_stem(file):
            if other := _take(found.transcripts, _composed(folder, stem), file):
                source.leave_out("a transcript of this name was taken", str(other))
        else:
            ending = file.suffix.lower() or "no ending"
            source.leave_out(f"not a recording or a transcript ({ending})", str(file))
    return found


def _pair(folder: Path, found: _Found) -> dict[Path, Path | None]:
    """Take the transcript of each recording: of its path, or of its place in another folder."""
    transcripts = found.transcripts
    pairs = {stem: transcripts.pop(stem, None) for stem in found.recordings}
    apart = _unique_places(folder, transcripts)
    places = _unique_places(folder, {stem: stem for stem, text in pairs.items() if text is None})
    for place, stem in places.items():
        if place in apart:
            pairs[stem] = transcripts.pop(apart[place])
    return pairs


def _take(taken: dict[Path, Path], stem: Path, file: Path) -> Path | None:
    """Take a file under its name, unless a better one was; return the one that is left out."""
    other = taken.setdefault(stem, file)
    if other is file:
        return None
    if _preference(file) < _preference(other):
        taken[stem] = file
        return other
    return file


def _preference(file: Path) -> int:
    """Return 0 for what is taken first: audio that is not compressed, words before labels."""
    ending = file.suffix.lower()
    if ending in AUDIO_ENDINGS:
        return AUDIO_ENDINGS.index(ending)
    return 1 if ending == ".lab" else 0


def _composed(folder: Path, path: Path) -> Path:
    """Return a path below a folder in Unicode's form NFC: a pair may have it in two forms."""
    return folder / unicodedata.normalize("NFC", str(path.relative_to(folder)))


def _rows_of_table(source: Source, table: Path) -> RawRows:
    """Yield the rows of a metadata file in a folder below, with paths relative to the root."""
    below = replace(source, path=str(table), root=table.parent)
    folder = os.path.relpath(below.root, source.root)
    read = read_samples if table.name == METADATA_JSON else read_audiofolder
    for row in read(below):
        paths = {
            key: os.path.join(folder, row.fields[key])  # noqa: PTH118 - as written, not tidied up
            for key in ("audio", "ref_audio")
            if isinstance(row.fields.get(key), str) and row.fields[key].strip()
        }
        conversation = row.conversation and row.conversation.map_recordings(
            lambda span: span._replace(audio_path=os.path.join(folder, span.audio_path))  # noqa: PTH118
        )
        yield replace(row, fields=row.fields | paths, conversation=conversation)


def _row(
    source: Source,
    folder: Path,
    recording: Path,
    transcript: Path | None,
    said: Said | None,
) -> RawRows:
    """Yield the row of a recording; one without a transcript has an empty text.

    Args:
        source: The manifest.
        folder: Its folder.
        recording: A recording below it.
        transcript: The file with its text, if it has one of its own.
        said: Its text in a file of many transcripts, if it is there.
    """
    relative = recording.relative_to(folder)
    is_below_root = source.root == folder
    names = [name for name in relative.parts[:-1] if not NEUTRAL_FOLDER.fullmatch(name)]
    # A speaker's folder may lie in one of a language.
    language = names.pop(0) if len(names) > 1 and is_language_code(names[0]) else None
    said = said or Said(str(transcript or recording), 1, "")
    with source.at(said.file):
        fields: Fields = {
            "id": relative.with_suffix("").as_posix(),
            "audio": relative.as_posix() if is_below_root else str(recording.absolute()),
            "text": source.transcript(str(transcript)) if transcript else said.text,
            "speaker": next(iter(names), None),
            "language": language,
        }
        yield RawRow(said.file, said.line, fields, guessed=frozenset({"speaker", "language"}))


def _unique_places(folder: Path, files: Mapping[Path, Path]) -> dict[tuple[str, ...], Path]:
    """Return files by their path without the names of neutral folders, where no two share it."""
    places = {
        stem: tuple(
            part for part in stem.relative_to(folder).parts if not NEUTRAL_FOLDER.fullmatch(part)
        )
        for stem in files
    }
    num_files = Counter(places.values())
    return {place: stem for stem, place in places.items() if place and num_files[place] == 1}


def has_recordings(folder: Path) -> bool:
    """Return whether a recording or a transcript lies below a folder."""
    return any(audio_stem(file) or transcript_stem(file) for file in files_below(folder))
