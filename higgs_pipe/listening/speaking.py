"""Held-out samples as prompts: their selection and their texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe.config.settings import EvaluateConfig, Sampling
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.higgs.generation import Spoken, speak
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.listening.held_out import HeldOutSample


@dataclass(frozen=True, eq=False)
class Prompts:
    """Held-out samples to speak again."""

    chosen: list[HeldOutSample]
    num_too_long: int  # samples that are longer than the cap, and so not spoken


def choose_prompts(
    samples: Sequence[HeldOutSample], num_prompts: int, max_frames: float
) -> Prompts:
    """Choose the samples to speak again: the same ones each time, with their references if any.

    For a conversation with several targets, only the first is spoken.

    Args:
        samples: All held-out samples.
        num_prompts: Largest number of prompts; with 0, none counts as too long either.
        max_frames: Largest number of frames to generate.
    """
    fitting = [each for each in samples if len(each.sample.codes) <= max_frames]
    fitting.sort(key=lambda each: unit_hash("prompt", each.sample.sample_id))
    num_too_long = len(samples) - len(fitting) if num_prompts else 0
    return Prompts(fitting[:num_prompts], num_too_long)


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
    temperatures = list(dict.fromkeys(settings.temperatures))
    for temperature in temperatures:
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
        for temperature in temperatures
    }
