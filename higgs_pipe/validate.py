"""Stage 1c: judge every row, and split the accepted clips into train and eval."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.cli import main
from higgs_pipe.config.settings import DataConfig
from higgs_pipe.config.stages import ValidateStage, load_stage
from higgs_pipe.data.arrow import memory_shared_with_python
from higgs_pipe.data.clips.corpus import assemble
from higgs_pipe.data.clips.judging import Judgement, judge
from higgs_pipe.data.clips.measured import MeasuredSpans
from higgs_pipe.data.clips.overview import log_warnings, table_lines
from higgs_pipe.data.clips.reasons import Reason, Rejection
from higgs_pipe.data.clips.references import Links, References
from higgs_pipe.data.clips.summary import Outcome, hours_of, summarize
from higgs_pipe.data.clips.trained import TrainedClips
from higgs_pipe.data.clips.wrong_texts import check_texts
from higgs_pipe.data.files import temporary_folder
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.row_table import StoredRows
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.specs import CLIPS, EVAL, REJECTED, SHARD_CLIPS, TRAIN
from higgs_pipe.data.table_rows import TableRows
from higgs_pipe.data.tables import read_table, write_shards, write_table
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.rules import rules_of

logger = logging.getLogger("higgs_pipe")


@memory_shared_with_python()
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
    rules = [rules_of(family) for family in families]
    trained = None if trained_clips is None else TrainedClips.read(trained_clips)
    stored = StoredRows(rows) if trained is None else StoredRows(rows, _held_out)
    outcome = _write_clips(clips, stored, measured_dir, stage, rules, trained)
    summary = summarize(clips, outcome, stored, stage.data)
    write_table(rejected, REJECTED, map(_rejected_row, outcome.rejections))
    write_shards(shards_dir, SHARD_CLIPS, _by_shard(clips, stage.data.num_shards))
    summary.write(validation)
    log_warnings(summary, outcome.rejections)
    logger.info("%s", "\n".join(table_lines(summary.hours_by_part)))


def _write_clips(
    clips: Path,
    rows: StoredRows,
    measured_dir: Path,
    stage: ValidateStage,
    rules: Sequence[PromptRules],
    trained: TrainedClips | None,
) -> Outcome:
    """Write the table of clips. The measures are in memory only where rows need them."""

    def measured() -> MeasuredSpans:
        return MeasuredSpans.read(measured_dir, stage.data.num_shards)

    if trained is None:
        _check_split_is_known(rows, stage.data)
    with temporary_folder(clips.with_name("drafts")) as folder:
        judgement = judge(rows, measured(), stage, rules, folder / "drafts.parquet", trained)
        _check_enough_accepted(judgement, len(rows), stage)
        if stage.validate_.check_texts:
            check_texts(judgement.accepted, rows)
        needed_splits = (TRAIN, EVAL) if trained is None else (EVAL,)
        corpus = assemble(judgement.accepted, stage.data, needed_splits)
        references = References(measured)
        corpus.write(clips, _links(rows, judgement, references), references)
    return Outcome(judgement.rejections, corpus.groups)


def _held_out(row: Row) -> Row:
    return replace(row, split=EVAL)


def _links(rows: StoredRows, judgement: Judgement, references: References) -> Iterator[Links]:
    """Yield the links of the accepted clips that have references or a conversation."""
    rejected = {rejection.row.clip_id for rejection in judgement.rejections}
    has_reference = pc.field("ref_audio_path").is_valid()
    for row in rows.where(has_reference | pc.field("file_conversation").is_valid()):
        if row.clip_id not in rejected:
            yield references.link(row)


def _check_split_is_known(rows: StoredRows, data: DataConfig) -> None:
    """Check that every row has the key to split by."""
    needed = {"given": "split", "speaker": "speaker"}.get(data.split_by)
    if needed is None:
        return
    lacking = [f"{row.place}: {row.clip_id}" for row in rows.where(pc.field(needed).is_null())]
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


def _by_shard(clips: Path, num_shards: int) -> Iterator[TableRows]:
    """Yield the clips of each shard, sorted by id."""
    columns = [column.name for column in SHARD_CLIPS.columns]
    table = read_table(clips, CLIPS, columns).sort_by("clip_id")
    shards = pa.array([shard_of(row["clip_id"], num_shards) for row in TableRows(table)])
    for shard in range(num_shards):
        yield TableRows(table.filter(pc.equal(shards, shard)))


if __name__ == "__main__":
    main(run)
