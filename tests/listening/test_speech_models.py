"""Speech models: their results compared with direct calls, and the effect on rows."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio
from helpers import run_validation, tone
from pydantic import ValidationError
from speech_checkpoints import LETTERS, RATE_HZ, write_tiny_models
from transformers import (
    Wav2Vec2ForCTC,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from higgs_pipe.config.settings import SpeechModelConfig, ValidateConfig
from higgs_pipe.data.specs import CLIPS, REJECTED
from higgs_pipe.data.speech import SpeechMeasures, word_error_rate
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError
from higgs_pipe.listening.speech_models import Recogniser, SpeechModels, filled_up

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny random model of each kind, by setting."""
    return write_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """A second of noise that swells: (16000, 1)."""
    noise = np.random.default_rng(0).normal(0, 0.1, RATE_HZ) * np.linspace(0, 1, RATE_HZ)
    return noise.astype(np.float32)[:, None]


def listen(samples: np.ndarray, rate_hz: int = RATE_HZ, **settings: str) -> SpeechMeasures:
    return SpeechModels(SpeechModelConfig(device="cpu", **settings), CPU).measure(samples, rate_hz)


def test_the_transcript_is_the_greedy_ctc_decoding_of_the_model(
    models: dict[str, str], waveform: np.ndarray
) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(models["asr"])
    normal = (waveform[:, 0] - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    best = model(torch.from_numpy(normal)[None]).logits[0].argmax(dim=-1).tolist()
    letters = ["", "", " ", *LETTERS]
    expected = "".join(letters[token] for token, _ in groupby(best)).strip()
    assert len(set(expected)) > 2
    assert listen(waveform, asr=models["asr"]).transcript == expected


def test_quality_measures_match_squim(models: dict[str, str], waveform: np.ndarray) -> None:
    model = torchaudio.models.squim_objective_base().eval()
    model.load_state_dict(torch.load(models["quality"]))
    expected = [score.item() for score in model(torch.from_numpy(waveform.T))]
    measures = listen(waveform, quality=models["quality"])
    assert [measures.stoi, measures.pesq, measures.si_sdr_db] == pytest.approx(expected, rel=1e-5)
    assert measures.transcript is None
    assert measures.speaker_embedding is None


def test_a_speaker_embedding_is_normalised_to_length_1(
    models: dict[str, str], waveform: np.ndarray
) -> None:
    model = WavLMForXVector.from_pretrained(models["speaker"])
    normal = (waveform[:, 0] - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    embedding = model(torch.from_numpy(normal)[None]).embeddings[0]
    expected = (embedding / embedding.norm()).tolist()
    assert listen(waveform, speaker=models["speaker"]).speaker_embedding == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )


def test_channels_are_averaged_and_resampled_to_the_rate_of_the_model(
    models: dict[str, str], waveform: np.ndarray
) -> None:
    double = torchaudio.functional.resample(torch.from_numpy(waveform[:, 0]), RATE_HZ, 48_000)
    difference = torch.sin(torch.arange(len(double)) / 10)
    stereo = torch.stack([double + difference, double - difference], dim=1).numpy()
    alone, mixed, left = (
        listen(samples, rate, speaker=models["speaker"]).speaker_embedding
        for samples, rate in [(waveform, RATE_HZ), (stereo, 48_000), (stereo[:, :1], 48_000)]
    )
    assert alone is not None
    assert mixed is not None
    assert left is not None
    assert None not in (alone, mixed, left)
    assert np.dot(alone, mixed) > 0.999 > np.dot(alone, left)


def test_a_recogniser_gets_its_own_rate_and_its_text_is_stripped() -> None:
    class Pipeline:
        feature_extractor = SimpleNamespace(sampling_rate=RATE_HZ)

        def __call__(self, audio: dict[str, Any]) -> dict[str, str]:
            assert (len(audio["raw"]), audio["sampling_rate"]) == (1600, RATE_HZ)
            return {"text": " Good morning. "}

    recogniser: Any = object.__new__(Recogniser)
    recogniser._pipeline = Pipeline()
    assert recogniser(torch.ones(4800), 48_000) == "Good morning."


def test_short_audio_is_padded_with_silence_to_half_a_second() -> None:
    """At 8 samples per second."""
    assert filled_up(torch.tensor([1.0, 2, 3]), 8).tolist() == [1, 2, 3, 0]
    assert filled_up(torch.ones(5), 8).tolist() == [1] * 5


def test_the_judge_of_quality_hears_16_khz() -> None:
    """A second at 8 kHz, as a batch of one; its three scores are named in their order."""
    models: Any = SpeechModels(SpeechModelConfig(device="cpu"), CPU)
    shapes = []

    def judge(waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(waveform.shape)
        return torch.tensor(0.5), torch.tensor(1.5), torch.tensor(2.5)

    models._judge = judge
    found = models.measure(np.ones((8000, 1), np.float32), 8000)
    assert shapes == [(1, 16_000)]
    assert (found.stoi, found.pesq, found.si_sdr_db) == (0.5, 1.5, 2.5)


def test_threads_use_the_models_one_at_a_time() -> None:
    active: list[str] = []

    def hear(mono: torch.Tensor, rate_hz: int) -> str:
        active.append("one")
        time.sleep(0.01)
        alone = len(active) == 1
        active.pop()
        return "alone" if alone else "with another"

    models: Any = SpeechModels(SpeechModelConfig(device="cpu"), CPU)
    models._recogniser = hear
    silence = np.zeros((8000, 1), np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: models.measure(silence, RATE_HZ).transcript, range(4)))
    assert found == ["alone"] * 4


@pytest.mark.parametrize("num_samples", [1, 160, 8000])
def test_very_short_recordings_get_every_measure(
    models: dict[str, str], waveform: np.ndarray, num_samples: int
) -> None:
    named: dict[str, Any] = {**models}
    measures = vars(listen(waveform[-num_samples:], **named))
    assert None not in measures.values()
    assert np.isfinite([measures[name] for name in ("stoi", "pesq", "si_sdr_db")]).all()


def test_a_sequence_to_sequence_recogniser_works(tmp_path: Path, waveform: np.ndarray) -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        max_target_positions=300,
    )
    vocab = {token: i for i, token in enumerate([*"!abc", *(f"t{i}" for i in range(60))])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(tmp_path)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    assert isinstance(listen(waveform, asr=str(tmp_path)).transcript, str)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("asr", "validate.speech_models.asr .*nowhere.* cannot be loaded"),
        ("quality", "validate.speech_models.quality .*nowhere.* cannot be loaded"),
        ("speaker", "validate.speech_models.speaker .*nowhere.* cannot be loaded"),
    ],
)
def test_a_missing_speech_model_is_a_user_error(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpeechModels(SpeechModelConfig(**{setting: str(tmp_path / "nowhere")}), CPU)


def test_a_file_without_weights_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("<html>")
    with pytest.raises(UserError, match=r"state_dict of torchaudio's squim_objective_base"):
        SpeechModels(SpeechModelConfig(quality=str(tmp_path / "weights.pt")), CPU)


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_pickled_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"weights": Touch(tmp_path / "run")}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"validate\.speech_models\.quality"):
        SpeechModels(SpeechModelConfig(quality=str(tmp_path / "weights.pt")), CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("The cat sat.", "the CAT sat", 0),
        ("The cat sat.", "The bat sat.", 1 / 3),
        ("The cat sat.", "The sat", 1 / 3),
        ("The cat", "The big fat cat", 2 / 2),
        ("It's late", "its late", 0),
        ("It’s late", "its late", 0),  # typeset
        ("It\uff07s late", "its late", 0),  # full width
        ("你好，世界", "你好 事界", 1 / 4),
        ("OK你好", "ok 你好", 0),
        ("12", "", 1),
        ("...", "a word", 2),
    ],
)
def test_the_word_error_rate_matches_hand_counts(
    reference: str, hypothesis: str, rate: Any
) -> None:
    assert word_error_rate(reference, hypothesis) == pytest.approx(rate)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Path:
    """Rows whose text matches the recording, differs from it, or is empty."""
    folder = tmp_path_factory.mktemp("judged")
    for i in range(5):
        tone(folder / f"{i}.wav", 1.0, pitch_hz=200 + 150 * i)
    heard = []
    for i in range(5):
        samples, rate = sf.read(folder / f"{i}.wav", dtype="float32", always_2d=True)
        heard.append(listen(samples, rate, asr=models["asr"]).transcript)
    texts = [heard[0], heard[1], "nothing like it at all", "", heard[4]]
    rows = [
        {"id": str(i), "audio": f"{i}.wav", "text": text, "split": "eval" if i == 1 else "train"}
        for i, text in enumerate(texts)
    ]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "heard.json").write_text(json.dumps(heard))
    run_validation(
        folder,
        manifest=str(manifest),
        data={"num_shards": 1, "keep_text_together": False},
        validate={
            "speech_models": {"device": "cpu", **models},
            "fill_missing_text": True,
            "filters": {"max_word_error_rate": 0.5},
            "max_rejected_fraction": 1.0,
        },
    )
    return folder


def test_a_text_that_does_not_match_its_recording_is_rejected(judged: Path) -> None:
    [rejected] = read_table(judged / "data/rejected.parquet", REJECTED).to_pylist()
    assert (rejected["clip_id"], rejected["reason"]) == ("2", "word_error_rate")


def test_an_empty_text_is_filled_with_the_transcript_and_marked(judged: Path) -> None:
    clips = read_table(judged / "data/clips.parquet", CLIPS).to_pylist()
    heard = json.loads((judged / "heard.json").read_text())
    sources = {clip["clip_id"]: clip["text_source"] for clip in clips}
    assert sources == dict.fromkeys("014", "manifest") | {"3": "transcript"}
    [filled] = [clip for clip in clips if clip["clip_id"] == "3"]
    assert (filled["text"], filled["word_error_rate"]) == (heard[3], None)
    assert (
        json.loads((judged / "data/validation.json").read_text())["num_texts_from_transcripts"] == 1
    )


def test_every_measure_of_the_speech_models_has_a_column(judged: Path) -> None:
    for clip in read_table(judged / "data/clips.parquet", CLIPS).to_pylist():
        assert np.linalg.norm(clip["speaker_embedding"]) == pytest.approx(1, abs=1e-5)
        assert None not in (clip["transcript"], clip["stoi"], clip["pesq"], clip["si_sdr_db"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fill_missing_text": True}, "fill_missing_text needs speech_models.asr"),
        (
            {"filters": {"max_word_error_rate": 0.5}, "speech_models": {"speaker": "x"}},
            "filters.max_word_error_rate needs speech_models.asr",
        ),
        ({"filters": {"min_pesq": 2}}, "filters.min_pesq needs speech_models.quality"),
    ],
)
def test_a_setting_that_needs_a_missing_model_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ValidateConfig.model_validate(settings)
