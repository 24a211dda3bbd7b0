"""Stage 7: the report to look at and listen to, as one HTML file.

The page makes no network requests, and the same inputs give the same bytes. Every number on it must
be in the files: a missing one is an error, never a blank or a zero.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.cli import main
from higgs_pipe.config.stages import ReportStage, load_stage
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.files import write_text
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.data.quality import AudioMeasures, TextMeasures
from higgs_pipe.data.specs import CLIPS, EVAL, TRAIN
from higgs_pipe.data.tables import read_table
from higgs_pipe.data.units import in_words, number
from higgs_pipe.higgs.rules import rules_of
from higgs_pipe.reporting.charts import draw_durations, draw_hours, draw_loss
from higgs_pipe.reporting.experiments import (
    Experiment,
    ranked,
    read_experiments,
    setting_lines,
)
from higgs_pipe.reporting.other import read_other
from higgs_pipe.reporting.pages import render_page
from higgs_pipe.reporting.prompts import SpeechFiles, read_listening
from higgs_pipe.reporting.shares import largest

NUM_SHOWN = 20
"""Lines of a list that may be long; what is left out is counted."""

COUNTS = {
    "num_clips": "Clips",
    "num_text_labels": "Text labels",
    "num_audio_labels": "Audio labels",
}
CHARTS = {
    "Total loss": "loss",
    "Text loss": "text_loss",
    "Audio loss": "audio_loss",
    "Stop loss": "stop_loss",
}


def run(
    config: Path,
    clips: Path,
    validation: Path,
    packing: list[Path],
    bases: list[str],
    experiments_dir: Path,
    other_validation: Path,
    other_packing: list[Path],
    names: list[str],
    families: list[str],
    page: Path,
    figures: Path,
) -> None:
    """Write the page from the results of the other stages.

    Args:
        config: ``results/config/report.json``.
        clips: ``clips.parquet`` of the validate stage.
        validation: ``validation.json`` of the validate stage.
        packing: ``packing.json`` of the pack stage for each base.
        bases: The names of these bases.
        experiments_dir: Has ``<name>/train/``, ``<name>/eval/`` and ``<name>/samples/`` of each
            experiment.
        other_validation: ``validation.json`` of ``eval.other_manifest``, if there is one.
        other_packing: Its ``packing.json`` for each base.
        names: Names of the experiments.
        families: Families of their bases, as :func:`higgs_pipe.higgs.rules.rules_of` takes them.
        page: The HTML file to write.
        figures: Directory for the page's charts as SVG files, for ``snakemake --report``.

    Raises:
        UserError: A file or a number is missing; the message names the rule to rerun.
    """
    stage = load_stage(ReportStage, config)
    has_other = stage.eval.other_manifest is not None
    experiments = ranked(read_experiments(experiments_dir, names, has_other))
    spoken = {e.name: SpeechFiles.of(e.base, experiments_dir / e.name) for e in experiments}
    listening = read_listening(spoken)
    other = None
    if has_other:
        spoken = {
            e.name: SpeechFiles.of_other(e.base, experiments_dir / e.name) for e in experiments
        }
        other = read_other(other_validation, other_packing, read_listening(spoken))
    validated = ValidationSummary.read(validation)
    packings = {base: PackingSummary.read(at) for base, at in zip(bases, packing, strict=True)}
    table = read_table(clips, CLIPS)
    loss_charts = [
        draw_loss(title, key, experiments)
        for title, key in CHARTS.items()
        if any(getattr(line, key) is not None for e in experiments for line in e.log.training)
    ]
    speakers, languages = largest(validated.speakers), largest(validated.languages)
    data_charts = [draw_durations(_seconds_by_split(table))]
    data_charts += [
        draw_hours(title, {name: share.hours for name, share in shares.items()})
        for title, shares in (("Hours by speaker", speakers), ("Hours by language", languages))
        if shares
    ]
    html = render_page(
        "page.html.j2",
        title=stage.report.title or default_title(families, len(names)),
        facts=_facts(experiments),
        experiments=experiments,
        listening=listening,
        other=other,
        num_shown=NUM_SHOWN,
        counts=COUNTS,
        loss_charts=loss_charts,
        data_charts=data_charts,
        validation=validated,
        speakers=speakers,
        languages=languages,
        measured=_measured(table),
        packings=packings,
        settings=setting_lines(experiments),
        adapter_paths={
            name: shlex.quote(str(experiments_dir.parent / "adapters" / name)) for name in names
        },
    )
    for chart in (*loss_charts, *data_charts):
        write_text(figures / f"{chart.file_name}.svg", chart.file)
    write_text(page, html)


def default_title(families: Sequence[str], num_experiments: int) -> str:
    """Return the page's title, named after the families of the base models."""
    models = " and ".join(sorted({rules_of(family).model for family in families}))
    return f"{models} adapter{'s' if num_experiments > 1 else ''}"


def _facts(experiments: Sequence[Experiment]) -> list[tuple[str, str]]:
    """List the facts below the title."""
    runs = [experiment.run for experiment in experiments]
    seconds = sum(experiment.log.seconds for experiment in experiments)
    return [
        ("Base model", _joined(experiment.base_model for experiment in experiments)),
        ("Trained", _joined(run.started_at[:16].replace("T", " ") + " UTC" for run in runs)),
        ("Machine", _joined(run.machine for run in runs)),
        ("Training time", f"{seconds / 60:,.1f} minutes"),
    ]


def _joined(values: Any) -> str:
    return ", ".join(dict.fromkeys(values))


def _seconds_by_split(clips: pa.Table) -> dict[str, Sequence[float]]:
    splits = np.array(clips["split"].to_pylist())
    seconds = clips["duration_seconds"].to_numpy()
    labels = {"train": TRAIN, "held out": EVAL}
    return {label: seconds[splits == split].tolist() for label, split in labels.items()}


@dataclass(frozen=True)
class MeasuredLine:
    """A measure of the clips, with its 5 %, 50 % and 95 % quantiles as text."""

    name: str
    description: str
    quantiles: list[str]


def _measured(clips: pa.Table) -> list[MeasuredLine]:
    """List the measures that are numbers, over train and eval."""
    in_splits = clips.filter(pc.is_in(clips["split"], pa.array([TRAIN, EVAL])))
    lines = []
    for measure in (*fields(AudioMeasures), *fields(TextMeasures)):
        column = in_splits[measure.name].drop_null()
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            quantiles = np.quantile(column.to_numpy(), [0.05, 0.5, 0.95])
            texts = [number(quantile) for quantile in quantiles]
            name = in_words(measure.name)
            name = name[0].upper() + name[1:]
            lines.append(MeasuredLine(name, measure.metadata["description"].rstrip("."), texts))
    return lines


if __name__ == "__main__":
    main(run)
