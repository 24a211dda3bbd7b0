"""The manifest formats: one reader each, from a file or folder to records with our keys.

A reader reports what is wrong to its source and goes on, so that one run names every fault.
``examples/manifests/`` has an example of each.
"""

import codecs
import csv
import gzip
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.manifests.conversations import read_chatml, read_ref_speakers
from higgs_pipe.data.manifests.values import NotRead, end_of, is_number
from higgs_pipe.data.spans import Span

REQUIRED_KEYS = ("audio", "text")
SECONDS_KEYS = ("start_seconds", "end_seconds")
NUMBER_KEYS = (*SECONDS_KEYS, "turn")
OPTIONAL_KEYS = (
    *("id", "speaker", "language", "scene", "ref_audio", "ref_text", "split", "dialogue_id"),
    *NUMBER_KEYS,
)
OUR_KEYS = frozenset({*REQUIRED_KEYS, *OPTIONAL_KEYS})

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
NUM_HEAD_BYTES = 2**20  # what detection looks at
ROUNDING_SECONDS = 1e-3  # two times that differ by less are the same

LOOKED_FOR = (
    "a JSON object in the first line, a JSON array of objects with `messages`, a .csv, .tsv or "
    ".parquet file, a line `id|text` or `path|speaker|language|text`, or a folder with wav.scp, "
    "metadata.json, metadata.jsonl, metadata.csv or recordings with a .txt each"
)

# Their name of each of our keys, where it differs.
NEMO_COLUMNS = {"audio": "audio_filepath", "start_seconds": "offset"}
AUDIOFOLDER_COLUMNS = {"audio": "file_name"}
# Of a ChatML sample, what makes its turns, and which of our keys it may have.
CHATML_KEYS = ("messages", "start_index", "misc")
CHATML_ROW_KEYS = ("id", "speaker", "language", "split")
FOLDER_COLUMNS = {
    "audio": "audio_file",
    "speaker": "speaker_id",
    "ref_audio": "ref_audio_file",
    "ref_text": "ref_transcript",
}

Fields = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One utterance: our keys (and unknown ones) with values as they stand in ``file``.

    The paths in a ``conversation`` are as written too.
    """

    file: str
    line: int
    fields: Fields
    conversation: Conversation[Span] | None = None


@dataclass(frozen=True)
class Source:
    """A manifest that is being read; what is wrong with it goes to ``faults``."""

    path: str
    root: Path
    columns: Mapping[str, str]
    faults: list[str]


Records = Iterator[Record]


# --- Tables: a row an utterance, columns that can be renamed -----------------------------------


def read_jsonl(source: Source) -> Records:
    """``{"audio": "wavs/a.wav", "text": "What is said.", "speaker": "ada"}``."""
    for line, value in _json_objects(source.path, source):
        yield Record(source.path, line, _renamed(value, source.columns))


def read_csv(source: Source) -> Records:
    """A header ``audio,text,speaker``, then ``wavs/a.wav,"Well, yes.",ada``."""
    yield from _delimited(source, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(source: Source) -> Records:
    r"""A header ``audio\ttext``, then ``wavs/a.wav\tWhat is said.``; quotes are text."""
    yield from _delimited(source, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_parquet(source: Source) -> Records:
    """Columns ``audio: string``, ``text: string`` ...; the row's number stands for the line."""
    if not Path(source.path).is_file():
        _content(source.path, source)
        return
    try:
        with pq.ParquetFile(source.path) as table:
            names = table.schema_arrow.names
            if repeated := _repeated(names):
                source.faults.append(f"{source.path}: the column {repeated!r} is given twice")
                return
            required = [source.columns.get(key, key) for key in REQUIRED_KEYS]
            if missing := [name for name in required if name not in names]:
                source.faults.append(f"{source.path}: the column {missing[0]!r} is missing")
                return
            wanted = [name for name in names if name in {*OUR_KEYS, *source.columns.values()}]
            others = dict.fromkeys(name for name in names if name not in wanted)
            rows = itertools.count(1)
            for batch in table.iter_batches(columns=wanted):
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in zip(*columns, strict=True):
                    fields = {**dict(zip(wanted, values, strict=True)), **others}
                    yield Record(source.path, next(rows), _renamed(fields, source.columns))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        fact = str(error).strip().split("\n")[0]
        source.faults.append(f"{source.path}: not a readable Parquet file ({fact:.200})")


def read_nemo(source: Source) -> Records:
    """``{"audio_filepath": "a.wav", "text": "What is said.", "offset": 1.5, "duration": 2.0}``.

    Without ``offset`` the recording is the whole file, whatever ``duration`` says.
    """
    for line, value in _json_objects(source.path, source):
        language = {"language": "lang"} if "lang" in value else {}
        fields = _renamed(value, {**NEMO_COLUMNS, **language, **source.columns})
        start_seconds, duration = fields.get("start_seconds"), fields.pop("duration", None)
        if start_seconds is not None and duration is not None:
            if not (is_number(start_seconds) and is_number(duration)):
                source.faults.append(f"{source.path}:{line}: `offset`, `duration`: no numbers")
                continue
            fields["end_seconds"] = end_of(start_seconds, duration)
        yield Record(source.path, line, fields)


def read_audiofolder(source: Source) -> Records:
    """``{"file_name": "a.wav", "text": "What is said."}`` in metadata.jsonl, or as CSV.

    The text may also be called ``transcription``.
    """
    folder = Path(source.path)
    if folder.is_dir():
        name = "metadata.jsonl" if (folder / "metadata.jsonl").exists() else "metadata.csv"
        source = Source(str(folder / name), source.root, source.columns, source.faults)
    read = read_csv if source.path.endswith(".csv") else read_jsonl
    plain = Source(source.path, source.root, {}, source.faults)
    for record in read(plain):
        text = "transcription" if record.fields.get("text") is None else "text"
        columns = {**AUDIOFOLDER_COLUMNS, "text": text, **source.columns}
        fields = _renamed(record.fields, columns)
        yield Record(record.file, record.line, fields if read is read_jsonl else _typed(fields))


# --- Other formats -------------------------------------------------------------------------------


def read_ljspeech(source: Source) -> Records:
    """``LJ001-0001|It was 5.|It was five.`` in metadata.csv; the recording is wavs/LJ001-0001.wav.

    The last field is taken as the text. Other endings than .wav are found too, and recordings
    that lie in ``root`` itself.
    """
    path = source.path if not Path(source.path).is_dir() else str(Path(source.path, "metadata.csv"))
    for line, text in _lines(path, source):
        fields = text.split("|")
        if len(fields) not in (2, 3):
            source.faults.append(
                f"{path}:{line}: expected id|text or id|text|normalized text, found "
                f"{len(fields)} field{'s' * (len(fields) != 1)}"
            )
            continue
        clip_id, spoken = fields[0].strip(), fields[-1].strip() or fields[1].strip()
        audio = _found(source.root, (f"wavs/{clip_id}", clip_id)) or f"wavs/{clip_id}.wav"
        yield Record(path, line, {"id": clip_id, "audio": audio, "text": spoken})


def read_filelist(source: Source) -> Records:
    """``wavs/a.wav|ada|en|What is said.``."""
    for line, text in _lines(source.path, source):
        fields = text.split("|", 3)
        if len(fields) != 4:
            source.faults.append(
                f"{source.path}:{line}: expected path|speaker|language|text, found "
                f"{len(fields)} field{'s' * (len(fields) != 1)}"
            )
            continue
        named = zip(("audio", "speaker", "language", "text"), map(str.strip, fields), strict=True)
        yield Record(source.path, line, dict(named))


def read_kaldi(source: Source) -> Records:
    """A folder of ``text`` (``utt1 What is said.``), ``wav.scp`` (``rec1 a.wav``) and ``utt2spk``.

    With ``segments`` (``utt1 rec1 1.50 3.25``, in seconds; -1 is the end of the recording) an
    utterance is a part of a recording; without it, utterances and recordings share their names.
    ``utt2spk`` and ``segments`` may be left out.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        _content(str(folder / "text"), source)
        return
    texts = _kaldi_table(folder / "text", source)
    wavs = _kaldi_table(folder / "wav.scp", source)
    speakers, segments = (
        _kaldi_table(folder / name, source) if (folder / name).exists() else None
        for name in ("utt2spk", "segments")
    )
    listing = "wav.scp" if segments is None else "segments"
    listed = wavs if segments is None else segments
    for utterance, (line, _) in listed.items():
        if utterance not in texts:
            source.faults.append(f"{folder / listing}:{line}: {utterance!r} is not in text")
    for utterance, (line, text) in texts.items():
        place = f"{folder / 'text'}:{line}"
        if utterance not in listed:
            source.faults.append(f"{place}: {utterance!r} is not in {listing}")
            continue
        fields: Fields = {"id": utterance, "text": text}
        if speakers is not None:
            if utterance not in speakers:
                source.faults.append(f"{place}: {utterance!r} is not in utt2spk")
                continue
            fields["speaker"] = speakers[utterance][1]
        recording = utterance
        if segments is not None:
            recording, seconds = _kaldi_segment(segments[utterance][1])
            if not seconds or recording not in wavs:
                source.faults.append(
                    f"{folder / 'segments'}:{segments[utterance][0]}: expected `utterance "
                    f"recording start end` with a recording of wav.scp, found "
                    f"{segments[utterance][1]!r:.60}"
                )
                continue
            fields |= seconds
        fields["audio"] = wavs[recording][1]
        if fields["audio"].endswith("|"):
            source.faults.append(
                f"{folder / 'wav.scp'}:{wavs[recording][0]}: {recording!r} is a command; "
                "write its output to a file and name that"
            )
            continue
        yield Record(str(folder / "text"), line, fields)


def read_lhotse(source: Source) -> Records:
    """A MonoCut a line: one supervision of one recording that is one file.

    ``{"id": "c1", "start": 1.5, "duration": 2.0, "type": "MonoCut",
    "supervisions": [{"start": 0.0, "duration": 2.0, "text": "What is said."}],
    "recording": {"duration": 9.0, "sources": [{"type": "file", "source": "a.wav"}]}}``
    """
    for line, cut in _json_objects(source.path, source):
        try:
            yield Record(source.path, line, _cut_fields(cut))
        except NotRead as error:
            source.faults.append(f"{source.path}:{line}: {error}")


def read_ms_swift(source: Source) -> Records:
    """``{"messages": [{"role": "assistant", "content": "<audio>TEXT"}], "audios": ["a.wav"]}``."""
    for line, value in _json_objects(source.path, source):
        match value:
            case {
                "messages": [{"role": "assistant", "content": str(content)}],
                "audios": [audio] | (str() as audio),
            } if content.startswith("<audio>") and content.count("<audio>") == 1:
                others = {key: value[key] for key in value if key not in ("messages", "audios")}
                fields = {**others, "audio": audio, "text": content.removeprefix("<audio>")}
                yield Record(source.path, line, fields)
            case _:
                source.faults.append(
                    f'{source.path}:{line}: expected `messages` with one message of "assistant", '
                    "its content <audio> and the text, and `audios` with one path"
                )


def read_chatml_samples(source: Source) -> Records:
    """Boson's ChatML: an array of samples in one file, or a sample a line.

    ``{"messages": [{"role": "user", "content": "What is said."}, {"role": "assistant", "content":
    [{"type": "audio", "audio_url": "a.wav"}]}], "start_index": 1, "speaker": "ada"}``; in an array
    a sample's number stands for its line.
    """
    for line, sample in _json_samples(source.path, source):
        try:
            fields, conversation = read_chatml(sample)
            others = {key: sample[key] for key in sample if key not in CHATML_KEYS}
            if misplaced := sorted(others.keys() & OUR_KEYS - set(CHATML_ROW_KEYS)):
                raise NotRead(f"{misplaced[0]!r} has no place beside `messages`; leave it out")
        except NotRead as error:
            source.faults.append(f"{source.path}:{line}: {error}")
            continue
        fields |= others | {"speaker": _speaker(sample)}
        yield Record(source.path, line, fields, conversation)


def _speaker(sample: Fields) -> Any:
    """A sample's speaker; the community's converters put the sample's own id there."""
    misc = sample.get("misc")
    misc = misc if isinstance(misc, dict) else {}
    speaker = sample.get("speaker") or misc.get("speaker")
    return None if speaker == misc.get("sample_id") else speaker


def read_folder(source: Source) -> Records:
    """A folder of ``x.wav`` and ``x.txt``, or with the older trainers' ``metadata.json``.

    ``{"samples": [{"id": "x", "audio_file": "x.wav", "transcript_file": "x.txt",
    "speaker_id": "ada"}]}``; a sample's number stands for its line.
    """
    folder = Path(source.path)
    metadata = folder / "metadata.json" if folder.is_dir() else folder
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
        text = _transcript(str(transcript), source)
        if text is not None:
            audio = str(file.absolute()) if source.root != folder.absolute() else file.name
            yield Record(str(transcript), 1, {"id": file.stem, "audio": audio, "text": text})
    for transcript in transcripts.values():
        source.faults.append(f"{transcript}: there is no recording {transcript.stem}.* beside it")


READERS: dict[str, Callable[[Source], Records]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "ljspeech": read_ljspeech,
    "kaldi": read_kaldi,
    "nemo": read_nemo,
    "lhotse": read_lhotse,
    "audiofolder": read_audiofolder,
    "filelist": read_filelist,
    "ms-swift": read_ms_swift,
    "boson-chatml": read_chatml_samples,
    "folder": read_folder,
}
# Formats whose columns can be renamed, with their own names for ours.
TABLES: dict[str, Mapping[str, str]] = {
    "jsonl": {},
    "csv": {},
    "tsv": {},
    "parquet": {},
    "nemo": NEMO_COLUMNS,
    "audiofolder": AUDIOFOLDER_COLUMNS,
}


# --- Detection -----------------------------------------------------------------------------------


def detect(path: str, columns: Mapping[str, str]) -> str | None:
    """The format of a manifest, by its name and first line; None if it fits none.

    A file that cannot be read is called JSONL, whose reader says what is wrong.
    """
    file = Path(path)
    try:
        if file.is_dir():
            return _detect_folder(file, columns)
        with file.open("rb") as stream:
            head = stream.read(NUM_HEAD_BYTES)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(wbits=31).decompress(head, NUM_HEAD_BYTES)
    except (OSError, ValueError, zlib.error):
        return "jsonl"
    ending = Path(file.name.removesuffix(".gz")).suffix.lower()
    if ending in (".parquet", ".tsv"):
        return ending[1:]
    if head.startswith(b"PAR1"):
        return "parquet"
    if file.name == "metadata.json":
        return "folder"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "csv" if ending == ".csv" else "jsonl"
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    if _starts_with_chatml(text):
        return "boson-chatml"
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if ending == ".csv":
        return _detect_csv(first, file.name, columns)
    if not first or first.startswith("{") or ending in (".jsonl", ".json", ".ndjson"):
        return _detect_json(first, columns)
    for delimiter, name in (("\t", "tsv"), (",", "csv")):
        if {columns.get(key, key) for key in REQUIRED_KEYS} <= set(first.split(delimiter)):
            return name
    return {1: "ljspeech", 2: "ljspeech", 3: "filelist"}.get(first.count("|"))


def _detect_folder(folder: Path, columns: Mapping[str, str]) -> str | None:
    if (folder / "wav.scp").exists():
        return "kaldi"
    if (folder / "metadata.json").exists():
        return "folder"
    if (folder / "metadata.jsonl").exists():
        return "audiofolder"
    if (folder / "metadata.csv").exists():
        found = detect(str(folder / "metadata.csv"), columns)
        return found if found in ("audiofolder", "ljspeech") else None
    return "folder" if any(file.suffix.lower() == ".txt" for file in folder.iterdir()) else None


def _detect_csv(first: str, file_name: str, columns: Mapping[str, str]) -> str:
    names = [name.strip('"') for name in first.split(",")]
    if columns.get("audio", "audio") in names:
        return "csv"
    if "file_name" in names:
        return "audiofolder"
    if "|" in first:
        is_list = first.count("|") == 3 and file_name != "metadata.csv"
        return "filelist" if is_list else "ljspeech"
    return "csv"


def _starts_with_chatml(text: str) -> bool:
    """Whether the text is the beginning of a JSON array whose first value has ``messages``."""
    array = text.lstrip()
    if not array.startswith("["):
        return False
    try:
        first, _ = json.JSONDecoder().raw_decode(array[1:].lstrip())
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "messages" in first


def _detect_json(first: str, columns: Mapping[str, str]) -> str:
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return "jsonl"
    if not isinstance(value, dict) or columns.get("audio", "audio") in value:
        return "jsonl"
    signs = {
        "audio_filepath": "nemo",
        "audios": "ms-swift",
        "messages": "boson-chatml",
        "supervisions": "lhotse",
        "file_name": "audiofolder",
    }
    return next((name for sign, name in signs.items() if sign in value), "jsonl")


# --- What the readers share ----------------------------------------------------------------------


def _content(path: str, source: Source) -> bytes | None:
    """The bytes of a file, unzipped; None after a fault."""
    try:
        content = Path(path).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (FileNotFoundError, NotADirectoryError):
        source.faults.append(f"{path}: the manifest does not exist")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        source.faults.append(f"{path}: the manifest is no whole gzip file ({error})")
    except OSError as error:
        source.faults.append(f"{path}: the manifest cannot be read ({error.strerror})")
    except ValueError:
        source.faults.append(f"{path!r}: no file can have this name")
    else:
        return content
    return None


def _lines(path: str, source: Source, keep_blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1."""
    content = _content(path, source)
    if content is None:
        return
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        source.faults.append(f"{path}:1: not UTF-8 but UTF-16; save the file as UTF-8")
        return
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        source.faults.append(f"{path}: the manifest is empty")
        return
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if not (raw.strip() or keep_blank):
            continue
        try:
            yield line, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            source.faults.append(
                f"{path}:{line}: not UTF-8 (byte {error.start + 1}); save it as UTF-8"
            )


def _json_objects(path: str, source: Source) -> Iterator[tuple[int, Fields]]:
    """The objects of a JSON Lines file with their line numbers."""
    for line, text in _lines(path, source):
        value = _json_value(text, f"{path}:{line}", source)
        if isinstance(value, dict):
            yield line, value
        elif value is not NotRead:
            source.faults.append(f"{path}:{line}: expected a JSON object, found {text:.60}")


def _json_samples(path: str, source: Source) -> Iterator[tuple[int, Fields]]:
    """The objects of a JSON array with their numbers, or those of JSON Lines with their lines."""
    content = _content(path, Source(path, source.root, {}, []))
    if content is None or not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _json_objects(path, source)
        return
    text = "\n".join(line for _, line in _lines(path, source, keep_blank=True))
    value = _json_value(text, path, source)
    if isinstance(value, list):
        yield from _objects(value, path, source)


def _objects(values: list[Any], path: str, source: Source) -> Iterator[tuple[int, Fields]]:
    """Those of ``values`` that are JSON objects, with their numbers from 1."""
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield number, value
        else:
            source.faults.append(f"{path}:{number}: expected a JSON object as sample {number}")


def _json_value(text: str, place: str, source: Source) -> Any:
    """What JSON text says; the class ``NotRead`` after a fault."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        source.faults.append(f"{place}: not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        source.faults.append(f"{place}: not JSON that can be read: {error}")
    return NotRead


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> Fields:
    """A JSON object; json alone would drop all but the last value of a repeated key."""
    if repeated := _repeated([key for key, _ in pairs]):
        raise ValueError(f"the key {repeated!r} is given twice")
    return dict(pairs)


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _renamed(fields: Fields, columns: Mapping[str, str]) -> Fields:
    """``fields`` under our keys; ``columns`` gives their name of ours."""
    renamed = {k: v for k, v in fields.items() if k not in {*columns, *columns.values()}}
    return renamed | {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}


def _delimited(source: Source, delimiter: str, quoting: Literal[0, 3]) -> Records:
    """The rows of a CSV or TSV file; a row that spans lines has the number of its first."""
    numbered = list(_lines(source.path, source, keep_blank=True))
    reader = csv.reader(
        (f"{text}\n" for _, text in numbered), delimiter=delimiter, quoting=quoting, strict=True
    )
    header: list[str] = []
    while reader.line_num < len(numbered):
        line = numbered[reader.line_num][0]
        place = f"{source.path}:{line}"
        try:
            values = next(reader)
        except csv.Error as error:
            source.faults.append(f"{place}: not a row: {error}")
            continue
        if not any(value.strip() for value in values):
            continue
        if not header:
            header = [name.strip() for name in values]
            if repeated := _repeated(header):
                source.faults.append(f"{place}: the column {repeated!r} is given twice")
                return
            continue
        if len(values) != len(header):
            source.faults.append(f"{place}: {len(values)} fields, the header has {len(header)}")
            continue
        fields = dict(zip(header, values, strict=True))
        yield Record(source.path, line, _typed(_renamed(fields, source.columns)))


def _typed(fields: Fields) -> Fields:
    """``fields`` of a file that knows only text, with the numbers as such."""
    return fields | {key: _number(fields[key]) for key in NUMBER_KEYS if key in fields}


def _number(text: str | float | None) -> str | float | None:
    """The number that a text spells, None for a blank, or else the text."""
    try:
        return float(text) if isinstance(text, str) and text.strip() else text or None
    except ValueError:
        return text


def _found(root: Path, stems: Iterable[str]) -> str | None:
    """The first of ``stems`` that is a recording below ``root``, with its ending."""
    for stem in stems:
        for ending in ("", *AUDIO_ENDINGS):
            try:
                if (root / f"{stem}{ending}").is_file():
                    return f"{stem}{ending}"
            except (OSError, ValueError):
                return None
    return None


def _kaldi_table(path: Path, source: Source) -> dict[str, tuple[int, str]]:
    """``name the rest`` a line: the line's number and the rest, by name."""
    table: dict[str, tuple[int, str]] = {}
    for line, text in _lines(str(path), source):
        name, _, rest = text.strip().replace("\t", " ").partition(" ")
        if name in table:
            source.faults.append(f"{path}:{line}: {name!r} is taken by {path}:{table[name][0]}")
        table.setdefault(name, (line, rest.strip()))
    return table


def _kaldi_segment(text: str) -> tuple[str, Fields]:
    """The recording and the seconds of ``rec1 1.50 3.25``; no seconds if it is not that."""
    recording, *times = text.split() or [""]
    try:
        start_seconds, end_seconds = (float(time) for time in times)
    except ValueError:
        return recording, {}
    end = {} if end_seconds == -1 else {"end_seconds": end_seconds}
    return recording, {"start_seconds": start_seconds, **end}


def _cut_fields(cut: Fields) -> Fields:
    """Our keys of a Lhotse cut."""
    match cut:
        case {
            "start": cut_start,
            "duration": cut_duration,
            "supervisions": [{"start": start, "duration": duration} as supervision],
            "recording": {
                "duration": recording_duration,
                "sources": [{"type": "file", "source": audio, **origin}],
                **recording,
            },
        } if all(
            is_number(value)
            for value in (cut_start, cut_duration, start, duration, recording_duration)
        ):
            pass
        case _:
            raise NotRead(
                "expected a cut with numbers `start` and `duration`, one supervision, and a "
                "`recording` whose one source is a file"
            )
    if cut.get("type", "MonoCut") != "MonoCut":
        raise NotRead(f"expected a MonoCut, found {str(cut['type'])!r:.60}")
    if recording.get("transforms"):
        raise NotRead("the recording has transforms, which are not applied here; save its audio")
    channels = origin.get("channels") or [0]
    if not isinstance(channels, list) or len(channels) != 1:
        raise NotRead("the file has several channels; save the cut's channel as a file")
    if start < -ROUNDING_SECONDS or start + duration > cut_duration + ROUNDING_SECONDS:
        raise NotRead("the supervision reaches outside the cut; cut at the supervision")
    fields = {
        "id": cut.get("id"),
        "audio": audio,
        **{key: supervision.get(key) for key in ("text", "speaker", "language")},
    }
    first, last = max(0.0, end_of(cut_start, start)), end_of(cut_start, start + duration)
    if first < ROUNDING_SECONDS and abs(last - recording_duration) < ROUNDING_SECONDS:
        return fields
    return {**fields, "start_seconds": first, "end_seconds": last}


def _samples(path: str, source: Source) -> Records:
    """The samples of an older trainer's metadata.json."""
    lines = [text for _, text in _lines(path, source, keep_blank=True)]
    value = _json_value("\n".join(lines), path, source) if lines else NotRead
    match value:
        case {"samples": list(samples)}:
            pass
        case type():
            return
        case _:
            source.faults.append(f"{path}: expected an object with a list `samples`")
            return
    for number, sample in _objects(samples, path, source):
        fields = _renamed(sample, FOLDER_COLUMNS)
        transcript = fields.pop("transcript_file", None)
        if isinstance(transcript, str) and transcript.strip():
            text = _transcript(os.fspath(source.root / transcript), source, f"{path}:{number}")
            if text is None:
                continue
            fields["text"] = text
        elif transcript is not None:
            source.faults.append(f"{path}:{number}: `transcript_file` must be a path")
            continue
        try:
            yield _with_ref_speakers(Record(path, number, fields))
        except NotRead as error:
            source.faults.append(f"{path}:{number}: {error}")


def _with_ref_speakers(record: Record) -> Record:
    """The record with a reference for each of its ``ref_speakers``, if it has any."""
    fields = dict(record.fields)
    ref_speakers = fields.pop("ref_speakers", None)
    if not ref_speakers:
        if fields.get("task_type") == "multi_speaker_voice_cloning":
            raise NotRead("`task_type` is multi_speaker_voice_cloning without `ref_speakers`")
        return record
    if fields.get("ref_audio") or fields.get("ref_text"):
        raise NotRead("`ref_speakers` and `ref_audio_file` are two kinds of reference; keep one")
    text, audio, scene = (fields.get(key) for key in ("text", "audio", "scene"))
    if not (isinstance(text, str) and isinstance(audio, str) and isinstance(scene, str | None)):
        return record
    said, conversation = read_ref_speakers(text, audio, scene, ref_speakers)
    return Record(record.file, record.line, {**fields, "scene": None, **said}, conversation)


def _transcript(path: str, source: Source, place: str | None = None) -> str | None:
    """The text of a transcript; None after a fault. An empty one is left to the validation."""
    try:
        return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        fact = f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8"
    except FileNotFoundError:
        fact = f"the transcript {path} does not exist"
    except OSError as error:
        fact = f"the transcript {path} cannot be read ({error.strerror})"
    except ValueError:
        fact = f"the transcript {path!r:.60} is no file name"
    source.faults.append(f"{place or path}: {fact}")
    return None
