"""Counts of what validation accepted and rejected."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.channels import MIN_SEPARATE_SHARE
from higgs_pipe.data.clips.candidates import Clip
from higgs_pipe.data.clips.contradictions import SAID_COLUMNS, find_contradictions
from higgs_pipe.data.clips.judging import Judgement
from higgs_pipe.data.clips.keys import Numbers, may_repeat
from higgs_pipe.data.clips.overlap import overlap
from higgs_pipe.data.clips.reasons import Reason, Rejection
from higgs_pipe.data.clips.results import (
    ClipSeconds,
    Contradictions,
    Hours,
    LeftOut,
    Loss,
    Losses,
    NamedShare,
    Outliers,
    OutsideRoot,
    Share,
    SpeakersWithOneClip,
    ValidationSummary,
)
from higgs_pipe.data.clips.text_findings import TEXT_COLUMNS, find_in_texts
from higgs_pipe.data.manifests.row_table import StoredRows
from higgs_pipe.data.quality import outliers
from higgs_pipe.data.specs import CLIPS, EVAL, TRAIN
from higgs_pipe.data.table_rows import TableRows
from higgs_pipe.data.tables import open_table

NUM_NAMED = 20  # of a list that may be as long as the corpus

ONE_CLIP_MESSAGE = (
    "cloning falls back to plain speech for these speakers: give them a second recording, or give "
    "their row a `ref_audio` and `ref_text`"
)
# Measures in which a speaker's clips are alike, so that one that is not is worth a listen.
OUTLIER_MEASURES = (
    "rms_dbfs",
    "snr_db",
    "bandwidth_hz",
    "silence_fraction",
    "characters_per_second",
    "words_per_second",
)
SUMMARY_COLUMNS = (
    "clip_id", "duration_seconds", "channel", "separate_share", "text_source", "pcm_sha256",
    "split", "speaker", "language", "scene", "reference_id", *OUTLIER_MEASURES,
)  # fmt: skip


class Outcome(NamedTuple):
    """The findings of judging and splitting, beside the table of clips."""

    rejections: Sequence[Rejection]
    groups: Numbers  # (N,) of each target; targets of one group share a split


def summarize(
    clips: Path, outcome: Outcome, rows: StoredRows, data: DataConfig
) -> ValidationSummary:
    """Count what was accepted and rejected.

    Args:
        clips: The table of the accepted clips, and below them their references.
        outcome: The rejected rows, and the groups of the accepted ones.
        rows: All rows.
        data: The settings of the split.
    """
    table = open_table(clips, CLIPS)
    shared = overlap(lambda name: table.read([name]).column(name), data)
    findings = find_in_texts(table.read(TEXT_COLUMNS))
    num_targets = len(outcome.groups)
    contradictions = _contradictions(table.read(SAID_COLUMNS), num_targets)
    targets = TableRows(table.read(SUMMARY_COLUMNS).slice(0, num_targets))
    rejections = outcome.rejections
    reasons = Counter(rejection.fault.reason for rejection in rejections)
    seconds = [clip["duration_seconds"] for clip in targets]
    outside = [f"{row.place}: {row.audio}" for row in rows.where(pc.field("is_outside_root"))]
    return ValidationSummary(
        num_rows=len(targets) + len(rejections),
        **_amount(targets),
        num_rejected=len(rejections),
        num_rejected_by_reason={r.value: reasons[r] for r in Reason if reasons[r]},
        rejected=_losses(rejections),
        num_texts_from_transcripts=_count(targets, "text_source", "transcript"),
        num_references=table.metadata.num_rows - num_targets,
        num_clips_of_one_channel=sum(clip["channel"] is not None for clip in targets),
        num_clips_of_separate_channels=sum(
            clip["separate_share"] > MIN_SEPARATE_SHARE for clip in targets
        ),
        splits={
            split: Share(**_amount([clip for clip in targets if clip["split"] == split]))
            for split in (TRAIN, EVAL)
        },
        split_by=data.split_by,
        overlap=shared,
        largest_group_num_clips=int(np.bincount(outcome.groups).max()),
        clip_seconds=ClipSeconds(
            min=min(seconds), median=statistics.median(seconds), max=max(seconds)
        ),
        speakers=_shares(targets, "speaker"),
        num_clips_without_speaker=_count(targets, "speaker", None),
        languages=_shares(targets, "language"),
        num_clips_without_language=_count(targets, "language", None),
        speakers_with_one_clip=SpeakersWithOneClip(
            speakers=_speakers_without_reference(targets), message=ONE_CLIP_MESSAGE
        ),
        duplicates=_duplicates(targets),
        contradictions=contradictions,
        outliers=_outliers(targets),
        text_findings=findings,
        outside_root=OutsideRoot(
            num_rows=len(outside),
            first_rows=outside[:NUM_NAMED],
        ),
        ignored_manifest_keys=dict(rows.ignored_keys),
        manifest_notes=list(rows.notes),
        left_out={
            reason: LeftOut(num_files=len(files), first_files=files[:NUM_NAMED])
            for reason, files in rows.left_out.items()
        },
        shared_scene=_shared_scene(targets),
    )


def hours_of(judgement: Judgement) -> Hours:
    """Count the hours kept and lost before the clips are split."""
    columns = ["duration_seconds", "split", "speaker", "language"]
    clips = TableRows(judgement.accepted.table(columns))
    return Hours(
        kept=Share(**_amount(clips)),
        splits={},
        speakers=_shares(clips, "speaker"),
        languages=_shares(clips, "language"),
        lost=_losses(judgement.rejections),
    )


def _shared_scene(targets: Sequence[Clip]) -> str | None:
    scenes = {clip["scene"] for clip in targets}
    return scenes.pop() if len(scenes) == 1 and len(targets) > 1 else None


def _amount(clips: Sequence[Clip]) -> dict[str, Any]:
    """Return the fields of :class:`Share`."""
    seconds = math.fsum(clip["duration_seconds"] for clip in clips)
    return {"num_clips": len(clips), "seconds": seconds, "hours": seconds / 3600}


def _count(clips: Sequence[Clip], column: str, value: str | None) -> int:
    return sum(clip[column] == value for clip in clips)


def _shares(targets: Sequence[Clip], column: str) -> dict[str, NamedShare]:
    """Return the clips of each speaker or language, and where they went."""
    return {
        name: NamedShare(
            **_amount(clips),
            num_train_clips=_count(clips, "split", TRAIN),
            num_eval_clips=_count(clips, "split", EVAL),
        )
        for name, clips in _grouped(targets, column).items()
    }


def _grouped(clips: Sequence[Clip], column: str) -> dict[str, list[Clip]]:
    """Return the clips of each value of a column, by value; clips without one are left out."""
    groups = defaultdict(list)
    for clip in clips:
        if clip[column] is not None:
            groups[str(clip[column])].append(clip)
    return dict(sorted(groups.items()))


def _losses(rejections: Sequence[Rejection]) -> Losses:
    def by(name_of: Callable[[Rejection], str | None]) -> dict[str, Loss]:
        groups: dict[str, list[float | None]] = defaultdict(list)
        for rejection in rejections:
            if (name := name_of(rejection)) is not None:
                groups[name].append(rejection.duration_seconds)
        return {
            name: Loss(
                num_rows=len(durations),
                num_rows_of_unknown_length=durations.count(None),
                hours=math.fsum(seconds or 0 for seconds in durations) / 3600,
            )
            for name, durations in sorted(groups.items())
        }

    return Losses(
        reasons=by(lambda rejection: rejection.fault.reason.value),
        speakers=by(lambda rejection: rejection.row.speaker),
        languages=by(lambda rejection: rejection.row.language),
    )


def _contradictions(clips: pa.Table, num_targets: int) -> dict[str, Contradictions]:
    return find_contradictions(
        TableRows(clips.slice(0, num_targets)), TableRows(clips.slice(num_targets))
    )


def _duplicates(targets: TableRows) -> list[list[str]]:
    """Return the ids of clips with equal samples."""
    is_repeated = may_repeat(clip["pcm_sha256"] for clip in targets)
    equal = _grouped(list(compress(targets, is_repeated)), "pcm_sha256")
    return [[clip["clip_id"] for clip in clips] for clips in equal.values() if len(clips) > 1]


def _speakers_without_reference(targets: Sequence[Clip]) -> list[str]:
    """Return speakers of one recording, without a reference in each row: nothing to clone from."""
    return [
        speaker
        for speaker, clips in _grouped(targets, "speaker").items()
        if all(clip["pcm_sha256"] == clips[0]["pcm_sha256"] for clip in clips)
        and any(clip["reference_id"] is None for clip in clips)
    ]


def _outliers(targets: Sequence[Clip]) -> dict[str, dict[str, Outliers]]:
    """Return the outliers of each speaker and measure that has any."""
    found: dict[str, dict[str, Outliers]] = defaultdict(dict)
    for speaker, clips in _grouped(targets, "speaker").items():
        for measure in OUTLIER_MEASURES:
            # In the float32 of the table, so that a number here is found there.
            values = np.array([clip[measure] for clip in clips], np.float32).tolist()
            indices = outliers(values)
            if not indices:
                continue
            median = statistics.median(values)
            indices.sort(key=lambda index: (-abs(values[index] - median), index))
            found[speaker][measure] = Outliers(
                median=median,
                num_clips=len(indices),
                clips={clips[i]["clip_id"]: values[i] for i in indices[:NUM_NAMED]},
            )
    return dict(found)
