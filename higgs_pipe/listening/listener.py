"""Speech models applied to generated speech: errors against the text, voice similarity, quality.

First every waveform of the evaluation is heard, then each is compared::

    listener = Listener(settings.speech_models, device)
    impression = listener.hear(samples, sample_rate_hz)  # recording, reference, base, adapter, ...
    compare_impression(impression, text, language, recording, reference, others)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from higgs_pipe.config.settings import EvalSpeechModelConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.resampling import resample
from higgs_pipe.listening.comparison import ListenedMeasures
from higgs_pipe.listening.dnsmos import RATE_HZ, Dnsmos
from higgs_pipe.listening.speech_models import Recogniser, SpeakerModel, filled_up
from higgs_pipe.listening.transcripts import count_errors

SETTING = "eval.speech_models"


@dataclass(frozen=True)
class Impression:
    """Results of the models for one waveform; None where a model is missing."""

    transcript: str | None = None
    voice: list[float] | None = None  # (num_features,), of length 1
    dnsmos: float | None = None


class Listener:
    """The speech models of evaluation, in float32; without any, its impressions are empty.

    Args:
        settings: The models to use.
        device: The device that they run on; DNSMOS always runs on the CPU.

    Raises:
        UserError: A model cannot be loaded, or some of its weights are missing.
    """

    def __init__(self, settings: EvalSpeechModelConfig, device: torch.device) -> None:
        self._recogniser = self._speaker = self._dnsmos = None
        if settings.asr:
            self._recogniser = Recogniser(Pretrained(f"{SETTING}.asr", settings.asr), device)
        if settings.speaker:
            self._speaker = SpeakerModel(Pretrained(f"{SETTING}.speaker", settings.speaker), device)
        if settings.dnsmos:
            self._dnsmos = Dnsmos(f"{SETTING}.dnsmos", Path(settings.dnsmos))

    @torch.inference_mode()
    def hear(self, samples: npt.NDArray[np.float32], sample_rate_hz: int) -> Impression:
        """Return the models' impression of a mono waveform (N,)."""
        mono = filled_up(torch.from_numpy(samples), sample_rate_hz)
        transcript = voice = quality = None
        if self._recogniser is not None:
            transcript = self._recogniser(mono, sample_rate_hz)
        if self._speaker is not None:
            voice = self._speaker(mono, sample_rate_hz)
        if self._dnsmos is not None:
            quality = self._dnsmos.score(resample(mono, sample_rate_hz, RATE_HZ).numpy())
        return Impression(transcript, voice, quality)


def compare_impression(
    heard: Impression,
    text: str,
    language: str | None,
    recording: Impression,
    reference: Impression | None = None,
    others: Sequence[Impression] = (),
) -> ListenedMeasures:
    """Compare the impression of a waveform with its text and recordings.

    Args:
        heard: Impression of the waveform.
        text: What should have been spoken.
        language: Language of the text, an ISO 639 code, if known.
        recording: Impression of the clip's own recording.
        reference: Impression of the prompt's reference, if it has one.
        others: Impressions of the speaker's other recordings; empty if unknown.
    """
    errors = None
    if heard.transcript is not None:
        errors = count_errors(text, heard.transcript, language)
    voices = [other.voice for other in others if other.voice is not None]
    return ListenedMeasures(
        transcript=heard.transcript,
        **({} if errors is None else vars(errors)),
        similarity_to_recording=_similarity(heard.voice, recording.voice),
        similarity_to_reference=_similarity(heard.voice, reference.voice if reference else None),
        similarity_to_others=_similarity(
            heard.voice, np.mean(voices, axis=0).tolist() if voices else None
        ),
        dnsmos=heard.dnsmos,
    )


def _similarity(first: list[float] | None, second: list[float] | None) -> float | None:
    """Return the cosine of two voices."""
    if first is None or second is None:
        return None
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return float(np.dot(first, second) / lengths)
