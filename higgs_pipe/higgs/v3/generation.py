"""Generation of Higgs TTS 3: a loop with a key-value cache, and the servers' stopping rule.

Frame 0 is drawn after ``<|audio|>``. In the first K - 1 frames, codebooks whose stream has not
started hold BOC; from then on all are drawn freely. A recording ends where codebook 0 first draws
EOC after the first K frames, and K - 2 frames later generation stops: T codec frames are T + K - 1
frames. SGLang-Omni and mlx-audio stop by this rule; neither looks at another codebook.

B prompts, P positions of a prompt, F delayed frames, G generated delayed frames, K codebooks, V
codebook entries, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.batch import is_placeholder
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.prompts import GeneratedCodes, ModelPrompt
from higgs_pipe.higgs.sampler import Sampler
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.higgs.v3.native import parts_of, shape_of
from higgs_pipe.progress import activity

PAD_TOKEN_ID = 0  # any text token: it is masked
NOT_A_CODE = 0  # what SGLang-Omni decodes in the place of BOC and EOC


@torch.no_grad()
def generate_batch(
    native: Any,
    prompts: Sequence[ModelPrompt],
    sampling: Sampling,
    max_frames: int,
    description: str,
) -> list[Codes]:
    """Generate the frames of all prompts together, until each has stopped.

    Args:
        native: The native model.
        prompts: Prompts of any lengths.
        sampling: How codes are drawn.
        max_frames: The cap, in codec frames.
        description: Text of the progress lines.

    Returns:
        (G, K) for each prompt, delayed, from the first frame on.
    """
    shape, parts = shape_of(native.config), parts_of(native)
    num_codebooks = shape.num_codebooks
    num_steps = max_frames + num_codebooks - 1
    embedded, mask = _embedded(native, prompts, shape)  # (B, P, H), (B, P)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)  # those of padding are not read
    cache = DynamicCache()
    delayed = mask.new_empty(len(prompts), num_steps, num_codebooks)  # (B, G, K)
    eos, num_drawn = shape.audio_stream_eos_id, 0
    lengths: list[int | None] = [None] * len(prompts)  # codec frames of what has ended
    seeds = [prompt.seed(sampling.seed) for prompt in prompts]
    # All may stop before the last frame, so the time left is an upper bound.
    with activity(description, num_steps, "frames at most") as speaking:
        sampler = Sampler(sampling, shape, seeds, speaking.advance)
        for frame in range(num_steps):
            hidden = parts.body(
                inputs_embeds=embedded,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]  # (B, H)
            scores = parts.audio_head(hidden).float().view(-1, shape.codebook_size)  # (B * K, V)
            scores = _with_forced_boc(scores, frame, shape)
            drawn = sampler(scores, scores).argmax(dim=-1).view(-1, num_codebooks)  # (B, K)
            delayed[:, frame] = drawn
            num_drawn = frame + 1
            if frame >= num_codebooks:  # as num_codec_frames has it, of the new frame alone
                lengths = [
                    frame if length is None and code == eos else length
                    for length, code in zip(lengths, drawn[:, 0].tolist(), strict=True)
                ]
            if all(n is not None and num_drawn >= n + num_codebooks - 1 for n in lengths):
                break
            embedded = parts.embed_audio(drawn)[:, None]  # (B, 1, H)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1
    return list(_host(delayed[:, :num_drawn]))


def generated_codes(delayed: Codes, max_frames: int, stream_eos: int) -> GeneratedCodes:
    """Undo the delay of generated frames and end them where codebook 0 ends.

    Args:
        delayed: (G, K), from the first frame on; G is at least ``max_frames + K - 1`` unless
            generation has stopped. An EOC in the last frames is too late for all codebooks to end.
        max_frames: The cap.
        stream_eos: EOC; BOC is the entry before it.
    """
    length = num_codec_frames(delayed, stream_eos)
    has_stopped = length is not None and length <= max_frames
    num_frames = length if length is not None and has_stopped else max_frames
    return GeneratedCodes(undelayed(delayed, num_frames, stream_eos), has_stopped)


def num_codec_frames(delayed: Codes, stream_eos: int) -> int | None:
    """Return T of generated frames: where codebook 0 draws EOC once all streams have begun.

    Args:
        delayed: (G, K), from the first frame on.
        stream_eos: EOC.

    Returns:
        None if it has not.
    """
    num_codebooks = delayed.shape[1]
    ends = np.flatnonzero(delayed[num_codebooks:, 0] == stream_eos)
    return num_codebooks + int(ends[0]) if len(ends) else None


def undelayed(delayed: Codes, num_frames: int, stream_eos: int) -> Codes:
    """Undo the delay of generated frames, as the servers do before they decode: (G, K) -> (T, K).

    Each codebook was drawn freely, so BOC or EOC may occur in place of a code: they become 0.
    """
    streams = [delayed[k : k + num_frames, k] for k in range(delayed.shape[1])]
    codes = np.stack(streams, axis=1)
    stream_bos = stream_eos - 1
    return np.where(codes < stream_bos, codes, NOT_A_CODE).astype(np.int16)


def _with_forced_boc(scores: Tensor, frame: int, shape: BaseShape) -> Tensor:
    """Force BOC in codebooks whose stream has not started: (B * K, V)."""
    begins_later = torch.arange(shape.num_codebooks, device=scores.device) > frame  # (K,)
    is_boc = torch.arange(shape.codebook_size, device=scores.device) == shape.audio_stream_bos_id
    is_open = ~begins_later[:, None] | is_boc  # (K, V)
    is_open = is_open.repeat(len(scores) // shape.num_codebooks, 1)
    return scores.masked_fill(~is_open, -torch.inf)


def _embedded(
    native: Any, prompts: Sequence[ModelPrompt], shape: BaseShape
) -> tuple[Tensor, Tensor]:
    """The embedded prompts, padded on the left, and which positions are theirs."""
    parts, device = parts_of(native), native.device
    size = (len(prompts), max(len(prompt.input_ids) for prompt in prompts))
    input_ids = np.full(size, PAD_TOKEN_ID)  # (B, P)
    mask = torch.zeros(size, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, -len(prompt.input_ids) :] = prompt.input_ids
        mask[row, -len(prompt.input_ids) :] = 1
    is_audio = is_placeholder(input_ids, shape)
    embedded = parts.embed_text(_tensor(np.where(is_audio, PAD_TOKEN_ID, input_ids)).to(device))
    codes = np.concatenate([prompt.audio_input_ids for prompt in prompts])  # (sum of F, K)
    if len(codes):
        at = torch.from_numpy(is_audio).to(device)
        embedded[at] = parts.embed_audio(_tensor(codes).to(device)).to(embedded.dtype)
    return embedded, mask.to(device)


def _host(delayed: Tensor) -> Codes:
    codes: Codes = delayed.to(torch.int16).cpu().numpy()
    return codes


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
