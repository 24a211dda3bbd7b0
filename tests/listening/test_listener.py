"""Speech models with real weights, loaded by the code that loads those of a user.

The weights are those that packages carry (speech_checkpoints.py). Real recordings lie beside the
checkout; tests skip where they or the packages are absent.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
import torch
from helpers import ROOT
from speech_checkpoints import carried, dnsmos_file, write_resemblyzer, write_whisper

from higgs_pipe.config.settings import EvalSpeechModelConfig
from higgs_pipe.errors import UserError
from higgs_pipe.listening.comparison import ListenedMeasures
from higgs_pipe.listening.dnsmos import Dnsmos
from higgs_pipe.listening.listener import Impression, Listener, compare_impression
from higgs_pipe.listening.transcripts import TextErrors, count_errors

CPU = torch.device("cpu")
RATE_HZ = 16_000
REAL_SPEECH = ROOT.parent / "shared" / "data" / "real_speech"
Waveform = npt.NDArray[np.float32]


def listener(**models: Path | str) -> Listener:
    return Listener(EvalSpeechModelConfig(**{name: str(m) for name, m in models.items()}), CPU)


def recordings(folder: Path, wanted: str) -> list[tuple[dict[str, str], Waveform, int]]:
    """Rows of a manifest whose ids begin so, each with its samples (N,) and their rate."""
    manifest = folder / "manifest.jsonl"
    if not manifest.exists():
        pytest.skip(f"{manifest} is absent")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    found = []
    for row in rows:
        if row["id"].startswith(wanted):
            samples, rate = sf.read(folder / row["audio"], dtype="float32", always_2d=True)
            found.append((row, samples.mean(axis=1), rate))
    return found


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Listener:
    return listener(asr=write_whisper(tmp_path_factory.mktemp("whisper")))


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Listener:
    return listener(speaker=write_resemblyzer(tmp_path_factory.mktemp("speaker")))


def word_error_rate(texts: list[str], transcripts: list[str | None]) -> float:
    errors = [
        count_errors(text, transcript or "", "en")
        for text, transcript in zip(texts, transcripts, strict=True)
    ]
    return sum(e.num_word_errors for e in errors) / sum(e.num_words for e in errors)


@pytest.mark.slow
def test_real_speech_is_recognised_and_another_text_is_not(whisper: Listener) -> None:
    """One error in 38 words: the transcript says `tue` where the speaker says `two`."""
    clips = recordings(REAL_SPEECH, "spk1")
    texts = [row["text"] for row, _, _ in clips]
    heard = [whisper.hear(samples, rate).transcript for _, samples, rate in clips]
    assert word_error_rate(texts, heard) <= 2 / 38
    assert word_error_rate(texts[1:] + texts[:1], heard) > 0.8


@pytest.mark.slow
def test_synthetic_speech_of_the_demo_is_recognised(whisper: Listener) -> None:
    """`Hello, everyone.` and `Can you help me find my glasses?`, spoken by espeak-ng."""
    demo = ROOT / "examples" / "demo"
    clips = [*recordings(demo, "ada-001"), *recordings(demo, "ada-009")]
    texts = [row["text"] for row, _, _ in clips]
    heard = [whisper.hear(samples, rate).transcript for _, samples, rate in clips]
    assert word_error_rate(texts, heard) <= 2 / 9


@pytest.mark.slow
def test_audio_longer_than_30_seconds_is_transcribed_to_its_end(whisper: Listener) -> None:
    clips = recordings(REAL_SPEECH, "spk1")
    samples = np.concatenate([samples for _, samples, _ in clips])
    silence = np.zeros(32 * RATE_HZ - len(samples), np.float32)
    text = whisper.hear(np.concatenate([samples, silence, samples[:46_000]]), RATE_HZ).transcript
    assert text is not None
    assert text.count("small dog") == 2


@pytest.mark.slow
def test_speaker_embeddings_separate_the_speakers(speaker: Listener) -> None:
    """Published error rate of this encoder: 9 %; these three speakers are told apart fully."""
    clips = recordings(REAL_SPEECH, "")
    voices = [(row["speaker"], speaker.hear(samples, rate)) for row, samples, rate in clips]
    same: list[float] = []
    different: list[float] = []
    for number, (name, voice) in enumerate(voices):
        for other_name, other in voices[:number]:
            found = compare_impression(voice, "", None, other).similarity_to_recording
            assert found is not None
            (same if name == other_name else different).append(found)
    assert min(same) > 0.75 > 0.65 > max(different)


@pytest.mark.slow
def test_a_clip_is_more_similar_to_its_own_speakers_clips(speaker: Listener) -> None:
    own, other = (
        [speaker.hear(samples, rate) for _, samples, rate in recordings(REAL_SPEECH, name)]
        for name in ("spk1", "spk2")
    )
    to_own = compare_impression(own[0], "", None, own[0], others=own[1:]).similarity_to_others
    to_other = compare_impression(own[0], "", None, own[0], others=other).similarity_to_others
    assert to_own is not None
    assert to_other is not None
    assert to_own > 0.85 > 0.65 > to_other


@pytest.mark.slow
def test_noise_lowers_the_dnsmos_of_real_speech() -> None:
    listening = listener(dnsmos=dnsmos_file())
    [(_, samples, rate)] = recordings(REAL_SPEECH, "spk1_snt1")
    noise = np.random.default_rng(0).normal(0, 0.05, len(samples)).astype(np.float32)
    assert listening.hear(samples, rate).dnsmos == pytest.approx(3.3468, abs=0.001)
    assert listening.hear(samples + noise, rate).dnsmos == pytest.approx(1.0944, abs=0.001)


@pytest.mark.parametrize(("seconds", "expected"), [(12.5, 1.08305), (5.5, 1.19716)])
def test_dnsmos_matches_its_authors_package(seconds: float, expected: float) -> None:
    """The numbers are those of ``speechmos.dnsmos.run`` 0.0.1.1, with its librosa."""
    time = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    sweep = np.sin(2 * np.pi * (150 + 20 * time) * time) * np.abs(np.sin(3 * time))
    samples = (0.3 * sweep * np.linspace(1, 0.1, len(time))).astype(np.float32)
    found = Dnsmos("x", dnsmos_file()).score(samples)
    assert found == pytest.approx(expected, abs=1e-4)


def test_dnsmos_is_the_mean_of_the_mapped_scores_of_its_windows() -> None:
    """Scores of 1 and 5: -0.06766283 s² + 1.11546468 s + 0.04602535 is 1.0938272 and 3.9317780."""
    scores = [np.array([[9.0, 9.0, score]]) for score in (1.0, 5.0)]
    dnsmos: Any = object.__new__(Dnsmos)
    dnsmos._session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name="input_1")], run=lambda _, inputs: [scores.pop()]
    )
    assert dnsmos.score(np.zeros(11 * RATE_HZ, np.float32)) == pytest.approx(2.5128026)
    assert scores == []


def test_dnsmos_clips_samples_at_full_scale() -> None:
    samples = 3 * np.sin(np.arange(146_000) / 7).astype(np.float32)
    listening = Dnsmos("x", dnsmos_file())
    assert listening.score(samples) == listening.score(np.clip(samples, -1, 1))


def test_onnx_runtime_collects_no_telemetry(tmp_path: Path) -> None:
    """Outside CI, ONNX Runtime would store them with an id of the machine."""
    folders = dict.fromkeys(("HOME", "TMPDIR"), str(tmp_path))
    command = [sys.executable, "-c", "import higgs_pipe.listening.dnsmos"]
    subprocess.run(command, env=folders, cwd=ROOT, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere.onnx", "page.onnx", "other.onnx"])
def test_a_file_that_is_not_dnsmos_is_a_user_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "page.onnx").write_text("<html>")
    path = tmp_path / name
    if name == "other.onnx":
        path = carried("speechmos", "dnsmos_models/model_v8.onnx")
    with pytest.raises(UserError, match=r"(?s)eval\.speech_models\.dnsmos .*sig_bak_ovr"):
        listener(dnsmos=path)


@pytest.mark.parametrize("setting", ["asr", "speaker"])
def test_a_missing_speech_model_names_its_setting(tmp_path: Path, setting: str) -> None:
    with pytest.raises(UserError, match=rf"eval\.speech_models\.{setting} .*nowhere"):
        listener(**{setting: tmp_path / "nowhere"})


def test_without_models_every_measure_is_none() -> None:
    heard = listener().hear(np.zeros(100, np.float32), RATE_HZ)
    assert heard == Impression(None, None, None)
    found = compare_impression(heard, "Hello.", "en", heard, heard, [heard])
    assert found == ListenedMeasures()
    assert set(vars(found).values()) == {None}


def test_each_model_gets_at_least_half_a_second_at_its_own_rate() -> None:
    """A hundred samples at 8 kHz are padded to 4,000; DNSMOS takes 16 kHz."""
    listening: Any = listener()
    listening._recogniser = lambda mono, rate_hz: f"{len(mono)} at {rate_hz}"
    listening._speaker = lambda mono, rate_hz: [len(mono), rate_hz]
    listening._dnsmos = SimpleNamespace(score=len)
    found = listening.hear(np.ones(100, np.float32), 8000)
    assert found == Impression(transcript="4000 at 8000", voice=[4000, 8000], dnsmos=8000)


def test_the_transcript_is_compared_with_the_text_in_its_language() -> None:
    """`and then` is too much; in English, `it's` is `it is`."""
    heard = Impression(transcript="it is late and then")
    found = compare_impression(heard, "It's late", "en", Impression())
    assert (found.transcript, found.num_word_errors, found.num_words) == (heard.transcript, 2, 3)
    assert (found.num_character_errors, found.num_characters) == (7, 8)


def test_similarity_is_the_cosine_of_embeddings_and_of_their_mean() -> None:
    heard = Impression(voice=[1.0, 0.0], dnsmos=2.5)
    recording = Impression(voice=[0.6, 0.8], dnsmos=3.5)
    others = [Impression(voice=[0.0, 1.0]), Impression(voice=[1.0, 0.0]), Impression()]
    found = compare_impression(heard, "", None, recording, reference=heard, others=others)
    assert found.similarity_to_recording == pytest.approx(0.6)
    assert found.similarity_to_reference == pytest.approx(1)
    assert found.similarity_to_others == pytest.approx(0.5**0.5)
    assert found.dnsmos == 2.5
    assert compare_impression(heard, "", None, recording).similarity_to_reference is None


@pytest.mark.parametrize(
    ("text", "transcript", "language", "errors"),
    [
        ("The cat sat.", "the CAT sat", "en", (0, 3, 0, 9)),
        ("The cat sat.", "The bat", "en-GB", (2, 3, 4, 9)),
        ("The cat.", "The great cat", "en", (1, 2, 5, 6)),
        # English: numbers, contractions and hesitations.
        ("In eighteen thirteen", "um, in 1813", "en", (0, 2, 0, 6)),
        ("It's late", "it is late", "en", (0, 3, 0, 8)),
        ("It's late", "it is late", "eng-GB", (0, 3, 0, 8)),
        ("It's late", "it is late", "EN", (0, 3, 0, 8)),
        ("In eighteen thirteen", "in 1813", None, (2, 3, 16, 18)),
        # A sound event and a speaker tag are not spoken.
        ("[SPEAKER0] Hi <SE>[Laughter]</SE> you", "hi you", "en", (0, 2, 0, 5)),
        ("你好，世界", "你好 事界", "zh", (1, 4, 1, 4)),
        ("Grüße aus Köln", "grüße aus köln", "de", (0, 3, 0, 12)),
        ("", "a word", "en", (2, 0, 5, 0)),
        ("Hello there.", "", "en", (2, 2, 10, 10)),
    ],
)
def test_errors_are_counted_after_normalisation(
    text: str, transcript: str, language: str | None, errors: Any
) -> None:
    assert count_errors(text, transcript, language) == TextErrors(*errors)
