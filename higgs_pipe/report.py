"""Stage 8: the page that people look at, with verdict, numbers and curves in one HTML file.

The page asks the network for nothing, needs no script, and the same inputs give the same bytes.
Every number on it must be in the files: a missing one is an error, never a blank or a zero.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from higgs_pipe import __version__
from higgs_pipe.cli import main
from higgs_pipe.config.stages import ReportStage, load_stage
from higgs_pipe.data.clips.results import NamedShare, ValidationSummary
from higgs_pipe.data.files import write_text
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.reporting.charts import draw_loss
from higgs_pipe.reporting.experiments import (
    accuracy_lines,
    loss_lines,
    read_experiments,
    setting_lines,
)

NUM_CLIPS_FEW = 20
"""With fewer held-out clips, the page warns that a difference may be chance."""

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
    validation: Path,
    packing: Path,
    experiments_dir: Path,
    names: list[str],
    page: Path,
) -> None:
    """Write the page from what the other stages left.

    Args:
        config: ``results/config/report.json``.
        validation: ``validation.json`` of the validate stage.
        packing: ``packing.json`` of the pack stage.
        experiments_dir: Holds ``<name>/train/`` and ``<name>/eval/`` of each experiment.
        names: The experiments, in the order of the page.
        page: The HTML file to write.

    Raises:
        UserError: A file or a number is missing; the message names the rule to rerun.
    """
    stage = load_stage(ReportStage, config)
    experiments = read_experiments(experiments_dir, names)
    validated = ValidationSummary.read(validation)
    packed = PackingSummary.read(packing)
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=stage.report.title,
            version=__version__,
            experiments=experiments,
            num_clips_few=NUM_CLIPS_FEW,
            num_shown=NUM_SHOWN,
            counts=COUNTS,
            loss_lines=loss_lines(experiments),
            accuracy_lines=accuracy_lines(experiments),
            charts=[draw_loss(title, key, experiments) for title, key in CHARTS.items()],
            validation=validated,
            speakers=_largest(validated.speakers),
            languages=_largest(validated.languages),
            packing=packed,
            packed=[packed.train, packed.eval],
            settings=setting_lines(experiments),
        )
    )
    write_text(page, html)


def _largest(shares: Mapping[str, NamedShare]) -> dict[str, NamedShare]:
    """Return the speakers or languages with the most audio, then all the others as one."""
    ranked = sorted(shares, key=lambda name: (-shares[name].hours, name))
    largest = {name: shares[name] for name in ranked[:NUM_SHOWN]}
    if others := [shares[name] for name in ranked[NUM_SHOWN:]]:
        sums = {
            key: sum(getattr(other, key) for other in others) for key in NamedShare.model_fields
        }
        largest[f"{len(others):,} others"] = NamedShare(**sums)
    return largest


def _first_few(parts: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    text = ", ".join(parts[:NUM_SHOWN])
    num_more = len(parts) - NUM_SHOWN
    return text if num_more <= 0 else f"{text} and {num_more:,} more"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("higgs_pipe"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,.0f}",
        "first_few": _first_few,
        "hours": lambda hours: f"{hours:,.3f}",
        "seconds": lambda seconds: f"{seconds:,.2f}",
    }
    return environment


if __name__ == "__main__":
    main(run)
