"""Stage 1d: estimate tokens, steps, memory, time and cost of training."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from higgs_pipe.cli import main
from higgs_pipe.config.settings import PackConfig, TrainConfig
from higgs_pipe.config.stages import EstimateStage, Pretrained, load_stage
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import CONVERSATION, SamplePlan
from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.data.specs import TRAIN
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.codes import num_delayed_frames
from higgs_pipe.higgs.pretrained import small_files
from higgs_pipe.higgs.prompts import NotRendered, PromptRenderer
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.higgs.text_tokens import TextTokens, count_text_tokens
from higgs_pipe.planning import bases
from higgs_pipe.planning.config_check import merge
from higgs_pipe.training.forecast import PACKED_FILL, ExperimentEstimate, estimate_experiment

logger = logging.getLogger("higgs_pipe")

PUBLISHED_FRAME_RATE_HZ = 25.0
PUBLISHED_NUM_CODEBOOKS = 8
NUM_TEXTS_PER_BATCH = 10_000


class Amount(ResultPart):
    """The amount of training data; all numbers except the clips are estimates."""

    num_clips: int
    num_audio_frames: int
    num_text_tokens: int
    num_packed_rows: int


class BaseEstimate(ResultPart):
    """The training data as it will be packed for one base model."""

    base_model: str
    train: Amount
    not_in_chat_template: list[str]  # conversations that pack will reject
    experiments: dict[str, ExperimentEstimate]


class CostEstimate(Result):
    """``estimate.json``."""

    made_by: ClassVar[str] = "estimate"

    frame_rate_hz: float
    frame_rate_assumed_because: str | None
    bases: list[BaseEstimate]


def run(config: Path, validation: Path, clips: Path, estimate: Path) -> None:
    """Estimate the cost of training, and log it.

    Args:
        config: ``results/config/estimate.json``.
        validation: ``validation.json``.
        clips: The accepted clips.
        estimate: :class:`CostEstimate` to write.
    """
    stage = load_stage(EstimateStage, config)
    summary = ValidationSummary.read(validation)
    codec, codec_fault = _read(_codec_config, stage.pretrained_codec)
    frame_rate_hz = codec.sample_rate / codec.hop_length if codec else PUBLISHED_FRAME_RATE_HZ
    table = Clips.read(clips)
    found = CostEstimate(
        frame_rate_hz=frame_rate_hz,
        frame_rate_assumed_because=codec_fault,
        bases=[
            estimate_base(EstimateStage.model_validate(of_base), table, summary, frame_rate_hz)
            for of_base in bases.configs(stage.model_dump()).values()
        ],
    )
    found.write(estimate)
    logger.info("%s", "\n".join(_lines(found, stage.pack.max_tokens)))
    for base in found.bases:
        if base.not_in_chat_template:
            logger.warning(
                "The chat template of %s cannot render %d conversations, so pack will reject "
                "them; rewrite them:\n%s",
                base.base_model,
                len(base.not_in_chat_template),
                list_offenders(base.not_in_chat_template),
            )


def estimate_base(
    stage: EstimateStage, table: Clips, summary: ValidationSummary, frame_rate_hz: float
) -> BaseEstimate:
    """Estimate the cost of the experiments on one base model.

    Args:
        stage: The settings, with this base model and the experiments on it.
        table: The accepted clips.
        summary: The contents of ``validation.json``.
        frame_rate_hz: Frame rate of the codec.
    """
    base, base_fault = _read(_native_config, stage.pretrained_base)
    renderer, _ = _read(renderer_of, stage.pretrained_base)
    members = table.in_split(TRAIN)
    text_tokens = count_text_tokens(table.texts(members), stage.pack.system_prompt, renderer)
    frames_around = num_delayed_frames(0, PUBLISHED_NUM_CODEBOOKS)
    if renderer:
        shape = renderer.shape
        frames_around = num_delayed_frames(0, shape.num_codebooks, shape.num_margin_frames)
    amount = amount_of(
        summary,
        text_tokens,
        stage.pack,
        frame_rate_hz,
        frames_around,
        num_references=int(np.count_nonzero(table.reference[members] >= 0)),
    )
    experiments = {}
    for name, changes in stage.experiments.items():
        train = TrainConfig.model_validate(merge(stage.train.model_dump(), changes))
        experiments[name] = estimate_experiment(
            train, amount.num_packed_rows, stage.pack.max_tokens, base, base_fault
        )
    return BaseEstimate(
        base_model=stage.base_model,
        train=amount,
        not_in_chat_template=refused_conversations(table, stage, renderer) if renderer else [],
        experiments=experiments,
    )


def refused_conversations(
    table: Clips, stage: EstimateStage, renderer: PromptRenderer
) -> list[str]:
    """Return the conversations that pack will reject, each with its place and the fact."""
    conversations = np.flatnonzero(table.is_conversation).tolist()
    if not conversations:
        return []
    refused = []
    for start in range(0, len(conversations), NUM_TEXTS_PER_BATCH):
        some = conversations[start : start + NUM_TEXTS_PER_BATCH]
        plans = [SamplePlan(CONVERSATION, (clip,)) for clip in some]
        prompts = renderer.prompts(renderer.conversations(plans, table, stage.pack))
        refused += [
            f"{table.place(clip)}: {prompt.fact}"
            for clip, prompt in zip(some, prompts, strict=True)
            if isinstance(prompt, NotRendered)
        ]
    return refused


def _codec_config(codec: Pretrained) -> Any:
    from higgs_pipe.higgs.codec_checkpoint import codec_config  # imports the models

    return codec_config(codec)


def _native_config(base: Pretrained) -> Any:
    from higgs_pipe.higgs.family import config_of  # imports the models

    return config_of(base)


def _read(read: Callable[[Pretrained], Any], pretrained: Pretrained) -> tuple[Any, str | None]:
    """Read a checkpoint's config or tokenizer: (it, None), or (None, why it is missing).

    Raises:
        UserError: It exists but is damaged, so that no later stage could read it either.
    """
    try:
        small_files(pretrained)
    except UserError as error:
        return None, f"{pretrained.name} cannot be read ({str(error).splitlines()[0]})"
    return read(pretrained), None


def amount_of(
    summary: ValidationSummary,
    text_tokens: TextTokens,
    pack: PackConfig,
    frame_rate_hz: float,
    frames_around: int,
    num_references: int = 0,
) -> Amount:
    """Estimate the tokens of the training split.

    T codec frames take T and ``frames_around`` positions. A sample with a reference also holds
    another clip with its text, of the same length on average.

    Args:
        summary: The contents of ``validation.json``.
        text_tokens: The tokens of the split.
        pack: The task mix and the length of rows.
        frame_rate_hz: Frame rate of the codec.
        frames_around: Delayed frames beyond T.
        num_references: Clips with a reference of their own.
    """
    split = summary.splits[TRAIN]
    num_clips = split.num_clips
    drawn = pack.tasks.cloning / max(pack.tasks.cloning + pack.tasks.speech, 1e-9)
    own = num_references / max(num_clips, 1) if pack.tasks.cloning else 0.0
    # Of the samples with a reference.
    share = (own + (1 - own) * drawn) * (1 - pack.reference_dropout)
    own_frames = split.seconds * frame_rate_hz + num_clips * (0.5 + frames_around)
    around = text_tokens.per_sample + share * text_tokens.per_reference
    num_audio_frames = round((1 + share) * own_frames)
    num_text_tokens = round((1 + share) * text_tokens.texts + num_clips * around)
    num_tokens = num_audio_frames + num_text_tokens
    num_packed_rows = math.ceil(num_tokens / (PACKED_FILL * pack.max_tokens))
    return Amount(
        num_clips=num_clips,
        num_audio_frames=num_audio_frames,
        num_text_tokens=num_text_tokens,
        num_packed_rows=num_packed_rows,
    )


def _lines(found: CostEstimate, max_tokens: int) -> list[str]:
    """Return the estimate as readable lines."""
    lines = []
    for base in found.bases:
        amount = base.train
        lines += [
            f"estimated, for {base.base_model}:",
            f"  {amount.num_clips:,} clips to train on: {amount.num_audio_frames:,} audio frames "
            f"and {amount.num_text_tokens:,} text tokens, in {amount.num_packed_rows:,} packed "
            f"rows of {max_tokens:,}",
        ]
        for name, experiment in base.experiments.items():
            text = f"  {name}: {experiment.num_steps:,} steps"
            if experiment.parameters is None:
                lines.append(f"{text}; GPU memory unknown: {experiment.unknown_because}")
                continue
            lines.append(
                f"{text}; {experiment.parameters.trainable:,} trainable parameters; on one process "
                "per card, computed and not measured:"
            )
            lines += [f"    {card.as_text()}" for card in experiment.cards]
    return lines


if __name__ == "__main__":
    main(run)
