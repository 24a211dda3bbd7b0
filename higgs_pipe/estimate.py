"""What training on the validated clips will take: tokens, steps and GPU memory; no GPU is used."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from transformers import (
    AutoTokenizer,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerConfig,
)

from higgs_pipe.cli import main
from higgs_pipe.config.settings import PackConfig, TrainConfig
from higgs_pipe.config.stages import EstimateStage, Pretrained, load_stage, merge
from higgs_pipe.data.clips.summary import table_lines
from higgs_pipe.data.files import read_json, write_json
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import CONVERSATION, SamplePlan
from higgs_pipe.data.specs import CLIPS, TRAIN
from higgs_pipe.data.tables import open_table
from higgs_pipe.errors import list_offenders
from higgs_pipe.higgs.lora import add_lora, trainable_parameters
from higgs_pipe.higgs.prompts import PromptRenderer, Unsayable, conversations_of

logger = logging.getLogger("higgs_pipe")

PUBLISHED_FRAME_RATE_HZ = 25.0
PUBLISHED_NUM_CODEBOOKS = 8
PACKED_FILL = 0.99
# Where the tokenizer cannot be reached. Llama 3's has about 4 bytes of UTF-8 a token in English,
# and is not far from it elsewhere; the messages of a sample have headers and marks.
TEXT_BYTES_PER_TOKEN = 4.0
SAMPLE_NUM_TOKENS = 20
REFERENCE_NUM_TOKENS = 13
NUM_TEXTS_PER_BATCH = 10_000
GIB = 2**30

BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4, "float64": 8}
BYTES_PER_QUANTIZED_VALUE = {"8bit": 1.0, "4bit": 0.5}


@dataclass(frozen=True)
class TextTokens:
    """How many tokens there are in the texts, and around the text of each sample."""

    texts: int
    sample: float
    reference: float


@dataclass(frozen=True)
class Amount:
    """How much there is to train on; all of it estimated but the clips."""

    num_clips: int
    num_audio_frames: int
    num_text_tokens: int
    num_packed_rows: int


@dataclass(frozen=True)
class Memory:
    """GiB on each GPU, by what takes it."""

    weights: float
    adapter_and_optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All together, without what CUDA and the allocator add: often a GiB or two."""
        return self.weights + self.adapter_and_optimizer + self.activations + self.logits


def run(config: Path, validation: Path, clips: Path, estimate: Path) -> None:
    """Estimate what training will take, and print it below what was kept and lost.

    Args:
        config: ``results/config/estimate.json``.
        validation: ``validation.json``.
        clips: The accepted clips.
        estimate: JSON to write: tokens and rows, and for each experiment its steps, trainable
            parameters and GPU memory; these are null where the base cannot be reached, and
            ``unknown_because`` says why. Conversations that pack will reject are named.
    """
    stage = load_stage(EstimateStage, config)
    summary = read_json(validation)
    base = _reached(HiggsAudioV2Config, stage.pretrained_base)
    tokenizer = _reached(AutoTokenizer, stage.pretrained_base)
    codec = _reached(HiggsAudioV2TokenizerConfig, stage.pretrained_codec)
    table = open_table(clips, CLIPS)[0].read(["text", "split"])
    texts = table.filter(pc.field("split") == TRAIN)["text"].to_pylist()
    text_tokens = count_text_tokens(
        texts, stage.pack.system_prompt, None if isinstance(tokenizer, str) else tokenizer
    )
    frame_rate_hz = PUBLISHED_FRAME_RATE_HZ
    if not isinstance(codec, str):
        frame_rate_hz = codec.sample_rate / codec.hop_length
    num_codebooks = PUBLISHED_NUM_CODEBOOKS if isinstance(base, str) else base.num_codebooks
    amount = amount_of(summary, text_tokens, stage.pack, frame_rate_hz, num_codebooks)
    experiments = {}
    for name, overrides in stage.experiments.items():
        train = TrainConfig.model_validate(merge(stage.train.model_dump(), overrides or {}))
        steps_per_epoch = math.ceil(amount.num_packed_rows / train.rows_per_step)
        num_steps = train.max_steps or steps_per_epoch * train.num_epochs
        experiments[name] = {"num_steps": num_steps} | (
            {"parameters": None, "memory_gib": None, "unknown_because": base}
            if isinstance(base, str)
            else model_estimate(base, train, stage.pack.max_tokens)
        )
    refused = [] if isinstance(tokenizer, str) else refused_conversations(clips, stage)
    write_json(
        estimate,
        {
            "base_model": stage.base_model,
            "frame_rate_hz": frame_rate_hz,
            "frame_rate_assumed_because": codec if isinstance(codec, str) else None,
            "train": asdict(amount),
            "experiments": experiments,
            "not_in_chat_template": refused,
        },
    )
    lines = [*table_lines(summary), *_lines(stage, amount, experiments)]
    logger.info("%s", "\n".join(lines))
    if refused:
        logger.warning(
            "%d conversations cannot be said by the chat template of %s, so that pack will leave "
            "them out; rewrite them:\n%s",
            *(len(refused), stage.base_model, list_offenders(refused)),
        )


def refused_conversations(clips: Path, stage: EstimateStage) -> list[str]:
    """The conversations that pack will reject, each with its place and what is not said.

    Args:
        clips: The accepted clips.
        stage: Of the base model and of packing.
    """
    table = Clips.read(clips)
    conversations = np.flatnonzero(table.is_conversation).tolist()
    if not conversations:
        return []
    renderer = PromptRenderer(stage.pretrained_base)
    refused = []
    for start in range(0, len(conversations), NUM_TEXTS_PER_BATCH):
        some = conversations[start : start + NUM_TEXTS_PER_BATCH]
        plans = [SamplePlan(CONVERSATION, (clip,)) for clip in some]
        prompts = renderer.prompts(conversations_of(plans, table, stage.pack))
        refused += [
            f"{table.place(clip)}: {prompt}"
            for clip, prompt in zip(some, prompts, strict=True)
            if isinstance(prompt, Unsayable)
        ]
    return refused


def _reached(auto_class: Any, pretrained: Pretrained) -> Any:
    """A checkpoint's config or tokenizer, or why it cannot be read."""
    try:
        return auto_class.from_pretrained(pretrained.name, revision=pretrained.revision)
    except (OSError, ValueError) as error:
        return f"{pretrained.name} cannot be read ({str(error).splitlines()[0]})"


def count_text_tokens(texts: Sequence[str], system_prompt: str, tokenizer: Any) -> TextTokens:
    """Tokens of the texts and of the messages around them.

    Args:
        texts: What the clips say.
        system_prompt: The system message of each sample.
        tokenizer: The base's; None if it cannot be reached, then the numbers are rough.
    """
    if tokenizer is None:
        prompt = len(system_prompt.encode()) / TEXT_BYTES_PER_TOKEN
        num_bytes = sum(len(text.encode()) for text in texts)
        return TextTokens(
            texts=round(num_bytes / TEXT_BYTES_PER_TOKEN),
            sample=SAMPLE_NUM_TOKENS + prompt,
            reference=REFERENCE_NUM_TOKENS,
        )
    num_tokens = 0
    for start in range(0, len(texts), NUM_TEXTS_PER_BATCH):
        batch = texts[start : start + NUM_TEXTS_PER_BATCH]
        num_tokens += sum(map(len, tokenizer(batch, add_special_tokens=False)["input_ids"]))
    system = {"role": "system", "content": [{"type": "text", "text": system_prompt}]}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": ""}]},
        {"role": "assistant", "content": [{"type": "audio"}]},
    ]
    sample, with_reference = (
        # One token stands for the frames, which are counted by themselves.
        len(tokenizer.apply_chat_template([system, *turns * num], return_dict=False)) - num
        for num in (1, 2)
    )
    return TextTokens(num_tokens, sample, with_reference - sample)


def amount_of(
    summary: dict[str, Any],
    text_tokens: TextTokens,
    pack: PackConfig,
    frame_rate_hz: float,
    num_codebooks: int,
) -> Amount:
    """The tokens of the training split.

    A clip of T codec frames takes T + 2 + (K - 1) positions for them. A clip with a reference
    holds another clip and its text too, of the same length on average.

    Args:
        summary: What ``validation.json`` holds.
        text_tokens: Of the split.
        pack: How samples are made of the clips.
        frame_rate_hz: Of the codec.
        num_codebooks: K.
    """
    split = summary["splits"][TRAIN]
    num_clips = split["num_clips"]
    share = pack.tasks.cloning / max(pack.tasks.cloning + pack.tasks.speech, 1e-9)
    own_frames = split["seconds"] * frame_rate_hz + num_clips * (0.5 + 2 + num_codebooks - 1)
    around = text_tokens.sample + share * text_tokens.reference
    num_audio_frames = round((1 + share) * own_frames)
    num_text_tokens = round((1 + share) * text_tokens.texts + num_clips * around)
    num_tokens = num_audio_frames + num_text_tokens
    num_packed_rows = math.ceil(num_tokens / (PACKED_FILL * pack.max_tokens))
    return Amount(num_clips, num_audio_frames, num_text_tokens, num_packed_rows)


def model_estimate(base: HiggsAudioV2Config, train: TrainConfig, max_tokens: int) -> dict[str, Any]:
    """Parameters and memory of one experiment; the model is built without its weights."""
    # The initialisation changes no shape, and some need the weights. A token trained on its own
    # is a row of the embeddings, but only the tokenizer knows it.
    lora = train.lora.model_copy(update={"init": "default", "trainable_tokens": []})
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(base, use_text_head=True).requires_grad_(False)
        num_base = sum(parameter.numel() for parameter in model.parameters())
        layers = model.model.layers.parameters()
        num_in_layers = sum(parameter.numel() for parameter in layers if parameter.ndim == 2)
        parts = trainable_parameters(add_lora(model, lora, train.seed))
    num_trainable = sum(parts.values()) + len(train.lora.trainable_tokens) * base.hidden_size
    memory = memory_of(base, train, max_tokens, num_base, num_in_layers, num_trainable)
    return {
        "parameters": {"base": num_base, "trainable": num_trainable, "trainable_by_part": parts},
        "memory_gib": asdict(memory) | {"total": memory.total},
        "unknown_because": None,
    }


def memory_of(
    base: HiggsAudioV2Config,
    train: TrainConfig,
    max_tokens: int,
    num_base: int,
    num_in_layers: int,
    num_trainable: int,
) -> Memory:
    """An estimate of the memory that each process needs on its GPU.

    - Weights: the frozen base, in its own type; the layers' matrices in fewer bits if quantized.
    - Adapter: 16 bytes a trained parameter, which are weight, gradient and two moments of AdamW in
      float32 (Rajbhandari et al., ZeRO, 2020, section 3.1, without the 16-bit copies).
    - Activations: what a layer keeps for its backward pass, counted as Korthikanti et al. do
      (Reducing Activation Recomputation in Large Transformer Models, 2022, section 4.1), for this
      layer, whose base is frozen and whose attention keeps no matrix of scores. With hidden size
      H, key and value size D, FFN size I and rank r, a position keeps two norms, their outputs,
      queries and attention outputs (6 H), keys and values (2 D), the FFN's gate, its activation,
      its other branch and their product (4 I), and what LoRA projects to (7 r). With gradient
      checkpointing a recomputed layer keeps H, and one is there in full.
    - Logits: those of the audio head at every position, and their gradient, in float32, up to
      ``train.max_logits_mb``; the text head sees a few positions of a sample.

    Args:
        base: The base's config.
        train: The settings of an experiment.
        max_tokens: Positions of a packed row.
        num_base: Parameters of the base.
        num_in_layers: Those of them that are matrices of its layers.
        num_trainable: Parameters that are trained.
    """
    num_bytes = BYTES_PER_VALUE.get(train.dtype, BYTES_PER_VALUE["bfloat16"])
    num_positions = train.rows_per_micro_batch * max_tokens
    key_value_size = base.num_key_value_heads * base.head_dim
    layer = 6 * base.hidden_size + 2 * key_value_size + 4 * base.intermediate_size
    layer += 7 * train.lora.r
    every = int(train.gradient_checkpointing)
    num_recomputed = math.ceil(base.num_hidden_layers / every) if every else 0
    num_kept = base.num_hidden_layers - num_recomputed + (num_recomputed > 0)
    kept = num_recomputed * base.hidden_size + num_kept * layer
    logits: float = 2 * 4 * num_positions * base.num_codebooks * base.codebook_size
    logits = min(logits, train.max_logits_mb * 1e6)
    weights = float(num_base * num_bytes)
    if train.quantization is not None:
        weights -= num_in_layers * (num_bytes - BYTES_PER_QUANTIZED_VALUE[train.quantization])
    return Memory(
        weights=weights / GIB,
        adapter_and_optimizer=16 * num_trainable / GIB,
        activations=kept * num_bytes * num_positions / GIB,
        logits=logits / GIB,
    )


def _lines(
    stage: EstimateStage, amount: Amount, experiments: dict[str, dict[str, Any]]
) -> list[str]:
    """The estimate for a person."""
    lines = [
        f"estimated, for {stage.base_model}:",
        f"  {amount.num_clips:,} clips to train on: {amount.num_audio_frames:,} audio frames and "
        f"{amount.num_text_tokens:,} text tokens, in {amount.num_packed_rows:,} packed rows of "
        f"{stage.pack.max_tokens:,}",
    ]
    for name, found in experiments.items():
        text = f"  {name}: {found['num_steps']:,} steps"
        if found["memory_gib"] is None:
            lines.append(f"{text}; GPU memory unknown: {found['unknown_because']}")
            continue
        memory, trainable = found["memory_gib"], found["parameters"]["trainable"]
        parts = ", ".join(
            f"{part.replace('_', ' ')} {gib:.2f}" for part, gib in memory.items() if part != "total"
        )
        lines.append(
            f"{text}; {trainable:,} trainable parameters; GPU memory about "
            f"{memory['total']:.1f} GiB ({parts})"
        )
    return lines


if __name__ == "__main__":
    main(run)
