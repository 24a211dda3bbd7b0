"""Stage 1c: judge every row, and split the accepted clips into train and eval."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from higgs_pipe.cli import main
from higgs_pipe.config.settings import DataConfig
from higgs_pipe.config.stages import ValidateStage, load_stage
from higgs_pipe.data.clips.candidates import Clip, Measured
from higgs_pipe.data.clips.corpus import assemble
from higgs_pipe.data.clips.judging import Judgement, judge
from higgs_pipe.data.clips.overview import log_warnings, table_lines
from higgs_pipe.data.clips.reasons import Reason, Rejection
from higgs_pipe.data.clips.summary import hours_of, summarize
from higgs_pipe.data.clips.texts import normalized
from higgs_pipe.data.clips.trained import TrainedClips
from higgs_pipe.data.clips.transcripts import check_texts
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.row_table import read_rows
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import CLIPS, EVAL, MEASURED, REJECTED, SHARD_CLIPS, TRAIN
from higgs_pipe.data.table_rows import TableRow, rows_of
from higgs_pipe.data.tables import read_table, shard_path, write_shards, write_table
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.rules import rules_of

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    rows: Path,
    measured_dir: Path,
    clips: Path,
    rejected: Path,
    validation: Path,
    shards_dir: Path,
    families: list[str],
    trained_clips: Path | None = None,
) -> None:
    """Judge the rows by their measures, and write the tables of clips.

    Args:
        config: ``results/config/validate.json``.
        rows: The rows of the manifests, from list_rows.
        measured_dir: Folder of ``shard-00000.parquet`` ..., from measure.
        clips: Table to write: accepted clips in the manifest's order, then their references.
        rejected: Table to write: rejected rows with reason and remedy.
        validation: JSON to write: counts, hours, speakers, languages, duplicates, overlap.
        shards_dir: Folder for ``shard-00000.parquet`` ..., the clips that one tokenization job
            encodes; only a shard whose clips change changes its bytes.
        families: The ``model_type`` of each base model that the rows are for, or a model on the
            Hub, ``name`` or ``name@revision``. A text must suit the prompts of all of them.
        trained_clips: ``clips.parquet`` of the manifest that adapters are trained on. If given,
            every row is held out, and rows with audio or text of its training split are rejected.

    Raises:
        UserError: Too many rows are rejected, the rows lack the key to split by, or a split would
            be empty. Then nothing is written.
    """
    stage = load_stage(ValidateStage, config)
    listed = read_rows(rows)
    manifest = replace(listed, rows=tuple(map(normalized, listed.rows)))
    rules = [rules_of(family) for family in families]
    trained = None
    needed_splits: tuple[str, ...] = (TRAIN, EVAL)
    if trained_clips is not None:
        trained, needed_splits = TrainedClips.read(trained_clips), (EVAL,)
        rows_held_out = tuple(replace(row, split=EVAL) for row in manifest.rows)
        manifest = replace(manifest, rows=rows_held_out)
    measured = _read_measured(measured_dir, stage.data.num_shards, manifest.rows)
    if trained is None:
        _check_split_is_known(manifest.rows, stage.data)
    judgement = judge(manifest.rows, measured, stage, rules, trained)
    _check_enough_accepted(judgement, len(manifest.rows), stage)
    if stage.validate_.check_texts:
        check_texts(judgement.accepted)
    corpus = assemble(judgement.accepted, measured, stage.data, needed_splits)
    summary = summarize(corpus, judgement, manifest, stage.data)

    write_table(clips, CLIPS, corpus.clips)
    write_table(rejected, REJECTED, list(map(_rejected_row, judgement.rejections)))
    write_shards(shards_dir, SHARD_CLIPS, _by_shard(corpus.clips, stage.data.num_shards))
    summary.write(validation)
    log_warnings(summary, judgement.rejections)
    logger.info("%s", "\n".join(table_lines(summary.hours_by_part)))


def _read_measured(measured_dir: Path, num_shards: int, rows: Sequence[Row]) -> Measured:
    """Read the rows of MEASURED of every span that the rows name."""
    measured: dict[Span, TableRow] = {}
    for index in range(num_shards):
        shard = rows_of(read_table(shard_path(measured_dir, index), MEASURED)[0])
        measured |= {Span.of(columns): columns for columns in shard}
    for row in rows:
        for span in row.all_spans:
            if span not in measured:
                raise UserError(
                    f"{row.place}: {span.name} was not measured; "
                    "run: snakemake --forcerun measure_shard"
                )
    return measured


def _check_split_is_known(rows: Sequence[Row], data: DataConfig) -> None:
    """Check that every row has the key to split by."""
    needed = {"given": "split", "speaker": "speaker"}.get(data.split_by)
    if needed is None:
        return
    lacking = [f"{row.place}: {row.clip_id}" for row in rows if getattr(row, needed) is None]
    if lacking:
        raise UserError(
            f"data.split_by is {data.split_by}, but {len(lacking):,} of {len(rows):,} rows have no "
            f"`{needed}`:\n{list_offenders(lacking)}\n"
            f"Give each row one (or its manifest's entry a `{needed}`), or set data.split_by to "
            "clip, and run again."
        )


def _check_enough_accepted(judgement: Judgement, num_rows: int, stage: ValidateStage) -> None:
    """Check that not too many rows are rejected; if they are, log the hours by reason first."""
    rejections, max_rejected = judgement.rejections, stage.validate_.max_rejected_fraction
    if judgement.accepted and len(rejections) / num_rows <= max_rejected:
        return
    logger.info("%s", "\n".join(table_lines(hours_of(judgement))))
    reasons = {rejection.fault.reason for rejection in rejections}
    if not judgement.accepted and reasons == {Reason.TEXT_EMPTY}:
        raise UserError(
            f"none of the {num_rows:,} recordings has a text, such as {rejections[0].row.audio}. "
            "Put a transcript beside each one (x.txt beside x.wav), give a manifest with "
            "their texts, or let a recogniser transcribe them: validate.fill_missing_text with "
            "validate.speech_models.asr."
        )
    offenders = list_offenders([str(rejection) for rejection in rejections])
    if len(rejections) / num_rows <= max_rejected:
        raise UserError(f"no row is left:\n{offenders}\nFix these rows and run again.")
    raise UserError(
        f"{len(rejections):,} of {num_rows:,} rows are rejected, more than "
        f"validate.max_rejected_fraction = {max_rejected:g} allows:\n{offenders}\n"
        "Fix or drop these rows, or raise validate.max_rejected_fraction, and run again."
    )


def _rejected_row(rejection: Rejection) -> dict[str, Any]:
    row = rejection.row
    return {
        "clip_id": row.clip_id,
        "audio": row.audio,
        "manifest": row.manifest,
        "line": row.line,
        "speaker": row.speaker,
        "language": row.language,
        "duration_seconds": rejection.duration_seconds,
        "reason": rejection.fault.reason.value,
        "message": rejection.message,
    }


def _by_shard(clips: Sequence[Clip], num_shards: int) -> list[list[Clip]]:
    by_shard: list[list[Clip]] = [[] for _ in range(num_shards)]
    for clip in sorted(clips, key=lambda clip: str(clip["clip_id"])):
        by_shard[shard_of(clip["clip_id"], num_shards)].append(clip)
    return by_shard


if __name__ == "__main__":
    main(run)
