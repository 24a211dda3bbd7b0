"""Models that listen: a speech recogniser, a quality estimator, a speaker encoder."""

import threading
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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
from higgs_pipe.data.resampling import resample
from higgs_pipe.data.speech import SpeechMeasures
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.pretrained import load_pretrained, load_weights

SQUIM_RATE_HZ = 16_000
MIN_SECONDS = 0.5  # less is not enough for the models' convolutions; silence fills it up
SETTING = "validate.speech_models"


class SpeechModels:
    """The speech models of validation, in float32; one recording at a time.

    Args:
        settings: The models to use.
        device: The device that they run on.

    Raises:
        UserError: A model cannot be loaded, or some of its weights are missing.
    """

    def __init__(self, settings: SpeechModelConfig, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._recogniser = self._judge = self._speaker = None
        if settings.asr:
            self._recogniser = Recogniser(Pretrained(f"{SETTING}.asr", settings.asr), device)
        if settings.quality:
            self._judge = _load_judge(Path(settings.quality)).to(device)
        if settings.speaker:
            self._speaker = SpeakerModel(Pretrained(f"{SETTING}.speaker", settings.speaker), device)

    @torch.inference_mode()
    def measure(self, samples: npt.NDArray[np.float32], sample_rate_hz: int) -> SpeechMeasures:
        """Return the models' measures of a recording; threads take turns.

        Args:
            samples: (num_samples, num_channels); channels are averaged.
            sample_rate_hz: Their rate; each model gets its own.
        """
        mono = filled_up(torch.from_numpy(samples.mean(axis=1)), sample_rate_hz)
        with self._lock:
            stoi, pesq, si_sdr_db = self._quality(mono, sample_rate_hz)
            recogniser, speaker = self._recogniser, self._speaker
            return SpeechMeasures(
                transcript=None if recogniser is None else recogniser(mono, sample_rate_hz),
                stoi=stoi,
                pesq=pesq,
                si_sdr_db=si_sdr_db,
                speaker_embedding=None if speaker is None else speaker(mono, sample_rate_hz),
            )

    def _quality(self, mono: Tensor, rate_hz: int) -> tuple[float | None, ...]:
        """Return STOI, PESQ and SI-SDR in dB."""
        if self._judge is None:
            return None, None, None
        waveform = resample(mono, rate_hz, SQUIM_RATE_HZ)[None].to(self._device)  # (1, n)
        return tuple(score.item() for score in self._judge(waveform))


class Recogniser:
    """A Transformers speech recogniser: sequence to sequence (Whisper) or CTC.

    Raises:
        UserError: The checkpoint cannot be loaded, or some of its weights are missing.
    """

    def __init__(self, pretrained: Pretrained, device: torch.device) -> None:
        config = load_pretrained(AutoConfig, pretrained)
        is_seq2seq = type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
        model_class: Any = AutoModelForSpeechSeq2Seq if is_seq2seq else AutoModelForCTC
        processor = load_pretrained(AutoProcessor, pretrained)
        self._pipeline = AutomaticSpeechRecognitionPipeline(
            model=load_weights(model_class, pretrained, dtype=torch.float32).eval(),
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
            device=device,
        )

    def __call__(self, mono: Tensor, rate_hz: int) -> str:
        """Return the transcript of (num_samples,)."""
        wanted_hz = self._pipeline.feature_extractor.sampling_rate
        audio = {"raw": resample(mono, rate_hz, wanted_hz).numpy(), "sampling_rate": wanted_hz}
        text: str = self._pipeline(audio)["text"]
        return text.strip()


class SpeakerModel:
    """A Transformers x-vector model.

    Raises:
        UserError: The checkpoint cannot be loaded, or some of its weights are missing.
    """

    def __init__(self, pretrained: Pretrained, device: torch.device) -> None:
        self._device = device
        self._extractor = load_pretrained(AutoFeatureExtractor, pretrained)
        model = load_weights(AutoModelForAudioXVector, pretrained, dtype=torch.float32)
        self._model = model.to(device).eval()

    def __call__(self, mono: Tensor, rate_hz: int) -> list[float]:
        """Return the voice of (num_samples,): (num_features,), of length 1."""
        wanted_hz = self._extractor.sampling_rate
        inputs = self._extractor(
            resample(mono, rate_hz, wanted_hz).numpy(),
            sampling_rate=wanted_hz,
            return_tensors="pt",
        )
        embedding = self._model(**inputs.to(self._device)).embeddings[0]
        unit: list[float] = torch.nn.functional.normalize(embedding, dim=0).tolist()
        return unit


def filled_up(mono: Tensor, rate_hz: int) -> Tensor:
    """Return (num_samples,) padded with silence to half a second."""
    num_lacking = max(0, round(MIN_SECONDS * rate_hz) - len(mono))
    return torch.nn.functional.pad(mono, (0, num_lacking))


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
