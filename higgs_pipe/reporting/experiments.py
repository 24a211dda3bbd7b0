"""Results of the experiments: their files, settings side by side, ranking."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from higgs_pipe.config.rules import Section
from higgs_pipe.config.stages import TrainStage
from higgs_pipe.errors import UserError
from higgs_pipe.listening.breakdown import Breakdown
from higgs_pipe.listening.spoken import Generation
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.reporting.measures import MeasureLine, line_groups, stopping_by_temperature
from higgs_pipe.training.results import (
    EvalMetrics,
    Preflight,
    PreflightCheck,
    RunInfo,
    TrainedSettings,
    TrainingLog,
)

COLOURS = ("#3f8ecf", "#dd7d2b", "#2f9e78", "#a873c4", "#cf5470", "#93903a")
"""Middle tones, one per experiment: legible on white and on black."""


@dataclass(frozen=True)
class EvalResults:
    """Results of an adapter and its base on some recordings."""

    metrics: EvalMetrics
    verdict: Verdict
    generation: Generation
    breakdown: Breakdown

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the results of eval.

        Raises:
            UserError: A file or a value is missing.
        """
        return cls(
            metrics=EvalMetrics.read(folder / "metrics.json"),
            verdict=Verdict.read(folder / "verdict.json"),
            generation=Generation.read(folder / "generation.json"),
            breakdown=Breakdown.read(folder / "breakdown.json"),
        )

    @property
    def line_groups(self) -> list[tuple[str, list[MeasureLine]]]:
        """The table of measures."""
        return line_groups(self.metrics, self.verdict, self.generation)

    @property
    def stopping_groups(self) -> list[tuple[str, list[MeasureLine]]]:
        """The table of stopping by temperature; empty if there is only one."""
        return stopping_by_temperature(self.generation)

    @property
    def ranked_lines(self) -> list[MeasureLine]:
        """The measures that can decide the verdict, without those that were not measured."""
        lines = [line for _, lines in self.line_groups for line in lines]
        return [line for line in lines if line.leads and line.adapter]


@dataclass(frozen=True)
class Experiment:
    """Results of one adapter."""

    name: str
    colour: str
    base_model: str
    settings: dict[str, str]
    run: RunInfo
    log: TrainingLog
    preflight: list[PreflightCheck]
    held_out: EvalResults
    other: EvalResults | None  # on eval.other_manifest

    @property
    def base(self) -> tuple[str, str]:
        """Return the base model and its revision."""
        return self.base_model, self.settings["base_model_revision"]


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


def read_experiments(
    experiments_dir: Path, names: Sequence[str], has_other: bool = False
) -> list[Experiment]:
    """Read the results of train and eval.

    Args:
        experiments_dir: Has ``<name>/train/`` and ``<name>/eval/`` of each experiment.
        names: The experiments.
        has_other: Whether they were also evaluated on ``eval.other_manifest``.

    Raises:
        UserError: A file or a value is missing, or the experiments have different settings.
    """
    experiments: list[Experiment] = []
    for index, name in enumerate(names):
        train, evaluated = experiments_dir / name / "train", experiments_dir / name / "eval"
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
                run=RunInfo.read(train / "run.json"),
                log=TrainingLog.read(train / "metrics.jsonl"),
                preflight=Preflight.read(train / "preflight.json").checks,
                held_out=EvalResults.read(evaluated),
                other=EvalResults.read(evaluated / "other") if has_other else None,
            )
        )
    return experiments


def ranked(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Sort the experiments: by verdict, then by audio loss."""
    places = ("better", "no evidence", "worse")
    return sorted(
        experiments,
        key=lambda each: (
            places.index(each.held_out.verdict.overall),
            each.held_out.metrics.adapter.eval_audio_loss,
        ),
    )


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
            flat[prefix + key] = ", ".join(str(part) for part in value) or "[]"
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _descriptions(section: type[Section], prefix: str = "") -> dict[str, str]:
    """The description of each setting in the config."""
    sentences: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sentences |= _descriptions(field.annotation, f"{prefix}{name}.")
        else:
            sentences[prefix + name] = field.description or ""
    return sentences
