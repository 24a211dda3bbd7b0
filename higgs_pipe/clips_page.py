"""Stage 1e: the page for looking at and listening to the recordings, as one HTML file.

It shows the results of validation: a random sample of the clips, outliers of each speaker, rejected
rows with audio and reason, and a histogram per measure with the limits of the filters.
"""

from pathlib import Path

from higgs_pipe.cli import main
from higgs_pipe.config.stages import ClipsPageStage, load_stage
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.files import write_text
from higgs_pipe.data.manifests.row_table import read_rows
from higgs_pipe.data.specs import CLIPS, REJECTED
from higgs_pipe.data.tables import read_table
from higgs_pipe.reporting.charts import ACCEPTED_COLOUR, REJECTED_COLOUR
from higgs_pipe.reporting.clip_measures import measure_charts, values_of_clips, values_of_rejected
from higgs_pipe.reporting.clips import (
    examples_of_rejected,
    in_splits,
    random_sample,
    unlike_their_speaker,
)
from higgs_pipe.reporting.pages import render_page
from higgs_pipe.reporting.shares import largest


def run(
    config: Path,
    rows: Path,
    measured_dir: Path,
    clips: Path,
    rejected: Path,
    validation: Path,
    page: Path,
) -> None:
    """Write the page from the tables of validation and the recordings.

    Args:
        config: ``results/config/clips_page.json``.
        rows: The rows of the manifests, from list_rows.
        measured_dir: Folder of ``shard-00000.parquet`` ..., from measure.
        clips: ``clips.parquet`` of validate.
        rejected: ``rejected.parquet`` of validate.
        validation: ``validation.json`` of validate.
        page: The HTML file to write.

    Raises:
        UserError: A table is missing or damaged; the message names the rule to rerun.
    """
    stage = load_stage(ClipsPageStage, config)
    num_players = stage.report.num_players
    summary = ValidationSummary.read(validation)
    targets = in_splits(read_table(clips, CLIPS))
    rejections = read_table(rejected, REJECTED).to_pylist()
    rejected_rows = read_rows(rows, {rejection["clip_id"] for rejection in rejections}).rows

    values = values_of_clips(targets)
    values_rejected = values_of_rejected(rejected_rows, measured_dir)
    html = render_page(
        "clips.html.j2",
        title="Recordings",
        colours={"accepted": ACCEPTED_COLOUR, "rejected": REJECTED_COLOUR},
        validation=summary,
        speakers=largest(summary.speakers),
        languages=largest(summary.languages),
        random=random_sample(targets, num_players),
        unlike=unlike_their_speaker(targets, summary, num_players),
        rejected=examples_of_rejected(rejections, rejected_rows, num_players),
        measures=measure_charts(values, values_rejected, stage.validate_.filters),
    )
    write_text(page, html)


if __name__ == "__main__":
    main(run)
