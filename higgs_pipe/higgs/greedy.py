"""Greedy speech after the prompt of a recorded sample, frame by frame."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.generation import RecordedSample, native_forward
from higgs_pipe.higgs.model import DualLossModel

GREEDY = Sampling(temperature=0)


@torch.inference_mode()
def speak_greedily(model: DualLossModel, sample: RecordedSample, max_frames: int) -> Codes:
    """Return the frames after a prompt: (F, K), delayed, up to the last of ``max_frames`` codes."""
    with native_forward(model) as native:
        family = family_of_model(native)
        [frames] = family.generate_batch(
            native, [sample.prompt], GREEDY, max_frames, "speaking greedily"
        )
    num_frames = max_frames + model.shape.num_codebooks - 1 + model.shape.num_margin_frames
    return np.asarray(frames[:num_frames], np.int16)


@torch.inference_mode()
def next_logits(model: DualLossModel, sample: RecordedSample, frames: Codes) -> Tensor:
    """Return the logits (K, V) of the frame after a prompt and ``frames`` (F, K)."""
    placeholders = np.full(len(frames), model.shape.audio_token_id)
    prompt = replace(
        sample.prompt,
        input_ids=np.concatenate([sample.prompt.input_ids, placeholders]),
        audio_input_ids=np.concatenate([sample.prompt.audio_input_ids, frames]),
    )
    with native_forward(model) as native:
        return family_of_model(native).next_frame_logits(native, prompt)
