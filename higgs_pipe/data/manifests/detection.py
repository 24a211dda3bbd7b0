"""The format of a manifest, from its name and its first line."""

import codecs
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from higgs_pipe.data.manifests.fields import REQUIRED_KEYS
from higgs_pipe.planning.file_names import METADATA_CSV, METADATA_JSON, METADATA_JSONL, WAV_SCP

NUM_HEAD_BYTES = 2**20  # what detection looks at
LOOKED_FOR = (
    "a JSON object in the first line, a JSON array of objects with `messages`, a .csv, .tsv or "
    ".parquet file, a line `id|text` or `path|speaker|language|text`, or a folder with wav.scp, "
    "metadata.json, metadata.jsonl, metadata.csv or recordings with a .txt each"
)


def detect(path: str, columns: Mapping[str, str]) -> str | None:
    """Return the format of a manifest, by its name and first line; None if it fits none.

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
    if file.name == METADATA_JSON:
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
    if (folder / WAV_SCP).exists():
        return "kaldi"
    if (folder / METADATA_JSON).exists():
        return "folder"
    if (folder / METADATA_JSONL).exists():
        return "audiofolder"
    if (folder / METADATA_CSV).exists():
        found = detect(str(folder / METADATA_CSV), columns)
        return found if found in ("audiofolder", "ljspeech") else None
    return "folder" if any(file.suffix.lower() == ".txt" for file in folder.iterdir()) else None


def _detect_csv(first: str, file_name: str, columns: Mapping[str, str]) -> str:
    names = [name.strip('"') for name in first.split(",")]
    if columns.get("audio", "audio") in names:
        return "csv"
    if "file_name" in names:
        return "audiofolder"
    if "|" in first:
        is_list = first.count("|") == 3 and file_name != METADATA_CSV
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
