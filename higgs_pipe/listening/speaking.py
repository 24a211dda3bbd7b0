"""Held-out samples as prompts: which there are, which are spoken, and what is spoken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe.config.settings import EvaluateConfig, Sampling
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.generation import RecordedSample, Spoken, recorded_samples, speak
from higgs_pipe.higgs.model import DualLossModel


@dataclass(frozen=True, eq=False)
class HeldOutSample:
    """A packed sample, the clip that it is named after, and its task."""

    sample: RecordedSample
    clip: Mapping[str, Any]  # a row of CLIPS
    task: str


def task_of(sample: RecordedSample, clip: Mapping[str, Any], frame_rate_hz: float) -> str:
    """Name the kind of a packed sample: speech, cloning, dialogue, ..., or conversation.

    A target that is longer than the clip that it is named after is a whole dialogue.
    """
    if clip["conversation"] is not None:
        return "conversation"
    max_frames = np.ceil(clip["duration_seconds"] * frame_rate_hz) + 1
    is_dialogue = clip["dialogue_id"] is not None and len(sample.codes) > max_frames
    has_reference = len(sample.prompt.audio_input_ids) > 0
    if is_dialogue:
        return "dialogue_cloning" if has_reference else "dialogue"
    return "cloning" if has_reference else "speech"


def read_samples(
    rows: PackedRows, clips: Mapping[str, Mapping[str, Any]], config: Any
) -> list[HeldOutSample]:
    """Read the held-out samples, in the order of their ids.

    Args:
        rows: The packed held-out rows.
        clips: Rows of CLIPS by id.
        config: The model's.
    """
    frame_rate_hz = rows.codec_info.frame_rate_hz
    found = []
    for index in range(len(rows)):
        for sample in recorded_samples(rows[index], config):
            clip = clips[sample.sample_id]
            found.append(HeldOutSample(sample, clip, task_of(sample, clip, frame_rate_hz)))
    return sorted(found, key=lambda each: each.sample.sample_id)


def choose_prompts(
    samples: Sequence[HeldOutSample], num_prompts: int, max_frames: float
) -> list[HeldOutSample]:
    """Choose the samples to speak again: the same ones each time, with their references if any.

    Dialogues and conversations, whose target is not one clip with one text, are left out, and so
    are clips that are longer than the cap.

    Args:
        samples: All held-out samples.
        num_prompts: At most.
        max_frames: The cap of the generation.
    """
    prompts = [
        each
        for each in samples
        if each.task in ("speech", "cloning") and len(each.sample.codes) <= max_frames
    ]
    prompts.sort(key=lambda each: unit_hash("prompt", each.sample.sample_id))
    return prompts[:num_prompts]


def speak_prompts(
    model: DualLossModel,
    codec: HiggsAudioV2TokenizerModel,
    info: CodecInfo,
    prompts: Sequence[HeldOutSample],
    settings: EvaluateConfig,
    accelerator: Accelerator,
) -> dict[float, list[Spoken]]:
    """Speak the prompts at every temperature, on every process alike.

    Returns:
        By temperature, one per prompt.
    """
    mine = range(accelerator.process_index, len(prompts), accelerator.num_processes)
    found: list[tuple[float, int, Spoken]] = []
    for temperature in settings.temperatures:
        sampling = Sampling(
            temperature=temperature, max_seconds=settings.max_seconds, seed=settings.seed
        )
        spoken = speak(
            model,
            codec,
            info,
            [prompts[index].sample.prompt for index in mine],
            sampling,
            settings.prompts_per_batch,
        )
        found += zip([temperature] * len(mine), mine, spoken, strict=True)
    gathered = sorted(gather_object(found), key=lambda item: item[1])
    return {
        temperature: [spoken for at, _, spoken in gathered if at == temperature]
        for temperature in settings.temperatures
    }
