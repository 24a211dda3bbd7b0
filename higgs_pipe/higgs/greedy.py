"""Greedy speech after the prompt of a recorded sample, frame by frame."""

import numpy as np
import torch
from torch import Tensor

from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.generation import RecordedSample, native_forward
from higgs_pipe.higgs.model import DualLossModel


@torch.inference_mode()
def speak_greedily(model: DualLossModel, sample: RecordedSample, num_frames: int) -> Codes:
    """Return the codes after a prompt: (F, K), delayed, at most ``num_frames``."""
    config = model.native.config
    inputs = _inputs(sample, np.empty((0, config.num_codebooks), np.int16), model)
    with native_forward(model) as native:
        generated = native.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=num_frames,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
        )
    frames: Codes = generated[0, len(sample.prompt.audio_input_ids) :].cpu().numpy()
    return frames.astype(np.int16)


@torch.inference_mode()
def next_logits(model: DualLossModel, sample: RecordedSample, frames: Codes) -> Tensor:
    """Return the logits (K, V) of the frame after a prompt and ``frames`` (F, K)."""
    with native_forward(model) as native:
        logits: Tensor = native(**_inputs(sample, frames, model), use_cache=False).logits[0, -1]
    return logits.view(model.native.config.num_codebooks, -1)


def _inputs(sample: RecordedSample, frames: Codes, model: DualLossModel) -> dict[str, Tensor]:
    """Return a prompt and the frames (F, K) after it, as the native model takes them."""
    prompt, native = sample.prompt, model.native
    placeholders = np.full(len(frames), native.config.audio_token_id)
    input_ids = np.concatenate([prompt.input_ids, placeholders]).astype(np.int64)
    audio = np.concatenate([prompt.audio_input_ids, frames]).astype(np.int64)
    inputs = {"input_ids": torch.from_numpy(input_ids)[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if len(audio):
        inputs["audio_input_ids"] = torch.from_numpy(audio)[None]
        inputs["audio_input_ids_mask"] = torch.ones(1, len(audio), dtype=torch.bool)
    return {name: tensor.to(native.device) for name, tensor in inputs.items()}
