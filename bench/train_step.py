"""What a training step costs, against the native model and against the body alone.

    python bench/train_step.py --output results/bench/train_step.json
    python bench/train_step.py --device cuda

On a CPU, two small bodies over the same clips, LoRA r16 everywhere: (a) 512 x 8 layers with a
vocabulary of 6,840, where the heads weigh what they weigh in the 3B model; (b) 512 x 4 with the
real vocabulary of 128,256. The variants are

- ours: packed rows, heads where there are labels, the loss in chunks;
- native: the native model and its own loss over its own labels (every token and every code), on
  batches of 8 clips padded to the longest, in the order in which they come;
- native + SFT labels: the same with our labels, so that both learn the same thing;
- backbone: our rows through the body alone, forward and backward, without heads and loss.

Times are medians over rounds that take the variants in turn, in one process; a round is every clip
once. Memory is the peak resident set above the loaded model, each variant in a process of its own.

With ``--device cuda`` the body has the 3B model's shape and random weights, and the table in
``docs/performance.md`` is written.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config import LoraSettings
from higgs_pipe.data.bins import first_fit_decreasing
from higgs_pipe.higgs.batch import PackedBatch, PackedRow, collate
from higgs_pipe.higgs.codes import IGNORED, delay, target_labels
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel

FRAME_RATE_HZ = 25
NUM_CODEBOOKS = 8
NUM_CODES = 1024
NATIVE_BATCH_SIZE = 8
TEXT_TOKENS_PER_SECOND = 3.5
NUM_PROMPT_TOKENS = 30
SHAPES = {"a": (512, 8, 6_840), "b": (512, 4, 128_256)}  # hidden size, layers, vocabulary
VARIANTS = ("ours", "native", "native + SFT labels", "backbone")

Step = Callable[[], None]


class Clip(NamedTuple):
    """A sample: (S,) and (F, K)."""

    input_ids: Any
    labels: Any
    audio_input_ids: Any
    audio_labels: Any


def model_config(hidden_size: int, num_layers: int, vocab_size: int) -> HiggsAudioV2Config:
    """The 3B model's proportions: an FFN of 8/3 of the width, a key head for several queries."""
    first_special = vocab_size - 16
    return HiggsAudioV2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 64 * 64,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 256,
        head_dim=64,
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=NUM_CODES + 2,
        audio_stream_bos_id=NUM_CODES,
        audio_stream_eos_id=NUM_CODES + 1,
        audio_token_id=first_special,
        audio_delay_token_id=first_special + 1,
        audio_bos_token_id=first_special + 2,
        bos_token_id=first_special + 3,
        eos_token_id=first_special + 4,
        pad_token_id=first_special + 5,
    )


def draw_clips(config: Any, num_clips: int, seed: int = 0) -> list[Clip]:
    """Clips of 1 to 20 s, evenly spread, with random text and codes."""
    generator = np.random.default_rng(seed)
    audio_eos = config.pad_token_id + 1
    clips = []
    for seconds in generator.uniform(1, 20, num_clips):
        num_frames = round(seconds * FRAME_RATE_HZ)
        codes = generator.integers(0, NUM_CODES, (num_frames, NUM_CODEBOOKS), np.int16)
        frames = delay(codes, config.audio_stream_bos_id, config.audio_stream_eos_id)
        num_text = NUM_PROMPT_TOKENS + round(seconds * TEXT_TOKENS_PER_SECOND)
        text = generator.integers(0, config.audio_token_id, num_text)
        placeholders = np.full(len(frames), config.audio_token_id)
        placeholders[1 - NUM_CODEBOOKS :] = config.audio_delay_token_id
        ids = [text, [config.audio_bos_token_id], placeholders, [audio_eos, config.eos_token_id]]
        input_ids = np.concatenate(ids).astype(np.int32)
        labels = np.full_like(input_ids, IGNORED)
        supervised = [num_text, -2, -1]
        labels[supervised] = input_ids[supervised]
        clips.append(Clip(input_ids, labels, frames, target_labels(frames)))
    return clips


def packed_batches(clips: Sequence[Clip], row_length: int, config: Any) -> list[PackedBatch]:
    """The clips in rows of at most ``row_length`` positions, a row a batch."""
    batches = []
    for chosen in first_fit_decreasing([len(clip.input_ids) for clip in clips], row_length):
        parts = zip(*(clips[i] for i in chosen), strict=True)
        lengths = np.array([len(clips[i].input_ids) for i in chosen], np.int32)
        arrays = [np.concatenate(part) for part in parts]
        row = PackedRow(*arrays, tuple(str(i) for i in chosen), lengths)
        batches.append(collate([row], config))
    return batches


def native_batches(clips: Sequence[Clip], config: Any, sft_labels: bool) -> list[dict[str, Tensor]]:
    """Batches of 8 clips padded to the longest, in the order in which they come."""
    batches = []
    for start in range(0, len(clips), NATIVE_BATCH_SIZE):
        chosen = clips[start : start + NATIVE_BATCH_SIZE]

        def padded(name: str, value: int, clips: Sequence[Clip] = chosen) -> Tensor:
            arrays = [torch.from_numpy(getattr(clip, name).astype(np.int64)) for clip in clips]
            return pad_sequence(arrays, batch_first=True, padding_value=value)

        input_ids = padded("input_ids", config.pad_token_id)
        frames = padded("audio_input_ids", IGNORED)
        is_frame = frames[..., 0] != IGNORED
        frames = frames.masked_fill(~is_frame[..., None], config.audio_stream_eos_id)
        is_token = input_ids != config.pad_token_id
        if sft_labels:
            labels, audio_labels = padded("labels", IGNORED), padded("audio_labels", IGNORED)
        else:  # every token but the placeholders, every code
            is_text = is_token & (input_ids != config.audio_token_id)
            labels = input_ids.masked_fill(~is_text, IGNORED)
            audio_labels = frames.masked_fill(frames >= NUM_CODES, IGNORED)
        batches.append(
            {
                "input_ids": input_ids,
                "attention_mask": is_token.long(),
                "audio_input_ids": frames,
                "audio_input_ids_mask": is_frame,
                "labels": labels,
                "audio_labels": audio_labels,
            }
        )
    return batches


def build_model(config: Any, dropout: float) -> Any:
    """A random base with LoRA r16, ready to train."""
    torch.manual_seed(0)
    base = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).requires_grad_(False)
    return add_lora(base, LoraSettings(r=16, dropout=dropout), seed=0).train()


def build_round(variant: str, shape: str, options: argparse.Namespace) -> Step:
    """A function that takes a training step with each clip once."""
    config = model_config(*SHAPES[shape])
    clips = draw_clips(config, options.num_clips)
    adapted = build_model(config, options.dropout)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    if variant.startswith("native"):
        padded = native_batches(clips, config, sft_labels=variant != "native")

        def backward_native() -> None:
            for batch in padded:
                adapted(**batch, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return backward_native

    model = DualLossModel(adapted)
    packed = packed_batches(clips, options.row_length, config)

    def backward_packed() -> None:
        for batch in packed:
            if variant == "backbone":
                hidden = model.backbone(batch)
                hidden.backward(torch.ones_like(hidden))
            else:
                weights = label_weights(batch.label_counts().float())
                model(batch, weights, predict=False)[0].objective.backward()
            optimizer.step()
            optimizer.zero_grad()

    return backward_packed


def num_real_tokens(shape: str, num_clips: int) -> int:
    """Tokens of the clips, padding left out."""
    clips = draw_clips(model_config(*SHAPES[shape]), num_clips)
    return sum(len(clip.input_ids) for clip in clips)
