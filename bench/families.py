"""What a training step costs on a body of Higgs TTS 3 beside one of Higgs Audio v2, on a CPU.

    PYTHONPATH=. python bench/families.py --output results/bench/families.json

The same clips of 1 to 20 s, LoRA r16 on every layer, both bodies 512 wide with 8 layers and the
proportions of their checkpoints. Ours are packed rows; *padded* is what a plain trainer of Higgs
TTS 3 does: batches of 8 clips padded to the longest through the whole model, logits at each
position, and the same labels. A round is a step with every clip once; times are CPU seconds on one
thread, medians over rounds that take the variants in turn.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import in_turn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from train_step import (
    NATIVE_BATCH_SIZE,
    Clip,
    build_model,
    draw_clips,
    model_config,
    num_real_tokens,
    packed_rows,
    with_optimizer,
)

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.higgs.batch import PackedBatch, collate
from higgs_pipe.higgs.codes import IGNORED, delay, target_labels, undelay
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.v3.miniature import raw_config
from higgs_pipe.higgs.v3.native import HiggsV3Config, HiggsV3Model, shape_of

HIDDEN_SIZE, NUM_LAYERS, NUM_TEXT_IDS = 512, 8, 6_840
NUM_TOKENS_AROUND = 3  # <|tts|>, <|text|>, <|audio|>
V3_FFN_RATIO = 9728 / 2560

Step = Callable[[], None]


def v3_config() -> HiggsV3Config:
    """The 4B model's proportions in a small body."""
    config = raw_config(NUM_TEXT_IDS, HIDDEN_SIZE, NUM_LAYERS)
    config["text_config"] |= {
        "intermediate_size": round(HIDDEN_SIZE * V3_FFN_RATIO / 64) * 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    return HiggsV3Config(**config)


def as_v3(clip: Clip, config: HiggsV3Config) -> Clip:
    """The same codes and as many text tokens as a prompt of Higgs TTS 3."""
    shape = shape_of(config)
    codes = undelay(clip.audio_input_ids)
    frames = delay([codes], shape.audio_stream_bos_id, shape.audio_stream_eos_id, 0)
    labels = target_labels([codes], shape.audio_stream_eos_id, margin=0, num_eos=8)
    num_text = len(clip.input_ids) - len(clip.audio_input_ids) - 33 + NUM_TOKENS_AROUND
    text = np.clip(clip.input_ids[:num_text], 0, shape.vocab_size - 1)
    placeholders = np.full(len(frames), shape.audio_token_id)
    input_ids = np.concatenate([text, placeholders]).astype(np.int32)
    return Clip(input_ids, np.full_like(input_ids, IGNORED), frames, labels)


def v3_model(config: HiggsV3Config) -> Any:
    """A random body with LoRA r16, ready to train."""
    torch.manual_seed(0)
    base = HiggsV3Model(config).requires_grad_(False)
    return add_lora(base, LoraSettings(r=16), seed=0).train()


def packed_round(adapted: Any, clips: Sequence[Clip], row_length: int) -> Step:
    """Ours, of either family."""
    model = DualLossModel(adapted)
    batches = [collate([row], model.shape) for row in packed_rows(clips, row_length)]
    has_text = model.shape.has_text_loss
    weights = [label_weights(batch.label_counts(), has_text=has_text) for batch in batches]

    def backward(item: tuple[PackedBatch, Tensor]) -> None:
        model(*item, predict=False)[0].objective.backward()

    return with_optimizer(model, backward, list(zip(batches, weights, strict=True)))


def padded_round(adapted: Any, clips: Sequence[Clip]) -> Step:
    """Batches of 8 clips padded to the longest, logits at every position."""
    native = adapted.get_base_model()
    batches = []
    for start in range(0, len(clips), NATIVE_BATCH_SIZE):
        chosen = clips[start : start + NATIVE_BATCH_SIZE]
        ids = [torch.from_numpy(clip.input_ids.astype(np.int64)) for clip in chosen]
        labels = []
        for clip in chosen:
            of_clip = np.full((len(clip.input_ids), clip.audio_labels.shape[1]), IGNORED)
            of_clip[len(of_clip) - len(clip.audio_labels) :] = clip.audio_labels
            labels.append(torch.from_numpy(of_clip))
        frames = np.concatenate([clip.audio_input_ids for clip in chosen]).astype(np.int64)
        batches.append(
            {
                "input_ids": pad_sequence(ids, batch_first=True),
                "audio_input_ids": torch.from_numpy(frames)[None],
                "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
                "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            }
        )

    def backward(batch: dict[str, Tensor]) -> None:
        labels = batch["labels"]
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = native(**inputs, use_cache=False)  # (B, S, K, V)
        nats = cross_entropy(
            logits[:, :-1].flatten(0, 2), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        torch.autograd.backward(nats)

    return with_optimizer(adapted, backward, batches)


def rounds_of(
    num_clips: int, row_length: int, num_rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the CPU seconds of each variant by round, and what each round handles.

    Returns:
        Seconds by variant; tokens of ``v2`` and ``v3``, and seconds of ``audio``.
    """
    torch.set_num_threads(1)
    v2, v3 = model_config(HIDDEN_SIZE, NUM_LAYERS, NUM_TEXT_IDS), v3_config()
    clips = draw_clips(v2, num_clips)
    v3_clips = [as_v3(clip, v3) for clip in clips]
    seconds = in_turn(
        {
            "v2, ours": packed_round(build_model(v2, LoraSettings().dropout), clips, row_length),
            "v3, ours": packed_round(v3_model(v3), v3_clips, row_length),
            "v3, padded": padded_round(v3_model(v3), v3_clips),
        },
        num_rounds,
    )
    audio_seconds = sum(len(undelay(clip.audio_input_ids)) for clip in clips) / 25
    tokens = {"v2": num_real_tokens(clips), "v3": num_real_tokens(v3_clips)}
    return seconds, {**tokens, "audio": audio_seconds}


def measure(num_clips: int, row_length: int, repetitions: int) -> dict[str, Any]:
    """Real tokens and seconds of audio per second of each variant, and their ratios."""
    seconds, handled = rounds_of(num_clips, row_length, repetitions)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "tokens_per_second": {name: handled[name[:2]] / s for name, s in median.items()},
        "audio_seconds_per_second": {name: handled["audio"] / s for name, s in median.items()},
        "v3_over_v2": median["v2, ours"] / median["v3, ours"],
        "v3_over_padded": median["v3, padded"] / median["v3, ours"],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--num-clips", type=int, default=32)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    text = json.dumps(measure(options.num_clips, options.row_length, options.repetitions), indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
