"""Names that other tools use for our keys."""

from collections.abc import Iterable, Mapping

from higgs_pipe.data.manifests.fields import REQUIRED_KEYS, Fields, RowFault, end_of, is_number

# By our key, in the order of preference; lower case, words joined by underscores.
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("scene", "split", "dialogue_id", "turn"), ()),
    "audio": (
        "audio_file", "audio_path", "audio_filepath", "audio_filename", "audio_url",
        "file_name", "filename", "file_path", "filepath", "file", "path",
        "wav", "wav_path", "wav_file", "wav_filename", "target_audio_path", "recording",
    ),
    "text": (
        "transcription", "transcript", "sentence", "txt", "normalized_text", "text_normalized",
        "normalized_transcription", "target_transcript", "target_text", "utterance",
    ),
    "id": ("utt_id", "utterance_id", "sample_id", "segment_id"),
    "speaker": ("speaker_id", "speaker_name", "spk", "spk_id", "client_id"),
    "language": ("lang", "language_code", "lang_code", "lang_id", "locale"),
    "start_seconds": (
        "start", "start_time", "start_s", "start_sec", "begin", "begin_time", "offset",
        "segment_start", "start_second", "start_ms", "start_time_ms", "begin_ms", "offset_ms",
    ),
    "end_seconds": (
        "end", "end_time", "end_s", "end_sec", "stop", "segment_end", "end_second",
        "end_ms", "end_time_ms", "stop_ms",
    ),
    "ref_audio": (
        "ref_audio_file", "ref_audio_path", "reference_audio", "reference_audio_path",
        "prompt_audio", "prompt_audio_path", "prompt_wav",
    ),
    "ref_text": (
        "ref_transcript", "ref_audio_text", "reference_text", "reference_transcript",
        "prompt_text", "prompt_transcript",
    ),
    "duration_seconds": (
        "duration", "duration_s", "duration_sec", "dur", "audio_duration", "duration_ms",
    ),
    "sample_rate_hz": ("sample_rate", "sampling_rate", "samplerate", "sr"),
}  # fmt: skip


# Columns that are taken before one called text: what is said, with numbers and signs written out.
NORMALIZED = frozenset({"normalized_text", "text_normalized", "normalized_transcription"})


def standard(name: str) -> str:
    """Return a column's name in lower case, its words joined by underscores."""
    return "_".join(name.strip().strip('"').lower().replace("-", " ").replace("_", " ").split())


def columns_of(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the manifest's names of our keys, where they differ.

    A name that ``given`` assigns comes first, then our own, then ours in other case, then those
    of other tools.

    Args:
        names: The columns of a table, or the keys of a JSON object.
        given: Names that the user assigns, by our key.

    Raises:
        RowFault: Two columns may be the audio, or the text.
    """
    columns = dict(given)
    free = {name: standard(name) for name in names if name not in given.values()}
    for key, aliases in ALIASES.items():
        if key in columns:
            continue
        if key in free:
            if key == "text" and (said := [n for n in free if standard(n) in NORMALIZED]):
                columns[key] = said[0]
            continue
        found = [name for alias in (key, *aliases) for name, said in free.items() if said == alias]
        if len(found) > 1 and key in REQUIRED_KEYS and standard(found[0]) != key:
            raise RowFault(
                f"both {found[0]!r} and {found[1]!r} may be the {key}; "
                f"name one in the manifest's `columns`: {{{key}: {found[0]}}}"
            )
        if found:
            columns[key] = found[0]
            del free[found[0]]
    return columns


def has_names_of(names: Iterable[str], given: Mapping[str, str]) -> bool:
    """Return whether names are those of a header: the text's, and the audio's or the id's."""
    try:
        columns = columns_of(names := list(names), given)
    except RowFault:
        return True
    found = {*columns, *names} if set(columns.values()) <= set(names) else {*names}
    return "text" in found and bool({"audio", "id"} & found)


def in_seconds(fields: Fields, columns: Mapping[str, str]) -> Fields:
    """Return the fields of a row with its times in seconds, and with the end of its segment.

    A column whose name ends with ``_ms`` is in milliseconds. A segment may be given by its offset
    and its duration.

    Raises:
        RowFault: A time is not a number.
    """
    for key in ("start_seconds", "end_seconds", "duration_seconds"):
        if standard(columns.get(key, "")).endswith("_ms") and fields.get(key) is not None:
            if not is_number(fields[key]):
                raise RowFault(f"`{columns[key]}`: expected a number of milliseconds")
            fields = fields | {key: fields[key] / 1000}
    start, seconds = fields.get("start_seconds"), fields.get("duration_seconds")
    is_length = "start_seconds" in columns and fields.get("end_seconds") is None
    if start is None or seconds is None or not is_length:
        return fields
    if not (is_number(start) and is_number(seconds)):
        raise RowFault(
            f"`{columns['start_seconds']}`, `{columns.get('duration_seconds', 'duration')}`: "
            "expected numbers of seconds"
        )
    return fields | {"end_seconds": end_of(start, seconds), "duration_seconds": None}
