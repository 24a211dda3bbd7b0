"""The part of the config that each stage reads, and how it is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from higgs_pipe.config.rules import Section
from higgs_pipe.config.settings import (
    AcceptConfig,
    BaseModelField,
    ClipsPageConfig,
    CodecField,
    DataConfig,
    EvaluateConfig,
    ExperimentsField,
    FilterConfig,
    Manifest,
    ManifestField,
    MeasureConfig,
    MergeConfig,
    OtherManifestConfig,
    PackageConfig,
    PackConfig,
    PushConfig,
    ReportPageConfig,
    RevisionField,
    ShardConfig,
    TokenizeConfig,
    TrainConfig,
    ValidateConfig,
)
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.planning.config_check import merge


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint that the config names: a directory, or a Hub id, perhaps with a revision."""

    setting: str  # the key that names it, for messages
    name: str
    revision: str | None = None


class BaseModelStage(Section):
    """Settings of ``pin_model`` and of every stage that loads the base or a part of it."""

    base_model: str = BaseModelField
    base_model_revision: str | None = RevisionField

    @property
    def pretrained_base(self) -> Pretrained:
        """The base model."""
        return Pretrained("base_model", self.base_model, self.base_model_revision)


class CodecStage(Section):
    """Settings of ``pin_model`` and of every stage that loads the codec or a part of it."""

    codec: str = CodecField
    codec_revision: str | None = RevisionField

    @property
    def pretrained_codec(self) -> Pretrained:
        """The codec."""
        return Pretrained("codec", self.codec, self.codec_revision)


class ModelsStage(BaseModelStage, CodecStage):
    """Settings that ``check_models`` reads."""


class ListRowsStage(Section):
    """Settings that ``list_rows`` reads."""

    manifest: Manifest = ManifestField
    data: ShardConfig = ShardConfig()


class MeasureStage(Section):
    """Settings that ``measure`` reads."""

    validate_: MeasureConfig = Field(MeasureConfig(), alias="validate")


class ValidateStage(Section):
    """Settings that ``validate`` reads."""

    manifest: Manifest = ManifestField
    data: DataConfig = DataConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")


class EstimateStage(BaseModelStage, CodecStage):
    """Settings that ``estimate`` reads."""

    pack: PackConfig = PackConfig()
    train: TrainConfig = TrainConfig()
    experiments: dict[str, dict[str, Any]] = ExperimentsField


class TokenizeStage(CodecStage):
    """Settings that ``tokenize`` reads."""

    tokenize: TokenizeConfig = TokenizeConfig()


class PackStage(BaseModelStage):
    """Settings that ``pack`` reads."""

    pack: PackConfig = PackConfig()


class TrainStage(BaseModelStage):
    """Settings that ``train`` reads; an experiment overrides parts of ``train``."""

    train: TrainConfig = TrainConfig()


class EvalStage(BaseModelStage):
    """Settings that ``eval`` reads."""

    eval: EvaluateConfig = EvaluateConfig()


class AcceptStage(Section):
    """Settings that ``accept`` reads."""

    eval: AcceptConfig = AcceptConfig()


class PackageStage(BaseModelStage, CodecStage):
    """Settings that ``package`` reads."""

    eval: OtherManifestConfig = OtherManifestConfig()
    package: PackageConfig = PackageConfig()


class PushStage(Section):
    """Settings that ``push`` reads."""

    push: PushConfig = PushConfig()
    eval: AcceptConfig = AcceptConfig()


class MergeStage(BaseModelStage):
    """Settings that ``merge`` reads."""

    package: MergeConfig = MergeConfig()


class ReportStage(Section):
    """Settings that ``report`` reads."""

    eval: OtherManifestConfig = OtherManifestConfig()
    report: ReportPageConfig = ReportPageConfig()


class FilterPart(Section):
    """The filters alone."""

    filters: FilterConfig = FilterConfig()


class ClipsPageStage(Section):
    """Settings that ``clips_page`` reads."""

    validate_: FilterPart = Field(FilterPart(), alias="validate")
    report: ClipsPageConfig = ClipsPageConfig()


STAGES: dict[str, type[Section]] = {
    "models": ModelsStage,
    "base_model": BaseModelStage,
    "codec": CodecStage,
    "list_rows": ListRowsStage,
    "measure": MeasureStage,
    "validate": ValidateStage,
    "clips_page": ClipsPageStage,
    "estimate": EstimateStage,
    "tokenize": TokenizeStage,
    "pack": PackStage,
    "train": TrainStage,
    "eval": EvalStage,
    "accept": AcceptStage,
    "package": PackageStage,
    "push": PushStage,
    "merge": MergeStage,
    "report": ReportStage,
}


StageT = TypeVar("StageT", bound=Section)


def load_stage(stage: type[StageT], path: Path, overrides: str | None = None) -> StageT:
    """Read ``results/config/<stage>.json``.

    Args:
        stage: The model of the stage, for example :class:`TrainStage`.
        path: The file that the workflow wrote.
        overrides: JSON object of an experiment, merged into the ``train`` section.

    Raises:
        UserError: The file or the overrides cannot be read as JSON, a key is unknown, or a value
            has the wrong type or is out of bounds.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as the settings of a stage ({error}); run snakemake, which "
            "writes them to results/config/."
        ) from None
    if overrides is not None and isinstance(values, dict):
        try:
            values = merge(values, {"train": json.loads(overrides)})
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"overrides cannot be read as JSON ({error}): {overrides:.60}"
            ) from None
    try:
        return stage.model_validate(values)
    except ValidationError as error:
        offenders = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()
        ]
        raise UserError(
            f"{path}: the settings are refused:\n{list_offenders(offenders)}\n"
            "Fix them in config.yaml and run snakemake again."
        ) from None
