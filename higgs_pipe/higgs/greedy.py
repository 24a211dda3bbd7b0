"""Greedy speech after the prompt of a recorded sample, frame by frame."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.codes import Codes, delay
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.generation import RecordedSample, native_forward
from higgs_pipe.higgs.model import DualLossModel

GREEDY = Sampling(temperature=0)


@torch.inference_mode()
def speak_greedily(model: DualLossModel, sample: RecordedSample, max_frames: int) -> Codes:
    """Return the frames after a prompt: (F, K), delayed, up to the last code of codebook 0."""
    shape = model.shape
    with native_forward(model) as native:
        family = family_of_model(native)
        [spoken] = family.generate_batch(
            native, [sample.prompt], GREEDY, max_frames, "speaking greedily"
        )
    margin = shape.num_margin_frames
    ends = (shape.audio_stream_bos_id, shape.audio_stream_eos_id)
    return delay([spoken.codes], *ends, margin)[: margin + len(spoken.codes)]


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
