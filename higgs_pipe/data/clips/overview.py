"""The log of validation: warnings, and a table of hours kept and rejected."""

import logging
from collections.abc import Mapping, Sequence

from higgs_pipe.data.clips.reasons import Rejection
from higgs_pipe.data.clips.results import Hours, Loss, Outliers, Share, ValidationSummary
from higgs_pipe.data.clips.summary import NUM_NAMED
from higgs_pipe.data.units import with_unit
from higgs_pipe.errors import list_offenders

logger = logging.getLogger("higgs_pipe")


def log_warnings(validation: ValidationSummary, rejections: Sequence[Rejection]) -> None:
    """Log the problems to fix and the clips to listen to."""
    if rejections:
        offenders = list_offenders([str(rejection) for rejection in rejections])
        logger.warning("rejected rows:\n%s", offenders)
    if speakers := validation.speakers_with_one_clip.speakers:
        logger.warning("speakers with only one clip:\n%s", list_offenders(speakers))
        logger.warning("%s", validation.speakers_with_one_clip.message)
    if 2 * validation.largest_group_num_clips > validation.num_clips:
        logger.warning(
            "%d of %d clips share audio, text, dialogue, speaker or recording, "
            "so they are in one split",
            validation.largest_group_num_clips,
            validation.num_clips,
        )
    for kind, found in validation.contradictions.items():
        logger.warning(
            "recordings with several %s: %d\n%s",
            kind,
            found.num_recordings,
            list_offenders(found.examples),
        )
    if outlier_lines := _outlier_lines(validation.outliers):
        logger.info("clips unlike their speaker's other clips:\n%s", list_offenders(outlier_lines))
    if num_clips := validation.num_clips_of_one_channel:
        logger.warning(
            "clips whose channels cancel when mixed to mono: %d; their loudest channel is used",
            num_clips,
        )
    if num_clips := validation.num_clips_of_separate_channels:
        logger.warning(
            "clips with another sound in each channel, such as two speakers: %d; their mean is "
            "encoded. Where a text is what one of them says, save that channel as a file",
            num_clips,
        )
    for kind, finding in validation.text_findings.items():
        logger.info(
            "rows whose texts have %s: %d, such as %s",
            kind.replace("_", " "),
            finding.num_rows,
            finding.examples[0],
        )
    for note in validation.manifest_notes:
        logger.info("%s", note)
    for reason, left_out in validation.left_out.items():
        files = list_offenders(left_out.first_files)
        logger.warning("files left out, %s: %d\n%s", reason, left_out.num_files, files)
    if validation.shared_scene is not None:
        logger.warning(
            "all clips have the scene %r, so a prompt without it is new to the adapter; use it "
            "in generation, or train without it (pack.scene_dropout)",
            validation.shared_scene,
        )
    for key, num_rows in validation.ignored_manifest_keys.items():
        logger.info("the manifest's key %r is not used (in %d rows)", key, num_rows)
    if num_rows := validation.outside_root.num_rows:
        logger.info("rows with a recording outside their manifest's root: %d", num_rows)
    if num_groups := len(validation.duplicates):
        logger.info("recordings that occur more than once: %d; each is in one split", num_groups)


def _outlier_lines(found: Mapping[str, Mapping[str, Outliers]]) -> list[str]:
    """Return a line for each speaker and measure with outliers; it names the farthest clip."""
    lines = []
    for speaker, measures in found.items():
        for measure, of_measure in measures.items():
            clip_id, value = next(iter(of_measure.clips.items()))
            lines.append(
                f"{speaker}, {measure}: {of_measure.num_clips}, farthest {clip_id} with "
                f"{with_unit(measure, value)}; median {with_unit(measure, of_measure.median)}"
            )
    return lines


def table_lines(hours: Hours) -> list[str]:
    """Return a table of the hours kept and rejected: total, by reason, speaker and language."""
    lost = hours.lost
    reasons = lost.reasons.values()
    all_lost = Loss(
        num_rows=sum(loss.num_rows for loss in reasons),
        num_rows_of_unknown_length=sum(loss.num_rows_of_unknown_length for loss in reasons),
        hours=sum((loss.hours for loss in reasons), 0.0),
    )
    lines = [_line("", ("rows kept", "hours kept", "rows lost", "hours lost"))]
    lines.append(_table_line("all", hours.kept, all_lost))
    lines += [_table_line(split, share, None) for split, share in hours.splits.items()]
    lines += _part_lines("reasons", {}, lost.reasons)
    lines += _part_lines("speakers", hours.speakers, lost.speakers)
    lines += _part_lines("languages", hours.languages, lost.languages)
    if num_rows := all_lost.num_rows_of_unknown_length:
        lines.append(f"rows lost, of unknown length and not in the hours: {num_rows:,}")
    return lines


def _part_lines(title: str, kept: Mapping[str, Share], lost: Mapping[str, Loss]) -> list[str]:
    """Return a line for each name, those with most hours first."""

    def order(name: str) -> tuple[float, str]:
        return -sum(part[name].hours for part in (kept, lost) if name in part), name

    names = sorted({*kept, *lost}, key=order)
    lines = [f"{title}: {len(names):,}"] if names else []
    lines += [
        _table_line(f"  {name}", kept.get(name), lost.get(name)) for name in names[:NUM_NAMED]
    ]
    if len(names) > NUM_NAMED:
        lines.append(f"  ... and {len(names) - NUM_NAMED:,} more, in validation.json")
    return lines


def _table_line(name: str, kept: Share | None, lost: Loss | None) -> str:
    return _line(
        name,
        (
            f"{kept.num_clips:,}" if kept else "",
            f"{kept.hours:.3f}" if kept else "",
            f"{lost.num_rows:,}" if lost else "",
            f"{lost.hours:.3f}" if lost else "",
        ),
    )


def _line(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<30}" + "".join(f"{cell:>12}" for cell in cells)).rstrip()
