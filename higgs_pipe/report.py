"""The page that people look at: the verdict, the numbers and the curves in one HTML file.

The page asks the network for nothing, needs no script, and the same inputs give the same bytes.
Every number on it must be in the files: a missing one is an error, never a blank or a zero.
"""

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from higgs_pipe import __version__
from higgs_pipe.cli import main
from higgs_pipe.config.rules import Section
from higgs_pipe.config.stages import ReportStage, TrainStage, load_stage
from higgs_pipe.data.files import write_text
from higgs_pipe.errors import UserError

NUM_CLIPS_FEW = 20
"""With fewer held-out clips, the page warns that a difference may be chance."""

NUM_SHOWN = 20
"""Lines of a list that may be long; what is left out is counted."""

CODEBOOK_LOSS = "eval_audio_loss_codebook_"
CODEBOOK_ACCURACY = "eval_audio_accuracy_codebook_"
COUNTS = {
    "num_clips": "Clips",
    "num_text_labels": "Text labels",
    "num_audio_labels": "Audio labels",
}
PANELS = (
    ("Total loss", "loss"),
    ("Text loss", "text_loss"),
    ("Audio loss", "audio_loss"),
    ("Stop loss", "stop_loss"),
)
COLOURS = ("#3f8ecf", "#dd7d2b", "#2f9e78", "#a873c4", "#cf5470", "#93903a")
"""Middle tones, one an experiment: legible on white and on black."""

INK = "#010203"
"""Stands for the text colour in the drawings; the page replaces it by ``currentColor``."""


class Record(dict[str, Any]):
    """A JSON object of a file; a key that it lacks is a :class:`UserError`."""

    def __init__(self, values: dict[str, Any], place: str, rule: str) -> None:
        super().__init__(values)
        self.place = place
        self.rule = rule

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.place}: {key!r} is missing; {_rerun(self.rule)}")

    def number(self, key: str) -> float:
        """The finite number under ``key``.

        Raises:
            UserError: The key is missing, or its value is no finite number.
        """
        value = self[key]
        if type(value) in (int, float) and math.isfinite(value):
            number: float = value
            return number
        raise UserError(
            f"{self.place}: {key!r} is {value!r}, not a finite number; {_rerun(self.rule)}"
        )


@dataclass(frozen=True)
class Change:
    """One number of the evaluation: a loss in nats per label, or an accuracy in [0, 1]."""

    key: str
    base: float
    adapter: float

    @property
    def is_accuracy(self) -> bool:
        """Whether more is better."""
        return "accuracy" in self.key

    @property
    def difference(self) -> float:
        """Adapter minus base, to the three decimals that the page shows."""
        return round(self.adapter - self.base, 3)

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference``."""
        if self.difference == 0:
            return "no difference"
        return "better" if (self.difference > 0) == self.is_accuracy else "worse"

    @property
    def base_text(self) -> str:
        """Nats with three decimals, or percent with one."""
        return self._text(self.base)

    @property
    def adapter_text(self) -> str:
        """Nats with three decimals, or percent with one."""
        return self._text(self.adapter)

    @property
    def difference_text(self) -> str:
        """Nats, or percentage points, with a sign."""
        sign = "" if self.difference == 0 else "\N{MINUS SIGN}" if self.difference < 0 else "+"
        return sign + self._text(abs(self.difference))

    def _text(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.is_accuracy else f"{value:.3f}"


@dataclass(frozen=True)
class Experiment:
    """What the page says of one adapter."""

    name: str
    colour: str
    base_model: str
    settings: Record
    training: list[Record]
    held_out: list[Record]
    alarms: list[Record]
    preflight: list[Record]
    base: Record
    adapter: Record

    @property
    def kept(self) -> Record:
        """The held-out line of the adapter that training kept: the first with the lowest loss."""
        return min(self.held_out[1:], key=lambda line: line.number("eval_loss"))

    @property
    def parts(self) -> list[tuple[str, Change]]:
        """The loss by part: a fall of the whole may be the text's alone."""
        return [(part, self.change(f"eval_{part}_loss")) for part in ("text", "audio", "stop")]

    def change(self, key: str) -> Change:
        """One number of the evaluation, base against adapter."""
        return Change(key, self.base.number(key), self.adapter.number(key))


@dataclass(frozen=True)
class Row:
    """A line of the comparison: a label and one change an experiment."""

    label: str
    changes: list[Change]
    is_detail: bool = False


@dataclass(frozen=True)
class Setting:
    """A setting of training, with one value an experiment."""

    name: str
    description: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the experiments disagree."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Curve:
    """A drawing: the inside of an SVG element, its size in SVG units, and its words."""

    title: str
    body: Markup
    width: int
    height: int
    description: str


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
    experiments = [
        _read_experiment(experiments_dir / name, name, COLOURS[index % len(COLOURS)])
        for index, name in enumerate(names)
    ]
    validated = _read_json(validation, "judge_clips")
    packed = _read_json(packing, "pack")
    template = _environment().get_template("report.html.j2")
    html = template.render(
        title=stage.report.title,
        version=__version__,
        experiments=experiments,
        num_clips_few=NUM_CLIPS_FEW,
        num_shown=NUM_SHOWN,
        counts=COUNTS,
        loss_rows=_loss_rows(experiments),
        accuracy_rows=_accuracy_rows(experiments),
        curves=[_draw(title, key, experiments) for title, key in PANELS],
        validation=validated,
        speakers=_largest(validated["speakers"]),
        languages=_largest(validated["languages"]),
        packing=packed,
        packed=[packed["train"], packed["eval"]],
        settings=_settings(experiments),
    )
    write_text(page, html)


def _rerun(rule: str) -> str:
    return f"run: snakemake --forcerun {rule}"


def _read_text(path: Path, rule: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing; {_rerun(rule)}") from None


def _parse(text: str, place: str, rule: str) -> Record:
    try:
        record = json.loads(text, object_hook=lambda values: Record(values, place, rule))
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error}); {_rerun(rule)}") from None
    if not isinstance(record, Record):
        raise UserError(f"{place}: not a JSON object; {_rerun(rule)}")
    return record


def _read_json(path: Path, rule: str) -> Record:
    return _parse(_read_text(path, rule), str(path), rule)


def _read_experiment(folder: Path, name: str, colour: str) -> Experiment:
    config = _read_json(folder / "train" / "config.json", "train_adapter")
    training, held_out, alarms = _read_metrics(folder / "train" / "metrics.jsonl")
    evaluation = _read_json(folder / "eval" / "metrics.json", "eval_adapter")
    base, adapter = evaluation["base"], evaluation["adapter"]
    for key in COUNTS:
        if base.number(key) != adapter.number(key):
            raise UserError(
                f"{evaluation.place}: adapter and base differ in {key!r} "
                f"({adapter[key]} and {base[key]}), so their losses do not compare; "
                f"{_rerun('eval_adapter')}"
            )
    return Experiment(
        name=name,
        colour=colour,
        base_model=config["base_model"],
        settings=Record(_flatten(config), config.place, config.rule),
        training=training,
        held_out=held_out,
        alarms=alarms,
        preflight=_read_json(folder / "train" / "preflight.json", "train_adapter")["checks"],
        base=base,
        adapter=adapter,
    )


def _read_metrics(path: Path) -> tuple[list[Record], list[Record], list[Record]]:
    """The training lines, the held-out lines and the alarms of ``metrics.jsonl``."""
    lines = [
        _parse(line, f"{path}:{number}", "train_adapter")
        for number, line in enumerate(_read_text(path, "train_adapter").splitlines(), start=1)
    ]
    training: list[Record] = []
    held_out: list[Record] = []
    alarms: list[Record] = []
    for line in lines:
        if "alarm" in line:
            alarms.append(line)
            continue
        is_held_out = any(key.startswith("eval_") for key in line)
        (held_out if is_held_out else training).append(line)
    if not training:
        raise UserError(f"{path}: no line with a training loss; {_rerun('train_adapter')}")
    if len(held_out) < 2 or held_out[0].number("step") != 0:
        raise UserError(
            f"{path}: no held-out loss at step 0 and after it; {_rerun('train_adapter')}"
        )
    return training, held_out, alarms


def _row(experiments: Sequence[Experiment], label: str, key: str, is_detail: bool = False) -> Row:
    return Row(label, [experiment.change(key) for experiment in experiments], is_detail)


def _codebook_rows(experiments: Sequence[Experiment], prefix: str) -> list[Row]:
    # K is the most that any file has, and at least 1: a file with fewer is told what it lacks.
    metrics = [metrics for each in experiments for metrics in (each.base, each.adapter)]
    num_codebooks = max(sum(key.startswith(CODEBOOK_LOSS) for key in keys) for keys in metrics)
    return [
        _row(experiments, f"codebook {index}", f"{prefix}{index}", is_detail=True)
        for index in range(max(num_codebooks, 1))
    ]


def _loss_rows(experiments: Sequence[Experiment]) -> list[Row]:
    return [
        _row(experiments, "Total", "eval_loss"),
        _row(experiments, "Text", "eval_text_loss"),
        _row(experiments, "Stop", "eval_stop_loss"),
        _row(experiments, "Audio", "eval_audio_loss"),
        *_codebook_rows(experiments, CODEBOOK_LOSS),
    ]


def _accuracy_rows(experiments: Sequence[Experiment]) -> list[Row]:
    return [
        _row(experiments, "Text", "eval_text_accuracy"),
        *_codebook_rows(experiments, CODEBOOK_ACCURACY),
    ]


def _largest(shares: Record) -> list[dict[str, Any]]:
    """The speakers or languages with the most audio, then all the others as one."""

    def together(label: str, names: Sequence[str]) -> dict[str, Any]:
        keys = ("num_clips", "num_train_clips", "num_eval_clips", "hours")
        sums = {key: math.fsum(shares[name].number(key) for name in names) for key in keys}
        return {"name": label, **sums}

    ranked = sorted(shares, key=lambda name: (-shares[name].number("hours"), name))
    shown = [together(name, [name]) for name in ranked[:NUM_SHOWN]]
    others = ranked[NUM_SHOWN:]
    return [*shown, together(f"{len(others):,} others", others)] if others else shown


def _first_few(parts: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    text = ", ".join(parts[:NUM_SHOWN])
    num_more = len(parts) - NUM_SHOWN
    return text if num_more <= 0 else f"{text} and {num_more:,} more"


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"lora": {"r": 16}}`` -> ``{"lora.r": "16"}``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat[prefix + key] = ", ".join(str(part) for part in value)
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _settings(experiments: Sequence[Experiment]) -> list[Setting]:
    """Every setting of training, in the order of the file."""
    descriptions = _descriptions(TrainStage)
    names = experiments[0].settings
    return [
        Setting(
            name,
            # A field of the file that is no setting of the config explains itself by its name.
            descriptions.get(name, "").replace("`", ""),
            [experiment.settings[name] for experiment in experiments],
        )
        for name in names
    ]


def _descriptions(section: type[Section], prefix: str = "") -> dict[str, str]:
    """The sentence of each setting, as the config declares it."""
    sentences: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sentences |= _descriptions(field.annotation, f"{prefix}{name}.")
        else:
            sentences[prefix + name] = field.description or ""
    return sentences


def _draw(title: str, key: str, experiments: Sequence[Experiment]) -> Curve:
    """One loss over the optimizer steps, every experiment in its colour."""
    figure = Figure(figsize=(4.8, 3.0))
    axes = figure.add_axes((0.14, 0.17, 0.84, 0.8))
    sentences = [f"{title} in nats per label over optimizer steps."]
    for experiment in experiments:
        training = _points(experiment.training, key)
        held_out = _points(experiment.held_out, f"eval_{key}")
        # A line of one point would not be seen.
        dot = "o" if len(experiment.training) == 1 else ""
        axes.plot(
            *training, color=experiment.colour, linewidth=1.1, alpha=0.6, marker=dot, markersize=3
        )
        axes.plot(
            *held_out,
            color=experiment.colour,
            linewidth=2,
            marker="o",
            markersize=4,
            markevery=math.ceil(len(experiment.held_out) / NUM_SHOWN),
        )
        sentences.append(
            f"{experiment.name}: training from {training[1][0]:.3f} at step {training[0][0]} to "
            f"{training[1][-1]:.3f} at step {training[0][-1]}, held-out from {held_out[1][0]:.3f} "
            f"at step {held_out[0][0]} to {held_out[1][-1]:.3f} at step {held_out[0][-1]}."
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats per label")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    body, width, height = _svg(figure, title)
    return Curve(title, body, width, height, " ".join(sentences))


def _points(lines: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    return [int(line.number("step")) for line in lines], [line.number(key) for line in lines]


def _svg(figure: Figure, name: str) -> tuple[Markup, int, int]:
    """The inside of a figure's SVG element and its width and height in SVG units.

    The text stays text, so that the page sets its font and colour. ``name`` salts the ids: no two
    drawings of a page may share one.
    """
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue().replace(INK, "currentColor")
    start = text.index(">", text.index("<svg ")) + 1
    inside = text[start : text.rindex("</svg>")]
    body = Markup(re.sub(r'<g id="[^"]*"', "<g", inside))  # group names repeat in every drawing
    points_per_inch = 72
    width, height = figure.get_size_inches() * points_per_inch
    return body, round(width), round(height)


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
