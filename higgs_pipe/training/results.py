"""JSON results of training, evaluation and verification: a class per file or line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import Ancestor
from higgs_pipe.training.hashed_lines import LINES_HASH, with_hash

CODEBOOK_LOSS = "eval_audio_loss_codebook_"
CODEBOOK_ACCURACY = "eval_audio_accuracy_codebook_"
TEXT_KEYS = ("eval_text_loss", "eval_text_accuracy", "num_text_labels")
COUNTS = ("num_clips", "num_text_labels", "num_audio_labels")


class SplitMetrics(ResultPart):
    """Losses (nats per label) and accuracies (0 to 1) of one model over the held-out split.

    For each of the K codebooks there is a :data:`CODEBOOK_LOSS` and a :data:`CODEBOOK_ACCURACY`.
    The three keys of text are all there, or none, for a model without a text loss.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    eval_loss: float
    eval_text_loss: float | None = None
    eval_audio_loss: float
    eval_stop_loss: float
    eval_text_accuracy: float | None = None
    num_clips: int
    num_text_labels: int | None = None
    num_audio_labels: int

    @property
    def num_codebooks(self) -> int:
        """K, and at least 1."""
        return max(1, len([key for key in self.__pydantic_extra__ if CODEBOOK_LOSS in key]))

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        lacking = [key for key in TEXT_KEYS if getattr(self, key) is None]
        if lacking and len(lacking) < len(TEXT_KEYS):
            raise PydanticCustomError("missing", f"there is no {', '.join(lacking)}")
        return self


class EvalMetrics(Result):
    """``metrics.json``: the adapter and its base on the same held-out clips.

    Also of the adapter that training continued from; without one there is no such key.
    """

    made_by: ClassVar[str] = "eval_adapter"
    is_hash_beside: ClassVar[bool] = True

    adapter: SplitMetrics
    base: SplitMetrics
    ancestor: SplitMetrics | None = None

    def values(self) -> dict[str, Any]:
        """Return the keys of the file, without ``ancestor`` if there is none."""
        return self.model_dump(exclude_none=True)

    @model_validator(mode="after")
    def _check_comparable(self) -> Self:
        num_codebooks = max(self.adapter.num_codebooks, self.base.num_codebooks)
        for name, metrics in (("adapter", self.adapter), ("base", self.base)):
            for prefix in (CODEBOOK_LOSS, CODEBOOK_ACCURACY):
                for key in (f"{prefix}{index}" for index in range(num_codebooks)):
                    if not hasattr(metrics, key):
                        raise PydanticCustomError("missing", f"{name} has no {key}")
        for key in COUNTS:
            of_adapter, of_base = getattr(self.adapter, key), getattr(self.base, key)
            if of_adapter != of_base:
                message = f"{key} is {of_adapter} for the adapter, {of_base} for the base: "
                raise PydanticCustomError("counts", f"{message}their losses do not compare")
        return self


class LoggedLine(Result):
    """A line of ``metrics.jsonl``; each kind has more keys than are declared."""

    model_config = ConfigDict(extra="allow")
    made_by: ClassVar[str] = "train_adapter"

    step: int


class TrainingLine(LoggedLine):
    """Losses of the training rows of a step, nats per label."""

    loss: float
    text_loss: float | None = None  # of a base that has one
    audio_loss: float
    stop_loss: float
    tokens_per_second: float
    audio_seconds_per_second: float
    peak_memory_gb: float
    seconds: float  # of the stage, pre-flight and evaluations included, up to this line


class HeldOutLine(LoggedLine):
    """Losses of the held-out rows after a step, nats per label."""

    eval_loss: float
    eval_text_loss: float | None = None  # of a base that has one
    eval_audio_loss: float
    eval_stop_loss: float


class SampleLine(LoggedLine):
    """Measures of the samples that were spoken after a step; step 0 is the base."""

    sample_stop_rate: float
    sample_length_ratio: float


class KeptLine(LoggedLine):
    """The last line: the step whose adapter is saved, and the seconds of the whole stage."""

    kept_step: int
    seconds: float
    lines_sha256: str | None = None  # of the whole file without this key


class PlanLine(LoggedLine):
    """Plan of the micro-batches, from the next step on."""

    rows_per_micro_batch: int
    recomputed_layers: int
    is_compiled: bool
    is_padded: bool = False


class AlarmLine(LoggedLine):
    """An alarm: its name and a sentence."""

    alarm: str
    message: str


@dataclass(frozen=True)
class TrainingLog:
    """``metrics.jsonl``, by kind of line; ``held_out`` begins with the base's losses, at step 0."""

    training: list[TrainingLine]
    held_out: list[HeldOutLine]
    alarms: list[AlarmLine]
    samples: list[SampleLine]
    kept_lines: list[KeptLine]  # one, at the end
    plans: list[PlanLine]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the lines.

        Raises:
            UserError: The file changed since training, a line lacks a key that it needs or that
                others have, or there is no training loss, no held-out loss at step 0 or none after.
        """
        if not path.is_file():
            raise UserError(f"{path}: the file is missing; {LoggedLine.rerun()}")
        log = cls([], [], [], [], [], [])
        content = path.read_text(encoding="utf-8", errors="replace")
        if LINES_HASH in content and content != with_hash(content):
            raise UserError(f"{path}: changed since it was written; {LoggedLine.rerun()}")
        text_losses: dict[str, float | None] = {}  # by place and key
        for number, text in enumerate(content.splitlines(), start=1):
            place = f"{path}:{number}"
            keys = LoggedLine.parse(text, place).model_extra or {}
            if "alarm" in keys:
                log.alarms.append(AlarmLine.parse(text, place))
            elif any(key.startswith("eval_") for key in keys):
                log.held_out.append(HeldOutLine.parse(text, place))
                text_losses[f"{place}:\n  `eval_text_loss`"] = log.held_out[-1].eval_text_loss
            elif any(key.startswith("sample_") for key in keys):
                log.samples.append(SampleLine.parse(text, place))
            elif "rows_per_micro_batch" in keys:
                log.plans.append(PlanLine.parse(text, place))
            elif "kept_step" in keys:
                log.kept_lines.append(KeptLine.parse(text, place))
            else:
                log.training.append(TrainingLine.parse(text, place))
                text_losses[f"{place}:\n  `text_loss`"] = log.training[-1].text_loss
        lacking = [key for key, loss in text_losses.items() if loss is None]
        if lacking and len(lacking) < len(text_losses):  # a base has a text loss, or none
            raise UserError(f"{lacking[0]}: missing in this line\n{LoggedLine.rerun()}")
        if not log.training:
            raise UserError(f"{path}: no line with a training loss; {LoggedLine.rerun()}")
        if len(log.held_out) < 2 or log.held_out[0].step != 0:
            raise UserError(
                f"{path}: no held-out loss at step 0 and after it; {LoggedLine.rerun()}"
            )
        return log

    @property
    def kept(self) -> HeldOutLine:
        """The held-out line of the saved adapter: the named one, or the first of lowest loss."""
        kept_steps = [line.kept_step for line in self.kept_lines]
        named = [line for line in self.held_out if line.step in kept_steps]
        return named[0] if named else min(self.held_out[1:], key=lambda line: line.eval_loss)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the training; the last of them may have no training line."""
        return max(self.training[-1].step, self.held_out[-1].step)

    @property
    def seconds(self) -> float:
        """Length of the training, from pre-flight to the adapter's last evaluation."""
        return (self.kept_lines or self.training)[-1].seconds


class PreflightCheck(ResultPart):
    """A check before the first step, its status and the finding in a sentence."""

    name: str
    status: Literal["passed", "failed", "no evidence"]
    found: str


class Preflight(Result):
    """``preflight.json``; without checks if the pre-flight was off."""

    made_by: ClassVar[str] = "train_adapter"

    checks: list[PreflightCheck]
    base_audio_loss_by_offset: dict[str, list[float | None]] = Field({})


class TrainedSettings(Result):
    """``config.json`` of the train folder: the settings of one experiment."""

    made_by: ClassVar[str] = "train_adapter"

    base_model: str
    base_model_revision: str | None
    train: dict[str, Any]


class RunInfo(Result):
    """``run.json``: when, where and with which code an adapter was trained."""

    made_by: ClassVar[str] = "train_adapter"

    started_at: str  # ISO 8601, UTC
    machine: str  # processor, or GPUs
    num_processes: int
    higgs_pipe: str  # version
    git_commit: str | None  # ends in -dirty if the code was changed; None: no repository
    packages: dict[str, str]
    ancestor: Ancestor | None = None  # the adapter that it started from; None: a new one


class Proof(Result):
    """Results of :mod:`higgs_pipe.verify` on a packaged adapter."""

    made_by: ClassVar[str] = "package_adapter"

    num_adapter_tensors: int
    max_logit_change: float
    eval_loss: float
    base_fingerprint: str
    base_revision: str | None  # the commit of a Hub snapshot; None: a directory
