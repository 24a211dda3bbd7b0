"""Charts as SVG, with text in the page's colour."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from higgs_pipe.data.units import in_words, number
from higgs_pipe.reporting.experiments import COLOURS, Experiment
from higgs_pipe.training.results import LoggedLine

INK = "#010203"
"""Stands for the text colour in the drawings; the page replaces it by ``currentColor``."""

MAX_MARKERS = 20
MAX_NAME = 18  # characters of a speaker's name
NUM_BINS = 24
ACCEPTED_COLOUR, REJECTED_COLOUR = COLOURS[0], COLOURS[4]


@dataclass(frozen=True)
class Chart:
    """The inside of an SVG element, its size in SVG units, and its description in words."""

    title: str
    body: Markup
    width: int
    height: int
    description: str

    @property
    def file_name(self) -> str:
        """The title as a file name without its ending."""
        return self.title.lower().replace(" ", "-")

    @property
    def file(self) -> str:
        """The chart as an SVG file, for white paper."""
        box = f'width="{self.width}" viewBox="0 0 {self.width} {self.height}"'
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        start = f'<svg {names} {box} style="background: #fff">'
        return f"{start}{self.body}</svg>\n"


def _points(lines: Sequence[LoggedLine], key: str) -> list[tuple[int, float]]:
    """Return step and value of each line that has one."""
    found = ((line.step, getattr(line, key)) for line in lines)
    return [(step, value) for step, value in found if value is not None]


def draw_loss(title: str, key: str, experiments: Sequence[Experiment]) -> Chart:
    """Draw one loss over the optimizer steps, each experiment in its colour."""
    figure, axes = _figure()
    sentences = [f"{title} in nats per label over optimizer steps."]
    for experiment in experiments:
        training = _points(experiment.log.training, key)
        held_out = _points(experiment.log.held_out, f"eval_{key}")
        if not training:  # its base has no such loss
            continue
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
        for line in experiment.log.samples:
            axes.axvline(line.step, color=experiment.colour, linewidth=0.8, linestyle=":")
        alarm_steps = [alarm.step for alarm in experiment.log.alarms]
        axes.plot(
            alarm_steps,
            [0.03] * len(alarm_steps),
            color=experiment.colour,
            marker="^",
            linestyle="",
            transform=axes.get_xaxis_transform(),  # at the bottom, whatever the losses
        )
    _style(axes, "optimizer step", "nats per label")
    return _as_chart(figure, title, " ".join(sentences))


def draw_durations(seconds: dict[str, Sequence[float]]) -> Chart:
    """Draw a histogram of the clips' lengths.

    Args:
        seconds: Length of each clip, by split.
    """
    figure, axes = _figure()
    longest = max(max(values, default=0) for values in seconds.values())
    bins = [longest * index / NUM_BINS for index in range(NUM_BINS + 1)]
    values, labels = list(seconds.values()), list(seconds)
    axes.hist(values, bins=bins, stacked=True, label=labels, color=COLOURS[: len(values)])
    axes.legend(frameon=False, labelcolor=INK)
    _style(axes, "length of a clip, seconds", "clips")
    words = ", ".join(f"{len(part):,} {label}" for label, part in seconds.items())
    return _as_chart(figure, "Lengths", f"Histogram of the clips' lengths: {words} clips.")


def draw_measure(
    name: str,
    accepted: npt.NDArray[np.float64],
    rejected: npt.NDArray[np.float64],
    bounds: Sequence[float],
) -> Chart:
    """Draw a histogram of a measure, and its bounds as dashed lines.

    The axis covers 99 % of the values and the bounds; the first and last bar hold the values
    beyond.

    Args:
        name: The measure's column.
        accepted: Its values in the accepted rows.
        rejected: Its values in the rejected rows.
        bounds: Limits of the filters on it.
    """
    values = np.concatenate([accepted, rejected])
    low, high = np.quantile(values, [0.005, 0.995])
    low, high = min([low, *bounds]), max([high, *bounds])
    bins = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    figure, axes = _figure()
    parts = [np.clip(part, bins[0], bins[-1]) for part in (accepted, rejected)]
    axes.hist(parts, bins=bins, stacked=True, color=[ACCEPTED_COLOUR, REJECTED_COLOUR])
    for bound in bounds:
        axes.axvline(bound, color=INK, linewidth=1.2, linestyle="--")
    _style(axes, name, "rows")
    words = f"{len(accepted):,} accepted rows, median {number(np.median(values))} over all"
    title = in_words(name)
    description = f"Histogram of {title}: {words}; {len(rejected):,} rejected."
    return _as_chart(figure, title[0].upper() + title[1:], description)


def draw_hours(title: str, hours: dict[str, float]) -> Chart:
    """Draw the hours of speakers or languages as bars, in the given order from above."""
    figure = Figure(figsize=(4.8, 0.7 + 0.24 * len(hours)))
    axes = figure.add_axes(
        (0.3, 0.5 / figure.get_figheight(), 0.66, 1 - 0.55 / figure.get_figheight())
    )
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in hours]
    axes.barh(range(len(hours)), list(hours.values()), color=COLOURS[0], height=0.7)
    axes.set_yticks(range(len(hours)), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    _style(axes, "hours", "", grid="x")
    words = ", ".join(f"{name} {value:.3f}" for name, value in hours.items())
    return _as_chart(figure, title, f"Hours: {words}.")


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.8, 3.0))
    return figure, figure.add_axes((0.14, 0.17, 0.84, 0.8))


def _style(axes: Any, x_label: str, y_label: str, grid: Literal["x", "y"] = "y") -> None:
    """Set the axes' labels, ticks, grid and the colour that follows the page."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=grid == "y" and not axes.patches))
    if grid == "y":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=bool(axes.patches)))
    axes.grid(axis=grid, color=INK, alpha=0.15, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, length=0)


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
