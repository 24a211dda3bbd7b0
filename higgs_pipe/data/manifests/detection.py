"""The format of a manifest, from its name and its first line."""

import codecs
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from higgs_pipe.data.manifests.columns import has_names_of
from higgs_pipe.data.manifests.fields import RowFault
from higgs_pipe.data.manifests.formats.delimited import DELIMITERS
from higgs_pipe.data.manifests.formats.folders import has_recordings
from higgs_pipe.data.manifests.formats.roles import is_audio_path
from higgs_pipe.planning.file_names import METADATA_CSV, METADATA_JSON, METADATA_JSONL, WAV_SCP
from higgs_pipe.planning.user_files import UnfitFileError, open_file

NUM_HEAD_BYTES = 2**20  # what detection looks at
SAMPLES = re.compile(r'\s*\{.*?"samples"\s*:\s*\[', re.DOTALL)  # an older trainer's

LOOKED_FOR = (
    "a JSON object in the first line, a JSON array of objects, a .csv, .tsv or .parquet file, a "
    "header with the names audio and text, a line `id|text` or `path|speaker|language|text`, or a "
    "folder with wav.scp, metadata.json, metadata.jsonl, metadata.csv or recordings with a .txt "
    "or .lab each"
)

# First bytes of files that hold a table in another form than text.
OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook or another zip archive; save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV (UTF-8)",
    b"ARROW1": "an Arrow file; save the table as Parquet",
}


def detect(path: str, columns: Mapping[str, str]) -> str | None:
    """Return the format of a manifest, by its name and first line; None if it fits none.

    An unreadable file counts as JSONL, whose reader reports the error.

    Raises:
        RowFault: The file holds a table that must be saved as another type first.
    """
    file = Path(path)
    try:
        if file.is_dir():
            return _detect_folder(file, columns)
        with open_file(file) as stream:
            head = stream.read(NUM_HEAD_BYTES)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(wbits=31).decompress(head, NUM_HEAD_BYTES)
    except (OSError, ValueError, UnfitFileError, zlib.error):
        return "jsonl"
    ending = Path(file.name.removesuffix(".gz")).suffix.lower()
    if ending in (".parquet", ".tsv"):
        return ending[1:]
    if head.startswith(b"PAR1"):
        return "parquet"
    if file.name == METADATA_JSON:
        return "folder"
    if fact := next((OTHER_FILES[sign] for sign in OTHER_FILES if head.startswith(sign)), None):
        raise RowFault(fact)
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf16 else "utf-8"
    text = head.removeprefix(codecs.BOM_UTF8).decode(encoding, "replace")
    first = next((line.strip("\r\n\ufeff") for line in text.split("\n") if line.strip()), "")
    if text.lstrip().startswith("["):
        return _detect_json(_first_of_array(text), columns)
    if ending == ".json" and SAMPLES.match(text):
        return "folder"
    if not first or first.startswith("{") or ending in (".jsonl", ".json", ".ndjson"):
        return _detect_json(first, columns)
    return _detect_delimited(first, ending, columns)


def _detect_folder(folder: Path, columns: Mapping[str, str]) -> str | None:
    """Return the format of a folder, by the files in it."""
    if (folder / WAV_SCP).exists():
        return "kaldi"
    if (folder / METADATA_JSON).exists():
        return "folder"
    if (folder / METADATA_JSONL).exists():
        return "audiofolder"
    if (folder / METADATA_CSV).exists():
        found = detect(str(folder / METADATA_CSV), columns)
        return found if found in ("audiofolder", "ljspeech", "filelist", "csv") else None
    return "folder" if has_recordings(folder) else None


def _detect_delimited(first: str, ending: str, columns: Mapping[str, str]) -> str | None:
    """Return the format of a file with fields between delimiters, by its first line."""
    is_csv = ending == ".csv"
    for delimiter in DELIMITERS:
        names = [name.strip(' "') for name in first.split(delimiter)]
        if has_names_of(names, columns):
            is_audiofolder = delimiter == "," and "file_name" in names
            named = {"|": "filelist", "\t": "csv" if is_csv else "tsv"}.get(delimiter, "csv")
            return "audiofolder" if is_audiofolder else named
    num_fields = first.count("|") + 1
    if num_fields > 1:
        has_path = any(is_audio_path(field) or "/" in field.strip() for field in first.split("|"))
        return "filelist" if has_path or num_fields > 3 else "ljspeech"
    if is_csv:
        return "csv"
    signs = [sign for sign in DELIMITERS if any(map(is_audio_path, first.split(sign)[:-1]))]
    return {"\t": "tsv", ",": "csv", ";": "csv"}.get(signs[-1]) if signs else None


def _first_of_array(text: str) -> str:
    """Return the first value of a JSON array as text, or nothing if it is not whole."""
    array = text.lstrip()[1:].lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(array)
    except (ValueError, RecursionError):
        return ""
    return array[:end]


def _detect_json(first: str, columns: Mapping[str, str]) -> str:
    """Return the format of JSON Lines or of an array, by its first object."""
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
