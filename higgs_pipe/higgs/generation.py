"""Speech from prompts: the one path for speak, evaluation, the report and training samples.

The native model generates, and the codec makes a waveform of its codes::

    spoken = speak(model, codec, info, prompts, Sampling(seed=1))  # one Spoken per prompt

``model`` is the native model, a ``PeftModel`` of it, or the ``DualLossModel`` of a running
training, whose weights, modes and random numbers it leaves unchanged. Prompts come from
:func:`recorded_samples`, the samples of a packed row. :class:`higgs_pipe.higgs.speaker.Speaker`
wraps all this for texts.

B prompts, P positions of a prompt, T codec frames, F delayed frames, G generated delayed frames,
K codebooks, V codebook entries.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile as sf
from peft import PeftModel
from torch import nn
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe.config.settings import Sampling
from higgs_pipe.data.files import atomic_write
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow, first_target, is_placeholder
from higgs_pipe.higgs.codec import decode
from higgs_pipe.higgs.codes import Codes, undelay
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.prompts import GeneratedCodes, ModelPrompt
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.progress import activity

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True, eq=False)
class RecordedSample:
    """A packed sample as a prompt, the recordings in it, and the one that follows it."""

    sample_id: str
    prompt: ModelPrompt
    references: tuple[Codes, ...]  # (T, K) each
    codes: Codes  # (T, K)


@dataclass(frozen=True, eq=False)
class Spoken:
    """Generated speech."""

    samples: npt.NDArray[np.float32]  # (num_samples,), mono
    sample_rate_hz: int
    codes: Codes  # (T, K)
    has_stopped: bool  # by itself, before the cap

    @property
    def duration_seconds(self) -> float:
        """Length of the samples."""
        return len(self.samples) / self.sample_rate_hz

    def write(self, path: str | Path) -> None:
        """Write a 16-bit WAV; samples beyond full scale are clipped."""
        write_wav(Path(path), self.samples, self.sample_rate_hz)


def write_wav(path: Path, samples: npt.NDArray[np.float32], sample_rate_hz: int) -> None:
    """Write mono samples as a 16-bit WAV, atomically; samples beyond full scale are clipped.

    Raises:
        UserError: The file cannot be written, such as on a full disk.
    """
    try:
        with atomic_write(path) as aside:
            sf.write(aside, samples, sample_rate_hz, "PCM_16", format="WAV")
    except sf.LibsndfileError as error:
        reason = error.error_string.strip(" .")
        raise UserError(
            f"{path} cannot be written ({reason}); free space or fix permissions, and run again."
        ) from None


def speak(
    model: nn.Module,
    codec: HiggsAudioV2TokenizerModel,
    info: CodecInfo,
    prompts: Sequence[ModelPrompt],
    sampling: Sampling,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> list[Spoken]:
    """Speak prompts; arguments as for :func:`generate`, and the codec."""
    generated = generate(model, prompts, sampling, info.frame_rate_hz, batch_size)
    with activity("rendering speech"):
        return [
            Spoken(decode(codec, g.codes, info), info.sample_rate_hz, g.codes, g.has_stopped)
            for g in generated
        ]


def generate(
    model: nn.Module,
    prompts: Sequence[ModelPrompt],
    sampling: Sampling,
    frame_rate_hz: float,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> list[GeneratedCodes]:
    """Generate the codes of prompts, in their order.

    A prompt's result depends on the prompt, the sampling and the model, and, except for rounding,
    not on the other prompts. Equal prompts give equal results: vary the seed for another take.

    Args:
        model: The native model, a ``PeftModel`` of it, or a ``DualLossModel``.
        prompts: Prompts of any lengths, with and without references.
        sampling: How codes are drawn.
        frame_rate_hz: The codec's, for ``sampling.max_seconds``.
        batch_size: Prompts generated at once; those of similar length go together.
    """
    max_frames = sampling.max_frames(frame_rate_hz)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    generated: dict[int, GeneratedCodes] = {}
    with native_forward(model) as native:
        family = family_of_model(native)
        stream_eos = family.shape_of(native.config).audio_stream_eos_id
        for number, batch in enumerate(batches, start=1):
            found = family.generate_batch(
                native,
                [prompts[i] for i in batch],
                sampling,
                max_frames,
                "speaking" if len(batches) == 1 else f"speaking, batch {number} of {len(batches)}",
            )
            for i, delayed in zip(batch, found, strict=True):
                generated[i] = family.generated_codes(delayed, max_frames, stream_eos)
    return [generated[i] for i in range(len(prompts))]


@contextmanager
def native_forward(model: nn.Module) -> Iterator[Any]:
    """Yield the native model inside ``model`` for generation: evaluation mode, native forward.

    A ``DualLossModel`` replaces the native forward passes by ones for packed rows without a cache.
    These and the mode of every module are restored when the block ends.

    Args:
        model: The native model, a ``PeftModel`` of it, or a ``DualLossModel``.
    """
    native: Any = model
    packed_forwards = {}
    if isinstance(model, DualLossModel):
        native = model.native
        body = model.body
        packed_forwards = {module: module.forward for module in (body, *body.layers)}
    elif isinstance(model, PeftModel):
        native = model.get_base_model()  # LoRA layers inside, which heed disable_adapter
    modes = {module: module.training for module in model.modules()}
    for module in packed_forwards:
        del module.forward  # the instance's; the class's remains
    model.eval()
    try:
        yield native
    finally:
        for module, forward in packed_forwards.items():
            module.forward = forward
        for module, is_training in modes.items():
            module.training = is_training


def recorded_samples(row: PackedRow, config: BaseShape) -> list[RecordedSample]:
    """The samples of a packed row as prompts, each with the recording of its first target.

    Args:
        row: A packed row.
        config: The base's.
    """
    samples: list[RecordedSample] = []
    is_audio = is_placeholder(row.input_ids, config)
    frames_before = [0, *np.cumsum(is_audio).tolist()]  # frames before a position
    ends = np.cumsum(row.sample_lengths).tolist()
    for sample_id, start, end in zip(row.sample_ids, [0, *ends], ends, strict=False):
        target = first_target(row, slice(start, end), config)
        first_frame, target_frame = frames_before[start], frames_before[target.start]
        frames = row.audio_input_ids[target_frame : target_frame + target.stop - target.start]
        before = row.audio_input_ids[first_frame:target_frame]
        prompt = ModelPrompt(row.input_ids[start : target.start], before)
        places = np.flatnonzero(is_audio[start : target.start])
        breaks = np.flatnonzero(np.diff(places) > 1) + 1  # text stands between recordings
        margin = config.num_margin_frames
        references = [undelay(part, margin) for part in np.split(before, breaks) if len(part)]
        codes = undelay(frames, margin)
        samples.append(RecordedSample(sample_id, prompt, tuple(references), codes))
    return samples
