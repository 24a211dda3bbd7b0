"""Generation with the native loop of Higgs Audio v2 and our sampling of the codes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import GenerationConfig, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.prompts import GeneratedCodes, ModelPrompt
from higgs_pipe.higgs.sampler import Sampler
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.higgs.v2.native import shape_of
from higgs_pipe.progress import activity

PAD_TOKEN_ID = 0  # any text token: it is masked


@torch.no_grad()
def generate_batch(
    native: HiggsAudioV2ForConditionalGeneration,
    prompts: Sequence[ModelPrompt],
    sampling: Sampling,
    max_frames: int,
    description: str,
) -> list[Codes]:
    """Run the native generation.

    Returns:
        (G, K) for each prompt, delayed, beginning with the frame of stream BOS.
    """
    shape = shape_of(native.config)
    # Frame 0 is BOS, codebook k is k frames late, and one frame more tells that it has stopped.
    num_steps = max_frames + shape.num_codebooks + 1
    inputs = _inputs(prompts, shape, native.device)
    num_prompt_frames = max(len(prompt.audio_input_ids) for prompt in prompts)
    seeds = [prompt.seed(sampling.seed) for prompt in prompts]
    # All may stop before the last frame, so the time left is an upper bound.
    with activity(description, num_steps, "frames at most") as speaking:
        sampler = Sampler(sampling, shape, seeds, speaking.advance)

        def loop(model: Any, input_ids: Tensor, **options: Any) -> Any:
            # The sampler draws the codes. The native loop finds one left of each codebook.
            options["logits_processor"].append(sampler)
            return type(model)._sample(model, input_ids, **options)

        with _without_defaults(native):
            frames = native.generate(
                **inputs,
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=num_steps,
                    pad_token_id=PAD_TOKEN_ID,
                    eos_token_id=native.config.eos_token_id,
                    return_dict_in_generate=False,
                ),
                custom_generate=loop,
            )  # (B, F + G, K)
    delayed = frames[:, num_prompt_frames:].to(torch.int16).cpu().numpy()
    return list(delayed)


@contextmanager
def _without_defaults(native: Any) -> Iterator[None]:
    """Remove the checkpoint's generation defaults, which would mix with ours."""
    defaults, native.generation_config = native.generation_config, GenerationConfig()
    try:
        yield
    finally:
        native.generation_config = defaults


def generated_codes(delayed: Codes, max_frames: int, stream_eos: int) -> GeneratedCodes:
    """Undo the delay of generated frames and end them where the first codebook ends.

    Args:
        delayed: (G, K), from the frame of stream BOS on; G is at least ``max_frames + K + 1``
            unless each codebook has stopped.
        max_frames: The cap.
        stream_eos: Stands after a codebook's last code.
    """
    streams = [delayed[k + 1 :, k] for k in range(delayed.shape[1])]
    ends = [np.flatnonzero(stream == stream_eos)[:1] for stream in streams]
    num_frames = min([max_frames + 1, *(int(end[0]) for end in ends if len(end))])
    has_stopped = num_frames <= max_frames
    num_frames = min(num_frames, max_frames)
    codes = np.stack([stream[:num_frames] for stream in streams], axis=1)
    return GeneratedCodes(codes, has_stopped)


def next_frame_logits(native: HiggsAudioV2ForConditionalGeneration, prompt: ModelPrompt) -> Tensor:
    """Return the logits of the frame after a prompt: (K, V)."""
    shape = shape_of(native.config)
    inputs = _inputs([prompt], shape, native.device)
    logits: Tensor = native(**inputs, use_cache=False).logits[0, -1]
    return logits.view(shape.num_codebooks, -1)


def _inputs(
    prompts: Sequence[ModelPrompt], shape: BaseShape, device: torch.device
) -> dict[str, Tensor]:
    """The prompts, padded on the left, and their frames, padded on the right."""
    size = (len(prompts), max(len(prompt.input_ids) for prompt in prompts))
    input_ids = torch.full(size, PAD_TOKEN_ID)  # (B, P)
    attention_mask = torch.zeros(size, dtype=torch.int64)
    num_frames = [len(prompt.audio_input_ids) for prompt in prompts]
    audio_input_ids = torch.full(
        (len(prompts), max(num_frames), shape.num_codebooks), shape.audio_stream_eos_id
    )  # (B, F, K)
    for row, prompt in enumerate(prompts):
        input_ids[row, -len(prompt.input_ids) :] = _tensor(prompt.input_ids)
        attention_mask[row, -len(prompt.input_ids) :] = 1
        audio_input_ids[row, : num_frames[row]] = _tensor(prompt.audio_input_ids)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if max(num_frames):
        is_frame = torch.arange(max(num_frames)) < torch.tensor(num_frames)[:, None]
        inputs |= {"audio_input_ids": audio_input_ids, "audio_input_ids_mask": is_frame}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
