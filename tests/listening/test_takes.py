"""The recordings of prompts as the codec received them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from trainings import PackedCorpus

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow
from higgs_pipe.higgs.codes import delay
from higgs_pipe.higgs.generation import recorded_samples
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.listening import takes
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.comparison import ListenedMeasures
from higgs_pipe.listening.listener import Impression
from higgs_pipe.listening.spoken import ADAPTER, BASE, CODEC, RECORDING
from higgs_pipe.listening.takes import Take, Takes, recording_of

RATE = 24_000
WHOLE = {"start_seconds": None, "end_seconds": None, "channel": None}


@pytest.fixture
def stereo(tmp_path: Path) -> dict[str, Any]:
    """A recording whose channels cancel in their mean, the second louder."""
    sound = 0.2 * np.random.default_rng(0).standard_normal(2 * RATE)
    sf.write(tmp_path / "a.wav", np.stack([-0.5 * sound, sound], axis=1), RATE, subtype="FLOAT")
    return WHOLE | {"audio_path": str(tmp_path / "a.wav")}


def test_a_recording_is_read_from_the_encoded_channel(
    corpus: PackedCorpus, stereo: dict[str, Any]
) -> None:
    info = read_codec_info(corpus.eval_rows)
    left, right = sf.read(stereo["audio_path"], dtype="float32")[0].T
    assert np.allclose(recording_of([stereo], info), (left + right) / 2)
    assert np.array_equal(recording_of([stereo | {"channel": 1}], info), right)


def test_a_segment_is_read_without_codec_padding(
    corpus: PackedCorpus, stereo: dict[str, Any]
) -> None:
    info = read_codec_info(corpus.eval_rows)
    part = stereo | {"channel": 0, "start_seconds": 0.5, "end_seconds": 1.01}
    left = sf.read(stereo["audio_path"], dtype="float32")[0][:, 0]
    assert np.array_equal(recording_of([part], info), left[12_000:24_240])


def test_a_recording_is_resampled_to_the_rate_of_the_codec(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    sf.write(tmp_path / "a.wav", np.full(12_000, 0.25), 12_000)
    clip = WHOLE | {"audio_path": str(tmp_path / "a.wav")}
    found = recording_of([clip], read_codec_info(corpus.eval_rows))
    assert found.shape == (24_000,)
    assert found[1000:-1000] == pytest.approx(0.25, abs=1e-3)


def test_turns_are_joined_with_codec_padding_except_after_the_last(
    corpus: PackedCorpus, stereo: dict[str, Any]
) -> None:
    """Of 960 samples per frame: 12,240 are padded to 12,480, and the last 24,240 stay."""
    info = read_codec_info(corpus.eval_rows)
    first = stereo | {"channel": 0, "start_seconds": 0.5, "end_seconds": 1.01}
    last = first | {"start_seconds": 0.75, "end_seconds": 1.76}
    left = sf.read(stereo["audio_path"], dtype="float32")[0][:, 0]
    found = recording_of([first, last], info)
    assert np.array_equal(found[:12_240], left[12_000:24_240])
    assert np.array_equal(found[12_480:], left[18_000:42_240])


def test_a_missing_recording_names_the_rule_to_rerun(corpus: PackedCorpus, tmp_path: Path) -> None:
    clip = WHOLE | {"audio_path": str(tmp_path / "gone.wav")}
    with pytest.raises(UserError, match=r"gone\.wav does not exist; .*--forcerun list_rows"):
        recording_of([clip], read_codec_info(corpus.eval_rows))


def test_other_recordings_of_a_speaker_come_from_other_prompts() -> None:
    def prompt(speakers: str | None, has_one_voice: bool = True) -> Any:
        return SimpleNamespace(speakers=speakers, has_one_voice=has_one_voice)

    prompts = [prompt("ada"), prompt("ben"), prompt("ada"), prompt("ada", False), prompt(None)]
    spoken: Any = Takes(prompts, info=None, takes={}, references=[])  # type: ignore[arg-type]
    heard: Any = ["0", "1", "2", "3", "4"]
    assert [spoken._others(number, heard) for number in range(5)] == [["2"], [], ["0"], [], []]


HEARD_HZ = 16_000


def sound(level: float, num_samples: int = HEARD_HZ) -> Any:
    return np.full(num_samples, level, np.float32)


class Hearing:
    """A stand-in for speech models: the transcript is the level of the samples."""

    def hear(self, samples: Any, rate_hz: int) -> Impression:
        assert rate_hz == HEARD_HZ
        return Impression(transcript=f"{samples[0]:.3f}")


def a_dialogue_and_a_clip() -> Takes:
    """Two prompts, the first a dialogue of two voices; each waveform has a level of its own."""

    def prompt(sample_id: str, **facts: Any) -> Any:
        return SimpleNamespace(sample=SimpleNamespace(sample_id=sample_id), **facts)

    two: dict[str, Any] = {"speakers": "ada, ben", "has_one_voice": False}
    two |= {"text": "[SPEAKER0] Ja.\n[SPEAKER1] Nein.", "words": "Ja.\nNein."}
    one: dict[str, Any] = {"speakers": None, "has_one_voice": True, "text": "So.", "words": "So."}
    prompts = [
        prompt("d", task="dialogue_cloning", clip={"language": "de", "speaker": "ada"}, **two),
        prompt("s", task="cloning", clip={"language": None, "speaker": None}, **one),
    ]
    codes = np.arange(6, dtype=np.int16).reshape(3, 2)
    found: dict[Any, list[Take]] = {}
    for number, (voice, temperature, has_stopped) in enumerate(
        [(RECORDING, None, None), (CODEC, None, None), (BASE, 0.25, True), (ADAPTER, 0.25, False)]
    ):
        found[voice, temperature] = [
            Take(sound(level), codes, has_stopped)
            for level in (0.1 + number / 50, 0.2 + number / 50)
        ]
    info: Any = SimpleNamespace(sample_rate_hz=HEARD_HZ, codebook_size=6)
    references = [[sound(0.5, 100), sound(0.6, 200)], [sound(0.7, 50)]]
    return Takes(prompts, info, found, references)


def test_takes_are_collected_by_voice_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    info: Any = SimpleNamespace(sample_rate_hz=RATE)
    prompts: Any = [SimpleNamespace(sample=SimpleNamespace(codes=n), recordings=n) for n in (1, 2)]
    monkeypatch.setattr(takes, "recording_of", lambda recordings, _: f"recording {recordings}")
    monkeypatch.setattr(takes, "decode", lambda _, codes, __: f"decoded {codes}")
    monkeypatch.setattr(takes, "references_of", lambda prompt, *_: [prompt.recordings])
    spoken: Any = {
        voice: {
            t: [
                SimpleNamespace(samples=f"{voice} {t} {n}", codes=n, has_stopped=n == 1)
                for n in (1, 2)
            ]
            for t in (1.0, 0.5)
        }
        for voice in (BASE, ADAPTER)
    }
    codec: Any = None
    found: Any = Takes.collect(prompts, spoken, codec, info)
    assert found.references == [[1], [2]]
    told = {
        drawn: [(take.samples, take.codes, take.has_stopped) for take in of_prompts]
        for drawn, of_prompts in found.takes.items()
    }
    expected: dict[Any, Any] = {
        (voice, t): [(f"{voice} {t} 1", 1, True), (f"{voice} {t} 2", 2, False)]
        for t in (1.0, 0.5)
        for voice in (BASE, ADAPTER)
    }
    expected[RECORDING, None] = [("recording 1", 1, None), ("recording 2", 2, None)]
    expected[CODEC, None] = [("decoded 1", 1, None), ("decoded 2", 2, None)]
    assert told == expected


def test_each_take_is_compared_with_the_text_and_recording_of_its_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[Any] = []

    def compare(
        heard: Any, text: str, language: Any, recording: Any, reference: Any, _: Any
    ) -> Any:
        of_reference = reference and reference.transcript
        compared.append((heard.transcript, text, language, recording.transcript, of_reference))
        return ListenedMeasures(transcript=heard.transcript)

    monkeypatch.setattr(takes, "compare_impression", compare)
    spoken = a_dialogue_and_a_clip()
    nobody: Any = Hearing()
    spoken.listen(nobody)
    levels = [(f"{0.1 + n / 50:.3f}", f"{0.2 + n / 50:.3f}") for n in range(4)]
    assert compared == [
        facts
        for first, second in levels
        for facts in (
            (first, "Ja.\nNein.", "de", "0.100", None),  # of two references, each may be another's
            (second, "So.", None, "0.200", "0.700"),
        )
    ]
    keys = ("clip_id", "voice", "temperature", "sample", "reference", "has_stopped", "transcript")
    assert [tuple(row[key] for key in keys) for row in spoken.rows()] == [
        ("d", "recording", None, "01-recording.wav", "01-reference.wav", None, "0.100"),
        ("d", "codec", None, "01-codec.wav", "01-reference.wav", None, "0.120"),
        ("d", "base", 0.25, "01-base-t0.25.wav", "01-reference.wav", True, "0.140"),
        ("d", "adapter", 0.25, "01-adapter-t0.25.wav", "01-reference.wav", False, "0.160"),
        ("s", "recording", None, "02-recording.wav", "02-reference.wav", None, "0.200"),
        ("s", "codec", None, "02-codec.wav", "02-reference.wav", None, "0.220"),
        ("s", "base", 0.25, "02-base-t0.25.wav", "02-reference.wav", True, "0.240"),
        ("s", "adapter", 0.25, "02-adapter-t0.25.wav", "02-reference.wav", False, "0.260"),
    ]
    without = replace(spoken, references=[[], []])
    assert {row["reference"] for row in without.rows()} == {None}
    first = spoken.rows()[0]
    assert (first["text"], first["task"]) == (
        "[SPEAKER0] Ja.\n[SPEAKER1] Nein.",
        "dialogue_cloning",
    )
    assert (first["speaker"], first["language"]) == ("ada, ben", "de")
    assert (first["duration_seconds"], first["repeated_frame_share"]) == (1, 0)


def test_wav_files_are_named_by_the_number_of_their_prompt(tmp_path: Path) -> None:
    at_16_khz: Any = SimpleNamespace(sample_rate_hz=16_000)
    replace(a_dialogue_and_a_clip(), info=at_16_khz).write(tmp_path)
    found = {path.name: sf.read(path) for path in tmp_path.iterdir()}
    assert {rate for _, rate in found.values()} == {16_000}
    for number, level in (("01", 0.16), ("02", 0.26)):
        assert found[f"{number}-adapter-t0.25.wav"][0] == pytest.approx(level, abs=1e-4)
    both, _ = found["01-reference.wav"]
    assert both == pytest.approx([0.5] * 100 + [0.6] * 200, abs=1e-4)
    assert len(found) == 10


def test_differences_compare_adapter_and_base_at_each_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoken = a_dialogue_and_a_clip()
    nobody: Any = Hearing()
    spoken.listen(nobody)
    seen: list[Any] = []

    def transcripts(heard: Any) -> list[str]:
        return [each.listened.transcript for each in heard]

    def compare(adapter: Any, base: Any, recordings: Any, _: Any, num_entries: int) -> Any:
        seen.append((*map(transcripts, (adapter, base, recordings)), num_entries))
        return {}

    def total(heard: Any, recordings: Any, _: Any, num_entries: int) -> Any:
        seen.append((transcripts(heard), transcripts(recordings), num_entries))
        return {}

    monkeypatch.setattr(takes, "differences", compare)
    monkeypatch.setattr(takes, "totals", total)
    alone = Clusters.of(["d", "s"], [None] * 2, [None] * 2)
    recorded, codec, base, adapter = (
        [f"{level + number / 50:.3f}" for level in (0.1, 0.2)] for number in range(4)
    )
    assert [each.temperature for each in spoken.differences(alone)] == [0.25]
    assert seen.pop() == (adapter, base, recorded, 6)
    assert [each.voice for each in spoken.totals(alone)] == [RECORDING, CODEC, BASE, ADAPTER]
    assert seen == [(heard, recorded, 6) for heard in (recorded, codec, base, adapter)]


@pytest.mark.parametrize("base", ["tiny_base", "v3_base"])
def test_every_reference_of_a_prompt_is_decoded(
    request: pytest.FixtureRequest, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = renderer_of(Pretrained("base", str(request.getfixturevalue(base)))).shape
    codes = [np.full((n, 8), n, np.int16) for n in (3, 5, 4)]
    parts = [delay([part], 1024, 1025, shape.num_margin_frames) for part in codes]
    ids = [[9, *[shape.audio_token_id] * len(part)] for part in parts]
    labels = [np.full_like(part, -100) for part in parts[:2]]
    row = PackedRow(
        np.concatenate(ids).astype(np.int32),
        np.full(sum(map(len, ids)), -100, np.int32),
        np.concatenate(parts),
        np.concatenate([*labels, parts[2]]),
        ("a",),
        np.array([sum(map(len, ids))], np.int32),
    )
    [sample] = recorded_samples(row, shape)
    monkeypatch.setattr(takes, "decode", lambda codec, part, info: part)
    prompt: Any = SimpleNamespace(sample=sample)
    nothing: Any = None
    found = takes.references_of(prompt, nothing, nothing)
    assert [part.tolist() for part in found] == [part.tolist() for part in codes[:2]]
    assert sample.codes.tolist() == codes[2].tolist()
