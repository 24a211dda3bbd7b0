"""Results of the experiments, and the comparison of each adapter with its base."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_pipe.config.rules import Section
from higgs_pipe.config.stages import TrainStage
from higgs_pipe.errors import UserError
from higgs_pipe.training.results import (
    CODEBOOK_ACCURACY,
    CODEBOOK_LOSS,
    EvalMetrics,
    Preflight,
    PreflightCheck,
    TrainedSettings,
    TrainingLog,
)

COLOURS = ("#3f8ecf", "#dd7d2b", "#2f9e78", "#a873c4", "#cf5470", "#93903a")
"""Middle tones, one per experiment: legible on white and on black."""


@dataclass(frozen=True)
class Change:
    """A number of the evaluation: a loss in nats per label, or an accuracy in [0, 1]."""

    key: str
    base: float
    adapter: float

    @property
    def is_accuracy(self) -> bool:
        """Return whether more is better."""
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
    """Results of one adapter."""

    name: str
    colour: str
    base_model: str
    settings: dict[str, str]
    log: TrainingLog
    preflight: list[PreflightCheck]
    metrics: EvalMetrics

    @property
    def parts(self) -> list[tuple[str, Change]]:
        """Changes of the loss by part: a fall of the whole may be the text's alone."""
        return [(part, self.change(f"eval_{part}_loss")) for part in ("text", "audio", "stop")]

    def change(self, key: str) -> Change:
        """One number of the evaluation, base against adapter."""
        return Change(key, getattr(self.metrics.base, key), getattr(self.metrics.adapter, key))


@dataclass(frozen=True)
class ComparisonLine:
    """A line of the comparison table: a label and one change per experiment."""

    label: str
    changes: list[Change]
    is_detail: bool = False


@dataclass(frozen=True)
class SettingLine:
    """A setting of training, with one value per experiment."""

    name: str
    description: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Return whether the experiments disagree."""
        return len(set(self.values)) > 1


def read_experiments(experiments_dir: Path, names: Sequence[str]) -> list[Experiment]:
    """Read the results of train and eval.

    Args:
        experiments_dir: Holds ``<name>/train/`` and ``<name>/eval/`` of each experiment.
        names: The experiments.

    Raises:
        UserError: A file or a value is missing, or the experiments have different settings.
    """
    experiments: list[Experiment] = []
    for index, name in enumerate(names):
        train = experiments_dir / name / "train"
        trained = TrainedSettings.read(train / "config.json")
        settings = _flatten(trained.model_dump())
        if experiments and (missing := experiments[0].settings.keys() ^ settings.keys()):
            raise UserError(
                f"{train / 'config.json'}: settings that only {experiments[0].name} or only {name} "
                f"has: {', '.join(sorted(missing))}; {TrainedSettings.rerun()}"
            )
        experiments.append(
            Experiment(
                name=name,
                colour=COLOURS[index % len(COLOURS)],
                base_model=trained.base_model,
                settings=settings,
                log=TrainingLog.read(train / "metrics.jsonl"),
                preflight=Preflight.read(train / "preflight.json").checks,
                metrics=EvalMetrics.read(experiments_dir / name / "eval" / "metrics.json"),
            )
        )
    return experiments


def loss_lines(experiments: Sequence[Experiment]) -> list[ComparisonLine]:
    """Compare the losses."""
    return [
        _line(experiments, "Total", "eval_loss"),
        _line(experiments, "Text", "eval_text_loss"),
        _line(experiments, "Stop", "eval_stop_loss"),
        _line(experiments, "Audio", "eval_audio_loss"),
        *_codebook_lines(experiments, CODEBOOK_LOSS),
    ]


def accuracy_lines(experiments: Sequence[Experiment]) -> list[ComparisonLine]:
    """Compare the accuracies."""
    return [
        _line(experiments, "Text", "eval_text_accuracy"),
        *_codebook_lines(experiments, CODEBOOK_ACCURACY),
    ]


def _line(
    experiments: Sequence[Experiment], label: str, key: str, is_detail: bool = False
) -> ComparisonLine:
    return ComparisonLine(label, [each.change(key) for each in experiments], is_detail)


def _codebook_lines(experiments: Sequence[Experiment], prefix: str) -> list[ComparisonLine]:
    num_codebooks = experiments[0].metrics.base.num_codebooks
    return [
        _line(experiments, f"codebook {index}", f"{prefix}{index}", is_detail=True)
        for index in range(num_codebooks)
    ]


def setting_lines(experiments: Sequence[Experiment]) -> list[SettingLine]:
    """List every setting of training, in the order of the file."""
    descriptions = _descriptions(TrainStage)
    return [
        SettingLine(
            name,
            descriptions.get(name, "").replace("`", ""),
            [experiment.settings[name] for experiment in experiments],
        )
        for name in experiments[0].settings
    ]


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


def _descriptions(section: type[Section], prefix: str = "") -> dict[str, str]:
    """The sentence of each setting, as the config declares it."""
    sentences: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sentences |= _descriptions(field.annotation, f"{prefix}{name}.")
        else:
            sentences[prefix + name] = field.description or ""
    return sentences
