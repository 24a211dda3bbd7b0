"""Charts as SVG that takes its text colour from the page."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from higgs_pipe.reporting.experiments import Experiment

INK = "#010203"
"""Stands for the text colour in the drawings; the page replaces it by ``currentColor``."""

MAX_MARKERS = 20


@dataclass(frozen=True)
class Chart:
    """The inside of an SVG element, its size in SVG units, and its description in words."""

    title: str
    body: Markup
    width: int
    height: int
    description: str


def draw_loss(title: str, key: str, experiments: Sequence[Experiment]) -> Chart:
    """Draw one loss over the optimizer steps, every experiment in its colour."""
    figure = Figure(figsize=(4.8, 3.0))
    axes = figure.add_axes((0.14, 0.17, 0.84, 0.8))
    sentences = [f"{title} in nats per label over optimizer steps."]
    for experiment in experiments:
        training = [(line.step, getattr(line, key)) for line in experiment.log.training]
        held_out = [(line.step, getattr(line, f"eval_{key}")) for line in experiment.log.held_out]
        axes.plot(
            *zip(*training, strict=True),
            color=experiment.colour,
            linewidth=1.1,
            alpha=0.6,
            marker="o" if len(training) == 1 else "",  # a line of one point would not be seen
            markersize=3,
        )
        axes.plot(
            *zip(*held_out, strict=True),
            color=experiment.colour,
            linewidth=2,
            marker="o",
            markersize=4,
            markevery=math.ceil(len(held_out) / MAX_MARKERS),
        )
        sentences.append(
            f"{experiment.name}: training {_ends(training)}, held-out {_ends(held_out)}."
        )
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("nats per label", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, length=0)
    return _as_chart(figure, title, " ".join(sentences))


def _ends(points: Sequence[tuple[int, float]]) -> str:
    """Render the first and the last point."""
    first, *_, last = (*points, points[-1])
    return f"from {first[1]:.3f} at step {first[0]} to {last[1]:.3f} at step {last[0]}"


def _as_chart(figure: Figure, title: str, description: str) -> Chart:
    """Render a figure as SVG; its text stays text, so that the page sets font and colour.

    The title salts the ids: no two charts of a page may share one.
    """
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue().replace(INK, "currentColor")
    start = text.index(">", text.index("<svg ")) + 1
    inside = text[start : text.rindex("</svg>")]
    body = Markup(re.sub(r'<g id="[^"]*"', "<g", inside))  # group names repeat in every chart
    points_per_inch = 72
    width, height = figure.get_size_inches() * points_per_inch
    return Chart(title, body, round(width), round(height), description)
