"""Manifests of speech toolkits: Kaldi, NeMo, Lhotse."""

from pathlib import Path

from higgs_pipe.data.manifests.columns import columns_of, in_seconds
from higgs_pipe.data.manifests.fields import Fields, RowFault, end_of, is_number
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed
from higgs_pipe.planning.file_names import KALDI_TEXT, SEGMENTS, UTT2DUR, UTT2SPK, WAV_SCP

ROUNDING_SECONDS = 1e-3  # two times that differ by less are equal


def read_kaldi(source: Source) -> RawRows:
    """Read ``text`` (``utt1 What is said.``), ``wav.scp`` (``rec1 a.wav``) and ``utt2spk``.

    With ``segments`` (``utt1 rec1 1.50 3.25``, in seconds; -1 is the end of the recording) an
    utterance is a part of a recording; without it, utterances and recordings share their names.
    ``utt2spk`` and ``segments`` may be left out.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        source.content(str(folder / KALDI_TEXT))
        return
    texts = _kaldi_table(folder / KALDI_TEXT, source)
    wavs = _kaldi_table(folder / WAV_SCP, source)
    speakers, segments, durations = (
        _kaldi_table(folder / name, source) if (folder / name).exists() else None
        for name in (UTT2SPK, SEGMENTS, UTT2DUR)
    )
    listing = WAV_SCP if segments is None else SEGMENTS
    listed = wavs if segments is None else segments
    for utterance, (line, _) in listed.items():
        if utterance not in texts:
            source.fault(f"{folder / listing}:{line}", f"{utterance!r} is not in text")
    for utterance, (line, text) in texts.items():
        with source.at(f"{folder / KALDI_TEXT}:{line}"):
            if utterance not in listed:
                raise RowFault(f"{utterance!r} is not in {listing}")
            if speakers is not None and utterance not in speakers:
                raise RowFault(f"{utterance!r} is not in utt2spk")
            speaker = {} if speakers is None else {"speaker": speakers[utterance][1]}
            recording, seconds = utterance, Fields()
            if segments is not None:
                place, segment = segments[utterance]
                recording, seconds = _kaldi_segment(segment)
                if not seconds or recording not in wavs:
                    source.fault(
                        f"{folder / SEGMENTS}:{place}",
                        "expected `utterance recording start end` with a recording of wav.scp, "
                        f"found {segment!r:.60}",
                    )
                    continue
            place, audio = wavs[recording]
            if audio.endswith("|"):
                source.fault(
                    f"{folder / WAV_SCP}:{place}",
                    f"{recording!r} is a command; write its output to a file and give its path",
                )
                continue
            fields = {"id": utterance, "text": text, **speaker, **seconds, "audio": audio}
            if durations is not None and utterance in durations:
                fields["duration_seconds"] = durations[utterance][1]
            yield RawRow(str(folder / KALDI_TEXT), line, fields)


def _kaldi_table(path: Path, source: Source) -> dict[str, tuple[int, str]]:
    """Return, by name, the line's number and the rest of lines ``name the rest``."""
    table: dict[str, tuple[int, str]] = {}
    for line, text in source.lines(str(path)):
        name, _, rest = text.strip().replace("\t", " ").partition(" ")
        if name in table:
            source.fault(f"{path}:{line}", f"{name!r} is taken by {path}:{table[name][0]}")
        table.setdefault(name, (line, rest.strip()))
    return table


def _kaldi_segment(text: str) -> tuple[str, Fields]:
    """Return recording and seconds of ``rec1 1.50 3.25``; no seconds if it is something else."""
    recording, *times = text.split() or [""]
    try:
        start_seconds, end_seconds = (float(time) for time in times)
    except ValueError:
        return recording, {}
    end = {} if end_seconds == -1 else {"end_seconds": end_seconds}
    return recording, {"start_seconds": start_seconds, **end}


def read_nemo(source: Source) -> RawRows:
    """Read a NeMo manifest.

    ``{"audio_filepath": "a.wav", "text": "What is said.", "offset": 1.5, "duration": 2.0}``

    Without ``offset`` the recording is the whole file, and ``duration`` is compared with it.
    """
    for line, value in source.json_objects(source.path):
        with source.at(f"{source.path}:{line}"):
            columns = columns_of(value, source.columns)
            yield RawRow(source.path, line, in_seconds(renamed(value, columns), columns))


def read_lhotse(source: Source) -> RawRows:
    """Read a MonoCut per line: one supervision of one recording that is one file.

    ``{"id": "c1", "start": 1.5, "duration": 2.0, "type": "MonoCut",
    "supervisions": [{"start": 0.0, "duration": 2.0, "text": "What is said."}],
    "recording": {"duration": 9.0, "sources": [{"type": "file", "source": "a.wav"}]}}``
    """
    for line, cut in source.json_objects(source.path):
        with source.at(f"{source.path}:{line}"):
            yield RawRow(source.path, line, _cut_fields(cut))


def _cut_fields(cut: Fields) -> Fields:
    """Return the fields of a Lhotse cut."""
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
            raise RowFault(
                "expected a cut with numbers `start` and `duration`, one supervision, and a "
                "`recording` whose one source is a file"
            )
    if cut.get("type", "MonoCut") != "MonoCut":
        raise RowFault(f"expected a MonoCut, found {str(cut['type'])!r:.60}")
    if recording.get("transforms"):
        raise RowFault("the recording has transforms, which are not applied here; save its audio")
    channels = origin.get("channels") or [0]
    if not isinstance(channels, list) or len(channels) != 1:
        raise RowFault("the file has several channels; save the cut's channel as a file")
    if start < -ROUNDING_SECONDS or start + duration > cut_duration + ROUNDING_SECONDS:
        raise RowFault("the supervision extends outside the cut; cut at the supervision")
    fields = {
        "id": cut.get("id"),
        "audio": audio,
        **{key: supervision.get(key) for key in ("text", "speaker", "language")},
        "sample_rate_hz": recording.get("sampling_rate"),
    }
    first, last = max(0.0, end_of(cut_start, start)), end_of(cut_start, start + duration)
    if first < ROUNDING_SECONDS and abs(last - recording_duration) < ROUNDING_SECONDS:
        return {**fields, "duration_seconds": recording_duration}
    return {**fields, "start_seconds": first, "end_seconds": last}
