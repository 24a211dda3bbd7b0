"""Manifest to clips: check every row, decode every recording, split into train and eval."""

import hashlib
import logging
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from higgs_pipe.cli import main
from higgs_pipe.config import (
    DataConfig,
    ManifestEntry,
    ValidateConfig,
    ValidateStage,
    load_stage,
)
from higgs_pipe.data import quality
from higgs_pipe.data.audio import (
    AudioError,
    AudioMissingError,
    Header,
    SegmentOutsideError,
    decode,
    pcm_sha256,
    read_header,
)
from higgs_pipe.data.files import sha256_of_file, write_json
from higgs_pipe.data.manifest import Row, read_manifests
from higgs_pipe.data.splits import (
    EVAL,
    REFERENCE,
    TRAIN,
    Stretch,
    assign_splits,
    audio_groups,
    shard_of,
)
from higgs_pipe.data.tables import CLIPS, REJECTED, SHARD_CLIPS, write_table
from higgs_pipe.errors import UserError, list_offenders

logger = logging.getLogger("higgs_pipe")

SILENT_PEAK = 1e-4  # full scale is 1: three steps of 16-bit audio
CONTROL_TOKEN = re.compile(r"<\|.*?\|>", re.DOTALL)
NUM_FILES_PER_PROGRESS_LINE = 5000

ONE_CLIP_MESSAGE = (
    "cloning falls back to plain speech for these speakers: give them a second recording, or give "
    "their row a `ref_audio` and `ref_text`"
)


class Reason(StrEnum):
    """Why a row is rejected, each with what to do about it."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> Self:
        """A reason code that carries its remedy."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.remedy = remedy
        return reason

    AUDIO_MISSING = (
        "audio_missing",
        "put the file there, or mend `audio` (a path relative to the manifest)",
    )
    AUDIO_UNREADABLE = "audio_unreadable", "export it again as WAV or FLAC, or drop the row"
    AUDIO_NON_FINITE = "audio_non_finite", "export it again, best as 16-bit WAV, or drop the row"
    SEGMENT_OUTSIDE = (
        "segment_outside",
        "mend `start_seconds` and `end_seconds` (a Kaldi segment, an offset, a cut), or the file",
    )
    TEXT_EMPTY = "text_empty", "write down what is said, or drop the row"
    CONTROL_TOKEN = "control_token", "take it out: the model would read it as a command"
    SILENT = "silent", "record it again, or drop the row"
    TOO_SHORT = "too_short", "drop the row, or lower validate.min_clip_seconds"
    TOO_LONG = "too_long", "cut it into utterances, or raise validate.max_clip_seconds"
    REFERENCE_MISSING = (
        "reference_missing",
        "put the file there, or mend `ref_audio` (a path relative to the manifest)",
    )
    REFERENCE_UNREADABLE = (
        "reference_unreadable",
        "name another recording as `ref_audio`, or leave out `ref_audio` and `ref_text`",
    )
    REFERENCE_IS_TARGET = (
        "reference_is_target",
        "name another recording as `ref_audio`, or leave out `ref_audio` and `ref_text`",
    )
    SPLIT_CONFLICT = "split_conflict", "give all rows of one recording the same `split`"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a recording or a row."""

    reason: Reason
    fact: str


@dataclass(frozen=True)
class Recording:
    """What decoding a file, or a segment of it, has told; the samples are let go."""

    path: Path
    start_seconds: float | None
    end_seconds: float | None
    duration_seconds: float
    sample_rate_hz: int
    num_channels: int
    peak: float
    rms_dbfs: float
    audio_sha256: str
    pcm_sha256: str

    @property
    def stretch(self) -> Stretch:
        """Where its audio lies, to find clips that share some."""
        return Stretch(self.path, self.start_seconds, self.end_seconds, self.pcm_sha256)


@dataclass(frozen=True)
class Rejection:
    """A row that goes no further."""

    row: Row
    fault: Fault

    @property
    def message(self) -> str:
        """The fact and the remedy, in a sentence."""
        return f"{self.fault.fact}; {self.fault.reason.remedy}"

    def __str__(self) -> str:
        return f"{self.row.place}: {self.fault.reason}: {self.message}"


# A file and the segment of it, in seconds; None is the file's own start or end.
Segment: TypeAlias = tuple[Path, float | None, float | None]
Recordings: TypeAlias = Mapping[Segment, Recording | Fault]
# A row of the table of clips, without its split at first.
Clip: TypeAlias = dict[str, Any]


def run(
    config: Path,
    clips: Path,
    rejected: Path,
    validation: Path,
    shards_dir: Path,
    num_threads: int = 1,
) -> None:
    """Check the manifest and its recordings, and write the tables of clips.

    Equal inputs give equal bytes in every output, whatever ``num_threads`` is.

    Args:
        config: ``results/config/validate.json``.
        clips: Table to write: accepted clips in the manifest's order, then their references.
        rejected: Table to write: rejected rows with reason and remedy.
        validation: JSON to write: counts, hours, speakers, languages, duplicates.
        shards_dir: Folder for ``shard-00000.parquet`` ..., the clips that one tokenization job
            encodes; only a shard whose clips change changes its bytes.
        num_threads: Files decoded at once.

    Raises:
        UserError: The manifest is faulty, too many rows are rejected, or a split would be empty.
            Nothing is written then.
    """
    stage = load_stage(ValidateStage, config)
    manifests: list[str | ManifestEntry] = (
        [*stage.manifest] if isinstance(stage.manifest, list) else [stage.manifest]
    )
    manifest = read_manifests(manifests)
    recordings = _measure_all(manifest.rows, stage.validate_, num_threads)
    accepted, rejections = _judge(manifest.rows, recordings)
    _check_enough_accepted(len(manifest.rows), rejections, stage.validate_.max_rejected_fraction)
    targets, references = _clips(accepted, recordings, stage.data)
    _check_both_splits(targets)
    summary = _summary(targets, references, rejections, manifest.ignored_keys)

    write_table(clips, CLIPS, [*targets, *references])
    write_table(rejected, REJECTED, [_rejected_row(rejection) for rejection in rejections])
    _write_shards(shards_dir, [*targets, *references], stage.data.num_shards)
    write_json(validation, summary)
    names = [entry if isinstance(entry, str) else entry.path for entry in manifests]
    _log(summary, rejections, ", ".join(names))


def _measure_all(
    rows: Sequence[Row], limits: ValidateConfig, num_threads: int
) -> dict[Segment, Recording | Fault]:
    """Decode each distinct segment once; a thread holds the samples of one at a time."""
    by_path: dict[Path, dict[Segment, None]] = defaultdict(dict)
    for row in rows:
        for segment in (_target(row), _reference(row)):
            if segment is not None:
                by_path[segment[0]][segment] = None
    recordings: dict[Segment, Recording | Fault] = {}
    with ThreadPoolExecutor(num_threads) as executor:
        measured = executor.map(lambda segments: _measure_file(segments, limits), by_path.values())
        for num_files, of_file in enumerate(measured, start=1):
            recordings |= of_file
            if num_files % NUM_FILES_PER_PROGRESS_LINE == 0:
                logger.info("decoded %d of %d recordings", num_files, len(by_path))
    return recordings


def _target(row: Row) -> Segment:
    return row.audio_path, row.start_seconds, row.end_seconds


def _reference(row: Row) -> Segment | None:
    return None if row.ref_audio_path is None else (row.ref_audio_path, None, None)


def _measure_file(
    segments: Iterable[Segment], limits: ValidateConfig
) -> dict[Segment, Recording | Fault]:
    """The segments of one file; its header and its hash are read once."""
    segments = list(segments)
    path = segments[0][0]
    try:
        header = read_header(path)
        measured = {segment: _measure(segment, header, limits) for segment in segments}
        if any(isinstance(recording, Recording) for recording in measured.values()):
            audio_sha256 = sha256_of_file(path)
            return {
                segment: replace(recording, audio_sha256=audio_sha256)
                if isinstance(recording, Recording)
                else recording
                for segment, recording in measured.items()
            }
    except AudioMissingError as error:
        return dict.fromkeys(segments, Fault(Reason.AUDIO_MISSING, str(error)))
    except AudioError as error:
        return dict.fromkeys(segments, Fault(Reason.AUDIO_UNREADABLE, str(error)))
    return measured


def _measure(segment: Segment, header: Header, limits: ValidateConfig) -> Recording | Fault:
    """What a segment holds; ``audio_sha256`` is left to the caller."""
    path, start_seconds, end_seconds = segment
    try:
        first, end = header.segment(start_seconds, end_seconds)
        duration_seconds = (end - first) / header.sample_rate_hz
        # The header decides, so that an hour-long file is never decoded.
        is_part = (first, end) != (0, header.num_samples)
        name = (
            f"the segment of {path} from {first / header.sample_rate_hz:.3f} s"
            if is_part
            else f"{path}"
        )
        if duration_seconds > limits.max_clip_seconds:
            fact = f"{name} lasts {duration_seconds:.3f} s, more than {limits.max_clip_seconds:g} s"
            return Fault(Reason.TOO_LONG, fact)
        if duration_seconds < limits.min_clip_seconds:
            fact = f"{name} lasts {duration_seconds:.3f} s, less than {limits.min_clip_seconds:g} s"
            return Fault(Reason.TOO_SHORT, fact)
        audio = decode(path, start_seconds, end_seconds)
    except SegmentOutsideError as error:
        return Fault(Reason.SEGMENT_OUTSIDE, str(error))
    except AudioError as error:
        return Fault(Reason.AUDIO_UNREADABLE, str(error))
    num_bad = audio.samples.size - int(np.isfinite(audio.samples).sum())
    if num_bad:
        fact = f"{path} holds {num_bad:,} samples that are NaN or infinite"
        return Fault(Reason.AUDIO_NON_FINITE, fact)
    peak = quality.peak(audio.samples)
    if peak < SILENT_PEAK:
        fact = f"{path} is silent: its peak is {peak:.1e} of full scale, below {SILENT_PEAK:.0e}"
        return Fault(Reason.SILENT, fact)
    return Recording(
        path=path,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        duration_seconds=audio.duration_seconds,
        sample_rate_hz=audio.sample_rate_hz,
        num_channels=audio.samples.shape[1],
        peak=peak,
        rms_dbfs=quality.rms_dbfs(audio.samples),
        audio_sha256="",
        pcm_sha256=pcm_sha256(audio.samples, audio.sample_rate_hz),
    )


def _judge(
    rows: Sequence[Row], recordings: Recordings
) -> tuple[list[tuple[Row, Recording]], list[Rejection]]:
    """Each row is accepted with its recording, or rejected; both in the manifest's order."""
    verdicts = {row: _verdict(row, recordings) for row in rows}
    sound = {row: verdict for row, verdict in verdicts.items() if isinstance(verdict, Recording)}
    groups = dict(zip(sound, audio_groups([r.stretch for r in sound.values()]), strict=True))
    held_out: dict[str, Row] = {}
    for row in sound:
        if row.split == EVAL:
            held_out.setdefault(groups[row], row)
    accepted: list[tuple[Row, Recording]] = []
    rejections: list[Rejection] = []
    for row, verdict in verdicts.items():
        if isinstance(verdict, Fault):
            rejections.append(Rejection(row, verdict))
        elif row.split == TRAIN and groups[row] in held_out:
            other = held_out[groups[row]].place
            fact = f"`split` is {TRAIN!r}, and {EVAL!r} for the same audio at {other}"
            rejections.append(Rejection(row, Fault(Reason.SPLIT_CONFLICT, fact)))
        else:
            accepted.append((row, verdict))
    return accepted, rejections


def _verdict(row: Row, recordings: Recordings) -> Recording | Fault:
    if not row.text.strip():
        return Fault(Reason.TEXT_EMPTY, "`text` is empty")
    for key, text in (("text", row.text), ("scene", row.scene), ("ref_text", row.ref_text)):
        if token := CONTROL_TOKEN.search(text or ""):
            return Fault(Reason.CONTROL_TOKEN, f"`{key}` contains {token.group():.60}")
    recording = recordings[_target(row)]
    reference_segment = _reference(row)
    if isinstance(recording, Fault) or reference_segment is None:
        return recording
    reference = recordings[reference_segment]
    if isinstance(reference, Fault):
        is_missing = reference.reason is Reason.AUDIO_MISSING
        reason = Reason.REFERENCE_MISSING if is_missing else Reason.REFERENCE_UNREADABLE
        return Fault(reason, reference.fact)
    # A reference is a whole file, so it holds any segment of that file.
    if reference.pcm_sha256 == recording.pcm_sha256 or reference.path == recording.path:
        return Fault(Reason.REFERENCE_IS_TARGET, "`ref_audio` is the same recording as `audio`")
    return recording


def _check_enough_accepted(
    num_rows: int, rejections: Sequence[Rejection], max_rejected_fraction: float
) -> None:
    offenders = list_offenders([str(rejection) for rejection in rejections])
    if len(rejections) / num_rows > max_rejected_fraction:
        raise UserError(
            f"{len(rejections):,} of {num_rows:,} rows are rejected, more than "
            f"validate.max_rejected_fraction = {max_rejected_fraction:g} allows:\n{offenders}\n"
            "Mend or drop these rows, or raise validate.max_rejected_fraction, and run again."
        )
    if len(rejections) == num_rows:
        raise UserError(f"no row is left:\n{offenders}\nMend these rows and run again.")


def _clips(
    accepted: Sequence[tuple[Row, Recording]], recordings: Recordings, data: DataConfig
) -> tuple[list[Clip], list[Clip]]:
    """The clips, split into train and eval, and their distinct reference recordings."""
    splits = assign_splits(
        audio_groups([recording.stretch for _, recording in accepted]),
        [row.split for row, _ in accepted],
        data.eval_fraction,
        data.split_seed,
    )
    references: dict[tuple[str, str], Clip] = {}
    num_texts: Counter[str] = Counter()
    clips = []
    for (row, recording), split in zip(accepted, splits, strict=True):
        reference_id = None
        segment = _reference(row)
        reference = None if segment is None else recordings[segment]
        if isinstance(reference, Recording) and row.ref_text is not None:
            key = (reference.pcm_sha256, row.ref_text)
            if key not in references:
                num_texts[reference.pcm_sha256] += 1
                references[key] = _clip(row, reference, REFERENCE) | {
                    "clip_id": _reference_id(*key, is_first=num_texts[key[0]] == 1),
                    "text": row.ref_text,
                    "scene": None,
                    "dialogue_id": None,
                    "turn": None,
                }
            reference_id = references[key]["clip_id"]
        clips.append(_clip(row, recording, split) | {"reference_id": reference_id})
    return clips, list(references.values())


def _reference_id(pcm_sha256: str, text: str, is_first: bool) -> str:
    """The id of a reference; another text for the same audio gives another id."""
    other = hashlib.sha256(f"{pcm_sha256} {text}".encode()).hexdigest()
    return f"ref-{(pcm_sha256 if is_first else other)[:16]}"


def _clip(row: Row, recording: Recording, split: str) -> Clip:
    return {
        "clip_id": row.clip_id,
        "audio_path": str(recording.path),
        "start_seconds": recording.start_seconds,
        "end_seconds": recording.end_seconds,
        "manifest": row.manifest,
        "line": row.line,
        "text": row.text,
        "speaker": row.speaker,
        "language": row.language,
        "scene": row.scene,
        "dialogue_id": row.dialogue_id,
        "turn": row.turn,
        "conversation": None,
        "reference_id": None,
        "split": split,
        "duration_seconds": recording.duration_seconds,
        "sample_rate_hz": recording.sample_rate_hz,
        "num_channels": recording.num_channels,
        "peak": recording.peak,
        "rms_dbfs": recording.rms_dbfs,
        "audio_sha256": recording.audio_sha256,
        "pcm_sha256": recording.pcm_sha256,
    }


def _rejected_row(rejection: Rejection) -> dict[str, Any]:
    row = rejection.row
    return {
        "clip_id": row.clip_id,
        "audio": row.audio,
        "manifest": row.manifest,
        "line": row.line,
        "speaker": row.speaker,
        "reason": rejection.fault.reason.value,
        "message": rejection.message,
    }


def _check_both_splits(targets: Sequence[Clip]) -> None:
    by_split = Counter(clip["split"] for clip in targets)
    for split, other in ((TRAIN, EVAL), (EVAL, TRAIN)):
        if by_split[split] == 0:
            num_groups = len(set(_audio_groups(targets)))
            raise UserError(
                f"no clip is left for {split}: the {len(targets):,} accepted clips form "
                f"{num_groups:,} group{'s' * (num_groups > 1)} of shared audio, all in {other}. "
                "Add recordings, or "
                f'give some rows "split": "{split}" (or no split) in the manifest.'
            )


def _write_shards(shards_dir: Path, clips: Sequence[Clip], num_shards: int) -> None:
    by_shard: list[list[Clip]] = [[] for _ in range(num_shards)]
    for clip in sorted(clips, key=lambda clip: str(clip["clip_id"])):
        by_shard[shard_of(clip["clip_id"], num_shards)].append(clip)
    paths = [shards_dir / f"shard-{shard:05d}.parquet" for shard in range(num_shards)]
    for path, shard_clips in zip(paths, by_shard, strict=True):
        write_table(path, SHARD_CLIPS, shard_clips)
    # Of an earlier run with more shards: nobody may take them for part of this one.
    for stale in set(shards_dir.glob("shard-*.parquet")) - set(paths):
        stale.unlink()


def _summary(
    targets: Sequence[Clip],
    references: Sequence[Clip],
    rejections: Sequence[Rejection],
    ignored_keys: Mapping[str, int],
) -> dict[str, Any]:
    """What ``validation.json`` holds."""
    reasons = Counter(rejection.fault.reason for rejection in rejections)
    seconds = [clip["duration_seconds"] for clip in targets]
    by_split = {split: [c for c in targets if c["split"] == split] for split in (TRAIN, EVAL)}
    groups = _audio_groups(targets)
    audio_by_split = [
        {group for group, clip in zip(groups, targets, strict=True) if clip["split"] == split}
        for split in (TRAIN, EVAL)
    ]
    same_audio = _grouped(targets, "pcm_sha256")
    return {
        "num_rows": len(targets) + len(rejections),
        **_share(targets),
        "num_rejected": len(rejections),
        "num_rejected_by_reason": {r.value: reasons[r] for r in Reason if reasons[r]},
        "num_references": len(references),
        "splits": {split: _share(clips) for split, clips in by_split.items()},
        "clip_seconds": {
            "min": min(seconds),
            "median": statistics.median(seconds),
            "max": max(seconds),
        },
        "speakers": _shares(targets, "speaker"),
        "num_clips_without_speaker": sum(clip["speaker"] is None for clip in targets),
        "languages": _shares(targets, "language"),
        "num_clips_without_language": sum(clip["language"] is None for clip in targets),
        "speakers_with_one_clip": {
            "speakers": _speakers_without_reference(targets),
            "message": ONE_CLIP_MESSAGE,
        },
        "duplicates": [
            [clip["clip_id"] for clip in clips] for clips in same_audio.values() if len(clips) > 1
        ],
        "num_audio_shared_by_splits": len(set.intersection(*audio_by_split)),
        "ignored_manifest_keys": dict(ignored_keys),
    }


def _audio_groups(clips: Sequence[Clip]) -> list[str]:
    return audio_groups([Stretch.of_clip(clip) for clip in clips])


def _grouped(clips: Sequence[Clip], column: str) -> dict[str, list[Clip]]:
    """The clips of each value of a column, by name; clips without a value are left out."""
    groups = defaultdict(list)
    for clip in clips:
        if clip[column] is not None:
            groups[str(clip[column])].append(clip)
    return dict(sorted(groups.items()))


def _share(clips: Sequence[Clip]) -> dict[str, Any]:
    seconds = math.fsum(clip["duration_seconds"] for clip in clips)
    return {"num_clips": len(clips), "seconds": seconds, "hours": seconds / 3600}


def _shares(targets: Sequence[Clip], column: str) -> dict[str, dict[str, Any]]:
    """How much there is of each speaker or language, and where it went."""
    return {
        name: {
            **_share(clips),
            "num_train_clips": sum(clip["split"] == TRAIN for clip in clips),
            "num_eval_clips": sum(clip["split"] == EVAL for clip in clips),
        }
        for name, clips in _grouped(targets, column).items()
    }


def _speakers_without_reference(targets: Sequence[Clip]) -> list[str]:
    """Speakers of one recording that names no reference either: nothing to clone from."""
    return [
        speaker
        for speaker, clips in _grouped(targets, "speaker").items()
        if len({clip["pcm_sha256"] for clip in clips}) == 1
        and any(clip["reference_id"] is None for clip in clips)
    ]


def _log(summary: dict[str, Any], rejections: Sequence[Rejection], manifests: str) -> None:
    """Tell a person what was kept and what to mend."""
    if rejections:
        offenders = list_offenders([str(rejection) for rejection in rejections])
        logger.warning("rejected rows:\n%s", offenders)
    if speakers := summary["speakers_with_one_clip"]["speakers"]:
        logger.warning("speakers with one clip only:\n%s", list_offenders(speakers))
        logger.warning("%s", ONE_CLIP_MESSAGE)
    for key, num_rows in summary["ignored_manifest_keys"].items():
        logger.info("the manifest's key %r is not used (in %d rows)", key, num_rows)
    if num_groups := len(summary["duplicates"]):
        logger.info("recordings that occur more than once: %d; each is in one split", num_groups)
    kept = {"rows kept": summary, **summary["splits"]}
    lines = [_table_line(name, part) for name, part in kept.items()]
    lines += [f"{'rejected':<24}{summary['num_rejected']:>9,}"]
    lines += [f"{name:<24}{num:>9,}" for name, num in summary["num_rejected_by_reason"].items()]
    logger.info("%s:\n%s", manifests, "\n".join(f"  {line}" for line in lines))
    speaker_lines = [_table_line(name, part) for name, part in summary["speakers"].items()]
    logger.info("speakers: %d\n%s", len(speaker_lines), list_offenders(speaker_lines))


def _table_line(name: str, part: Mapping[str, Any]) -> str:
    return f"{name:<24}{part['num_clips']:>9,}{part['hours']:>12.3f} h"


if __name__ == "__main__":
    main(run)
