"""Models that listen: a speech recogniser, a judge of quality, a speaker model."""

import threading
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from torch import Tensor
from torchaudio.models import squim_objective_base
from transformers import (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutomaticSpeechRecognitionPipeline,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)

from higgs_pipe.config.settings import SpeechModelConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.speech import SpeechMeasures
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.pretrained import load_pretrained, load_weights

SQUIM_RATE_HZ = 16_000
MIN_SECONDS = 0.5  # less is not enough for the models' convolutions; silence fills it up
SETTING = "validate.speech_models"


class SpeechModels:
    """The models that the settings name, loaded in float32; one recording at a time.

    Args:
        settings: Which models.
        device: Where they run.

    Raises:
        UserError: A model cannot be loaded, or some of its weights are missing.
    """

    def __init__(self, settings: SpeechModelConfig, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._recogniser = settings.asr and _load_recogniser(settings.asr, device)
        self._judge = settings.quality and _load_judge(Path(settings.quality)).to(device)
        self._speaker = settings.speaker and _load_speaker_model(settings.speaker, device)

    @torch.inference_mode()
    def measure(self, samples: npt.NDArray[np.float32], sample_rate_hz: int) -> SpeechMeasures:
        """What the models tell of a recording; threads take turns.

        Args:
            samples: (num_samples, num_channels); channels are averaged.
            sample_rate_hz: Their rate; each model gets its own.
        """
        mono = torch.from_numpy(samples.mean(axis=1))
        num_lacking = max(0, round(MIN_SECONDS * sample_rate_hz) - len(mono))
        mono = torch.nn.functional.pad(mono, (0, num_lacking))
        with self._lock:
            stoi, pesq, si_sdr_db = self._quality(mono, sample_rate_hz)
            return SpeechMeasures(
                transcript=self._transcript(mono, sample_rate_hz),
                stoi=stoi,
                pesq=pesq,
                si_sdr_db=si_sdr_db,
                speaker_embedding=self._embedding(mono, sample_rate_hz),
            )

    def _transcript(self, mono: Tensor, rate_hz: int) -> str | None:
        if not self._recogniser:
            return None
        wanted_hz = self._recogniser.feature_extractor.sampling_rate
        audio = {"raw": _resampled(mono, rate_hz, wanted_hz).numpy(), "sampling_rate": wanted_hz}
        text: str = self._recogniser(audio)["text"]
        return text.strip()

    def _quality(self, mono: Tensor, rate_hz: int) -> tuple[float | None, ...]:
        """STOI, PESQ and SI-SDR in dB."""
        if not self._judge:
            return None, None, None
        waveform = _resampled(mono, rate_hz, SQUIM_RATE_HZ)[None].to(self._device)  # (1, n)
        return tuple(score.item() for score in self._judge(waveform))

    def _embedding(self, mono: Tensor, rate_hz: int) -> list[float] | None:
        """(num_features,), of length 1."""
        if not self._speaker:
            return None
        extractor, model = self._speaker
        wanted_hz = extractor.sampling_rate
        waveform = _resampled(mono, rate_hz, wanted_hz).numpy()
        inputs = extractor(waveform, sampling_rate=wanted_hz, return_tensors="pt").to(self._device)
        embedding = model(**inputs).embeddings[0]
        unit: list[float] = torch.nn.functional.normalize(embedding, dim=0).tolist()
        return unit


def _resampled(mono: Tensor, rate_hz: int, wanted_hz: int) -> Tensor:
    if rate_hz == wanted_hz:
        return mono
    resampled: Tensor = torchaudio.functional.resample(mono, rate_hz, wanted_hz)
    return resampled


def _load_recogniser(name: str, device: torch.device) -> AutomaticSpeechRecognitionPipeline:
    setting = f"{SETTING}.asr"
    config = load_pretrained(AutoConfig, Pretrained(setting, name))
    is_seq2seq = type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    model_class: Any = AutoModelForSpeechSeq2Seq if is_seq2seq else AutoModelForCTC
    processor = load_pretrained(AutoProcessor, Pretrained(setting, name))
    return AutomaticSpeechRecognitionPipeline(
        model=load_weights(model_class, Pretrained(setting, name), dtype=torch.float32).eval(),
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        device=device,
    )


def _load_judge(path: Path) -> torch.nn.Module:
    model: torch.nn.Module = squim_objective_base()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise UserError(
            f"{SETTING}.quality {str(path)!r} cannot be loaded: {error}\n"
            "Give a file with the state_dict of torchaudio's squim_objective_base."
        ) from None
    return model.eval()


def _load_speaker_model(name: str, device: torch.device) -> tuple[Any, Any]:
    setting = f"{SETTING}.speaker"
    extractor = load_pretrained(AutoFeatureExtractor, Pretrained(setting, name))
    model = load_weights(AutoModelForAudioXVector, Pretrained(setting, name), dtype=torch.float32)
    return extractor, model.to(device).eval()
