"""What ``validation.json`` holds, and the table and the warnings that a person reads."""

import logging
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.reasons import Reason, Rejection
from higgs_pipe.data.clips.splits import beside, groups_of, keys_of, overlap
from higgs_pipe.data.manifests.row import ManifestRows
from higgs_pipe.data.quality import outliers
from higgs_pipe.data.specs import EVAL, REFERENCE, TRAIN
from higgs_pipe.errors import list_offenders

logger = logging.getLogger("higgs_pipe")

NUM_NAMED = 20  # of a list that may be as long as the corpus

ONE_CLIP_MESSAGE = (
    "cloning falls back to plain speech for these speakers: give them a second recording, or give "
    "their row a `ref_audio` and `ref_text`"
)
# Measures in which a speaker's clips are alike, so that one that is not is worth a listen.
OUTLIER_MEASURES = (
    *("rms_dbfs", "snr_db", "bandwidth_hz", "silence_fraction"),
    *("characters_per_second", "words_per_second"),
)

# A row of CLIPS.
Clip = Mapping[str, Any]


def summarize(
    clips: Sequence[Clip], rejections: Sequence[Rejection], manifest: ManifestRows, data: DataConfig
) -> dict[str, Any]:
    """What ``validation.json`` holds."""
    targets = [clip for clip in clips if clip["split"] != REFERENCE]
    reasons = Counter(rejection.fault.reason for rejection in rejections)
    seconds = [clip["duration_seconds"] for clip in targets]
    by_split = {split: [c for c in targets if c["split"] == split] for split in (TRAIN, EVAL)}
    same_audio = _grouped(targets, "pcm_sha256")
    outside = [row for row in manifest.rows if row.is_outside_root]
    references = [clip for clip in clips if clip["split"] == REFERENCE]
    shared = overlap(clips, data)
    groups = groups_of(keys_of(targets, data, beside(targets, references)))
    return {
        "num_rows": len(targets) + len(rejections),
        **_share(targets),
        "num_rejected": len(rejections),
        "num_rejected_by_reason": {r.value: reasons[r] for r in Reason if reasons[r]},
        "rejected": _lost(rejections),
        "num_texts_from_transcripts": sum(c["text_source"] == "transcript" for c in targets),
        "num_references": len(references),
        "splits": {split: _share(clips) for split, clips in by_split.items()},
        "split_by": data.split_by,
        "overlap": shared,
        "num_audio_shared_by_splits": shared["audio"],
        "largest_group_num_clips": max(Counter(groups).values()),
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
        "outliers": _outliers(targets),
        "outside_root": {
            "num_rows": len(outside),
            "first_rows": [f"{row.place}: {row.audio}" for row in outside[:NUM_NAMED]],
        },
        "ignored_manifest_keys": dict(manifest.ignored_keys),
    }


def _outliers(targets: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """By speaker and measure, the clips that are far from the speaker's others; farthest first."""
    found: dict[str, dict[str, Any]] = {}
    for speaker, clips in _grouped(targets, "speaker").items():
        for measure in OUTLIER_MEASURES:
            values = [clip[measure] for clip in clips]
            indices = outliers(values)
            if not indices:
                continue
            median = statistics.median(values)
            indices.sort(key=lambda index: (-abs(values[index] - median), index))
            found.setdefault(speaker, {})[measure] = {
                "median": median,
                "num_clips": len(indices),
                "clips": {clips[i]["clip_id"]: values[i] for i in indices[:NUM_NAMED]},
            }
    return found


def _lost(rejections: Sequence[Rejection]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows and hours that are rejected, by reason, speaker and language."""
    names: dict[str, list[str | None]] = {
        "reasons": [rejection.fault.reason.value for rejection in rejections],
        "speakers": [rejection.row.speaker for rejection in rejections],
        "languages": [rejection.row.language for rejection in rejections],
    }
    lost: dict[str, dict[str, dict[str, Any]]] = {}
    for what, names_of_what in names.items():
        groups: dict[str, list[float | None]] = defaultdict(list)
        for name, rejection in zip(names_of_what, rejections, strict=True):
            if name is not None:
                groups[name].append(rejection.duration_seconds)
        lost[what] = {
            name: {
                "num_rows": len(durations),
                "num_rows_of_unknown_length": durations.count(None),
                "hours": math.fsum(seconds or 0 for seconds in durations) / 3600,
            }
            for name, durations in sorted(groups.items())
        }
    return lost


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


def log_warnings(summary: Mapping[str, Any], rejections: Sequence[Rejection]) -> None:
    """Tell a person what to mend and what to listen to."""
    if rejections:
        offenders = list_offenders([str(rejection) for rejection in rejections])
        logger.warning("rejected rows:\n%s", offenders)
    if speakers := summary["speakers_with_one_clip"]["speakers"]:
        logger.warning("speakers with one clip only:\n%s", list_offenders(speakers))
        logger.warning("%s", ONE_CLIP_MESSAGE)
    if 2 * summary["largest_group_num_clips"] > summary["num_clips"]:
        logger.warning(
            "%d of %d clips share audio, text, dialogue, speaker or recording, and so one split",
            summary["largest_group_num_clips"],
            summary["num_clips"],
        )
    if outlier_lines := _outlier_lines(summary["outliers"]):
        logger.info("clips unlike their speaker's others:\n%s", list_offenders(outlier_lines))
    for key, num_rows in summary["ignored_manifest_keys"].items():
        logger.info("the manifest's key %r is not used (in %d rows)", key, num_rows)
    if num_rows := summary["outside_root"]["num_rows"]:
        logger.info("rows with a recording outside their manifest's root: %d", num_rows)
    if num_groups := len(summary["duplicates"]):
        logger.info("recordings that occur more than once: %d; each is in one split", num_groups)


def _outlier_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each speaker and measure that has outliers, with the farthest clip."""
    lines = []
    for speaker, measures in found.items():
        for measure, of_measure in measures.items():
            clip_id, value = next(iter(of_measure["clips"].items()))
            lines.append(
                f"{speaker}: {measure} of {clip_id} is {value:.4g}, the median "
                f"{of_measure['median']:.4g} (clips like this: {of_measure['num_clips']})"
            )
    return lines


def table_lines(summary: Mapping[str, Any]) -> list[str]:
    """The hours kept and lost, in all and by reason, speaker and language, as a table.

    Args:
        summary: What ``validation.json`` holds.
    """
    lost = summary["rejected"]
    reasons = lost["reasons"].values()
    in_all = {key: sum(part[key] for part in reasons) for key in ("num_rows", "hours")}
    unknown = sum(part["num_rows_of_unknown_length"] for part in reasons)
    lines = [_line("", ("rows kept", "hours kept", "rows lost", "hours lost"))]
    lines.append(_table_line("all", summary, in_all))
    lines += [_table_line(split, part, {}) for split, part in summary["splits"].items()]
    for what in ("reasons", "speakers", "languages"):
        kept = {} if what == "reasons" else summary[what]
        names = sorted({*kept, *lost[what]}, key=lambda name: _weight(name, kept, lost[what]))
        if names:
            lines.append(f"{what}: {len(names):,}")
        lines += [
            _table_line(f"  {name}", kept.get(name, {}), lost[what].get(name, {}))
            for name in names[:NUM_NAMED]
        ]
        if len(names) > NUM_NAMED:
            lines.append(f"  ... and {len(names) - NUM_NAMED:,} more, in validation.json")
    if unknown:
        lines.append(f"rows lost whose length is unknown, their hours are not counted: {unknown:,}")
    return lines


def _weight(name: str, kept: Mapping[str, Any], lost: Mapping[str, Any]) -> tuple[float, str]:
    """For sorting: what has most hours first."""
    parts = [part[name] for part in (kept, lost) if name in part]
    return -sum(part["hours"] for part in parts), name


def _table_line(name: str, kept: Mapping[str, Any], lost: Mapping[str, Any]) -> str:
    return _line(
        name,
        (
            f"{kept['num_clips']:,}" if kept else "",
            f"{kept['hours']:.3f}" if kept else "",
            f"{lost['num_rows']:,}" if lost else "",
            f"{lost['hours']:.3f}" if lost else "",
        ),
    )


def _line(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<30}" + "".join(f"{cell:>12}" for cell in cells)).rstrip()
