"""Samples during training: the same held-out prompts, spoken by the adapter at some steps.

Sampling does not affect training: random numbers, modes and forward passes are restored, and an
expected failure, such as a lack of memory, is only a warning.
"""

import itertools
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile as sf
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.data.files import write_json
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.codec import decode, load_codec_of
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.generation import (
    RecordedSample,
    Spoken,
    generate,
    recorded_samples,
)
from higgs_pipe.higgs.prompts import GeneratedCodes
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.progress import activity

logger = logging.getLogger("higgs_pipe")

# A codec that is gone, a full disk, too little memory: a reason to speak nothing, not to stop.
EXPECTED = (UserError, OSError, MemoryError, torch.OutOfMemoryError, sf.SoundFileError)


@dataclass(frozen=True)
class SampleMeasures:
    """Measures of the samples of one step, over all prompts together."""

    stop_rate: float  # share that stopped before sampling.max_seconds
    length_ratio: float  # frames spoken over frames recorded

    @classmethod
    def of(cls, spoken: Sequence[GeneratedCodes], samples: Sequence[RecordedSample]) -> Self:
        """Measure the speech of the samples."""
        num_frames = sum(len(generated.codes) for generated in spoken)
        return cls(
            stop_rate=sum(generated.has_stopped for generated in spoken) / len(spoken),
            length_ratio=num_frames / sum(len(sample.codes) for sample in samples),
        )

    def line(self) -> dict[str, float]:
        """Return the values of a line of ``metrics.jsonl``."""
        return {f"sample_{name}": value for name, value in vars(self).items()}

    def badness(self, measure: str) -> float:
        """Return a number that is lower the better the measure is.

        Args:
            measure: ``stop_rate``, or ``length_ratio``, which is best at 1.
        """
        if measure == "stop_rate":
            return 1 - self.stop_rate
        return abs(math.log(self.length_ratio)) if self.length_ratio else math.inf


class Samples:
    """Speaks the samples of one run.

    Args:
        rows: Packed held-out rows, which give prompts and recordings.
        config: The base's.
        settings: The number of samples, and how codes are drawn.
        accelerator: The Accelerator of this process; the processes share the prompts.
        folder: ``samples/`` of the run.
    """

    def __init__(
        self,
        rows: PackedRows,
        config: BaseShape,
        settings: TrainConfig,
        accelerator: Accelerator,
        folder: Path,
    ) -> None:
        self.chosen = choose_samples(rows, config, settings.num_samples)
        self.info = rows.codec_info
        self.settings = settings
        self.accelerator = accelerator
        self.folder = folder
        self._codec: Any = None

    def speak(self, step: int, model: Any) -> SampleMeasures | None:
        """Speak, on every process alike; write WAVs and the tracker's audio.

        Step 0 starts over: it removes the samples of an earlier run, and adds the recordings as the
        codec renders them.

        Returns:
            The measures; None if speaking failed, which the log says.
        """
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.chosen[rank::num_processes]
        prompts = [sample.prompt for sample in mine]
        found: list[tuple[str, GeneratedCodes | None]] = []
        with torch.random.fork_rng(self._cuda_devices()):
            try:
                unwrapped = self.accelerator.unwrap_model(model)
                rate_hz = self.info.frame_rate_hz
                generated = generate(unwrapped, prompts, self.settings.sampling, rate_hz)
                found += [(s.sample_id, g) for s, g in zip(mine, generated, strict=True)]
            except EXPECTED as error:
                found = [(_reason(error), None)]
            found = gather_object(found)
            failures = sorted({text for text, codes in found if codes is None})
            if failures:
                logger.warning("step %d: no samples: %s", step, "; ".join(failures))
                return None
            by_id = {sample_id: codes for sample_id, codes in found if codes is not None}
            spoken = [by_id[sample.sample_id] for sample in self.chosen]
            if self.accelerator.is_main_process:
                try:
                    with activity("rendering samples"):
                        self._publish(step, spoken)
                except EXPECTED as error:
                    logger.warning("step %d: samples are not written: %s", step, _reason(error))
        return SampleMeasures.of(spoken, self.chosen)

    def _cuda_devices(self) -> list[int]:
        device = self.accelerator.device
        return [device.index or 0] if device.type == "cuda" else []

    def _publish(self, step: int, spoken: Sequence[GeneratedCodes]) -> None:
        """Write the audio of one step, and log it to the tracker."""
        ids = [sample.sample_id for sample in self.chosen]
        if step == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(self.folder / "prompts.json", ids)
            self._render(self.folder / "recorded", [sample.codes for sample in self.chosen])
        sound = self._render(self.folder / f"step-{step:08d}", [codes.codes for codes in spoken])
        track_audio(self.accelerator, step, dict(zip(ids, sound, strict=True)))

    def _render(self, folder: Path, recordings: Sequence[Codes]) -> list[Spoken]:
        """Write each recording to ``00.wav``, ``01.wav`` and so on."""
        if self._codec is None:
            self._codec, _ = load_codec_of(self.info, self.accelerator.device)
        sound = []
        for index, codes in enumerate(recordings):
            samples = decode(self._codec, codes, self.info)
            sound.append(Spoken(samples, self.info.sample_rate_hz, codes, has_stopped=True))
            sound[-1].write(folder / f"{index:02d}.wav")
        return sound


def choose_samples(rows: PackedRows, config: BaseShape, num_samples: int) -> list[RecordedSample]:
    """Choose held-out samples: first one per row, from rows spread over the table, then more."""
    spread = np.linspace(0, len(rows) - 1, min(len(rows), num_samples)).astype(int)
    by_row = [recorded_samples(rows[int(row)], config) for row in spread]
    by_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_row))
    return [sample for sample in by_turn if sample is not None][:num_samples]


def track_audio(accelerator: Accelerator, step: int, sound: dict[str, Spoken]) -> None:
    """Log named audio to TensorBoard or Weights & Biases."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            for name, spoken in sound.items():
                samples = torch.from_numpy(spoken.samples)[None]
                tracker.writer.add_audio(f"samples/{name}", samples, step, spoken.sample_rate_hz)
        elif tracker.name == "wandb":
            from wandb import Audio

            audio = {
                f"samples/{name}": Audio(spoken.samples, sample_rate=spoken.sample_rate_hz)
                for name, spoken in sound.items()
            }
            tracker.log(audio, step=step)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
