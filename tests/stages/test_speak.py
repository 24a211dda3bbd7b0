"""Speaking: prompts as in training, settings that matter, and speech that was learned."""

import itertools
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio
from helpers import (
    ROOT,
    Seen,
    environment_with,
    files_with_secrets,
    has_line_with,
    plant_secrets,
    tone,
    write_stage_config,
)
from trainings import PackedCorpus

import higgs_pipe.higgs.speaker
import higgs_pipe.train
from higgs_pipe import speak
from higgs_pipe.cli import main
from higgs_pipe.config.settings import PackConfig, Sampling
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import SamplePlan, SamplePlanner
from higgs_pipe.data.specs import CLIPS, codes_spec
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.codec import decode
from higgs_pipe.higgs.generation import RecordedSample, Spoken, recorded_samples
from higgs_pipe.higgs.origin import adapter_origin
from higgs_pipe.higgs.pretrained import PinnedModel, weight_fingerprint
from higgs_pipe.higgs.speaker import Speaker, joined
from higgs_pipe.higgs.speech_prompts import SpeechPrompt, Voice
from higgs_pipe.higgs.v2.rules import RULES as V2_RULES

SHORT = Sampling(max_seconds=1)
GREEDY = Sampling(temperature=0, max_seconds=4)


@pytest.fixture(scope="module")
def speaker(tiny_base: Path) -> Speaker:
    return Speaker.load(str(tiny_base))


def rows_of(corpus: PackedCorpus) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(corpus.clips, CLIPS).to_pylist()
    return rows


def plans(corpus: PackedCorpus, split: str, settings: PackConfig) -> Iterator[SamplePlan]:
    yield from SamplePlanner(Clips.read(corpus.clips), split, settings, V2_RULES).plans()


def packed(rows: Path, speaker: Speaker) -> dict[str, RecordedSample]:
    table = PackedRows(rows)
    config = speaker.renderer.shape
    found = (sample for i in range(len(table)) for sample in recorded_samples(table[i], config))
    return {sample.sample_id: sample for sample in found}


def assert_prompts_are_the_packed_ones(
    corpus: PackedCorpus, packed_dir: Path, speaker: Speaker, settings: PackConfig
) -> set[tuple[int, bool]]:
    """Speak from manifest and recordings; returns (references, has a scene) of the samples."""
    rows = rows_of(corpus)
    kinds = set()
    for split in ("train", "eval"):
        samples = packed(packed_dir / f"{split}.parquet", speaker)
        for plan in plans(corpus, split, settings):
            targets = [rows[clip] for clip in plan.targets]
            speakers = list(dict.fromkeys(row["speaker"] for row in targets))
            tags = {s: f"[SPEAKER{i}] " if plan.is_dialogue else "" for i, s in enumerate(speakers)}
            voices = tuple(
                speaker.voice(
                    rows[r.clip]["audio_path"], tags[rows[r.clip]["speaker"]] + rows[r.clip]["text"]
                )
                for r in plan.references
            )
            text = " ".join(tags[row["speaker"]] + row["text"] for row in targets)
            scene = next((row["scene"] for row in targets if row["scene"]), None)
            found = speaker.prompt(SpeechPrompt(text, voices, scene))
            expected = samples.pop(targets[0]["clip_id"]).prompt
            assert found.input_ids.tolist() == expected.input_ids.tolist()
            assert found.audio_input_ids.tolist() == expected.audio_input_ids.tolist()
            kinds.add((len(voices), scene is not None))
        assert not samples
    return kinds


@pytest.mark.parametrize("tasks", [{"speech": 1, "cloning": 0}, {"speech": 0, "cloning": 1}])
def test_prompts_match_training_token_by_token(
    corpus: PackedCorpus, speaker: Speaker, tmp_path: Path, tasks: dict[str, Any]
) -> None:
    corpus.pack(tmp_path, max_tokens=512, tasks=tasks)
    settings = PackConfig.model_validate({"max_tokens": 512, "tasks": tasks})
    found = assert_prompts_are_the_packed_ones(corpus, tmp_path, speaker, settings)
    num_references = tasks["cloning"]
    assert found >= {(num_references, False), (num_references, True)}


def test_dialogue_prompts_match_training(
    corpus: PackedCorpus, speaker: Speaker, tmp_path: Path
) -> None:
    turns = {f"clip-{i:02d}": {"dialogue_id": "talk", "turn": i} for i in (0, 1, 2)}
    tasks = {"speech": 1, "cloning": 0, "dialogue": 0, "dialogue_cloning": 1000}
    dialogue = corpus.changed(tmp_path, turns)
    settings = {"max_tokens": 1024, "tasks": tasks}
    dialogue.pack(tmp_path / "packed", **settings)
    found = assert_prompts_are_the_packed_ones(
        dialogue, tmp_path / "packed", speaker, PackConfig.model_validate(settings)
    )
    assert (2, True) in found


def test_dialogue_voices_get_the_numbers_of_their_speakers(speaker: Speaker) -> None:
    codes = [np.full((9, 8), n, np.int16) for n in (1, 2)]
    text = "[SPEAKER0] Good morning. [SPEAKER1] Good night."
    bare, tagged = (
        speaker.prompt(SpeechPrompt(text, tuple(map(Voice, texts, codes))))
        for texts in (["I am Ada.", "I am Ben."], ["[SPEAKER0] I am Ada.", "[SPEAKER1] I am Ben."])
    )
    assert bare.input_ids.tolist() == tagged.input_ids.tolist()


def test_the_prompt_ends_like_the_native_generation_prompt(speaker: Speaker) -> None:
    voice = Voice("I sound so", np.zeros((9, 8), np.int16))
    messages = [
        {"role": "system", "content": speaker.system_prompt},
        {"role": "scene", "content": [{"type": "text", "text": "A hall."}]},
        {"role": "user", "content": "I sound so"},  # a reference is not cleaned
        {"role": "assistant", "content": [{"type": "audio"}]},
        {"role": "user", "content": "Good morning."},
    ]
    native = speaker.renderer.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    expected = speaker.renderer.tokenizer(native, add_special_tokens=False)["input_ids"]
    found = speaker.prompt(SpeechPrompt("Good morning", (voice,), "A hall.")).input_ids.tolist()
    shape = speaker.renderer.shape
    placeholders = [shape.audio_token_id] * (9 + 2) + [shape.audio_delay_token_id] * 7
    at = expected.index(shape.audio_token_id)
    assert found == expected[:at] + placeholders + expected[at + 1 :]


@pytest.mark.parametrize(
    ("rate_hz", "num_channels", "name"),
    [(24_000, 1, "a.wav"), (44_100, 2, "a.flac"), (16_000, 1, "a.ogg"), (48_000, 2, "a.mp3")],
)
def test_references_of_any_rate_and_format_are_encoded_in_whole_frames(
    speaker: Speaker, tmp_path: Path, rate_hz: int, num_channels: int, name: str
) -> None:
    path = tmp_path / name
    noise = 0.1 * np.random.default_rng(0).standard_normal((rate_hz + 100, num_channels))
    sf.write(path, noise, rate_hz)
    samples, _ = sf.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples.mean(axis=1))
    resampled = torchaudio.functional.resample(mono, rate_hz, 24_000)
    padded = torch.nn.functional.pad(resampled, (0, -len(resampled) % 960))
    with torch.inference_mode():
        expected = speaker.codec.encode(padded[None, None]).audio_codes[0].T
    assert speaker.voice(path, "Noise").codes.tolist() == expected.tolist()


def test_a_reference_uses_the_channel_that_training_would_use(
    speaker: Speaker, tmp_path: Path
) -> None:
    sound = 0.2 * np.random.default_rng(0).standard_normal(24_000)
    sf.write(tmp_path / "right.wav", sound, 24_000, "FLOAT")
    sf.write(tmp_path / "both.wav", np.stack([-0.9 * sound, sound], axis=1), 24_000, "FLOAT")
    right, both = (speaker.voice(tmp_path / f"{name}.wav", "Hi") for name in ("right", "both"))
    assert np.array_equal(both.codes, right.codes)


def test_a_short_reference_is_padded_to_the_minimum_of_the_base(
    speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone(tmp_path / "short.wav", seconds=0.4)
    rules = replace(speaker.renderer.rules, min_reference_seconds=1.0)
    monkeypatch.setattr(speaker.renderer, "rules", rules)
    assert speaker.voice(tmp_path / "short.wav", "Hi").codes.shape == (25, 8)


def test_long_text_is_spoken_in_pieces_in_the_voice_of_the_first_piece(speaker: Speaker) -> None:
    text = "The first sentence is here. The second one follows."
    (whole,) = speaker.speak([text], SHORT, max_piece_length=30)
    (first,) = speaker.speak(["The first sentence is here."], SHORT)
    voice = Voice("The first sentence is here.", first.codes)
    (second,) = speaker.speak([SpeechPrompt("The second one follows.", (voice,))], SHORT)
    assert np.array_equal(whole.codes, np.concatenate([first.codes, second.codes]))
    assert len(whole.samples) == 960 * len(whole.codes)
    assert whole.has_stopped == (first.has_stopped and second.has_stopped)


@pytest.mark.parametrize(("num_frames", "num_voices"), [(24, 0), (25, 1)])
def test_a_first_piece_too_short_for_a_reference_gives_no_voice(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch, num_frames: int, num_voices: int
) -> None:
    """A second is 25 frames."""
    asked: list[list[SpeechPrompt]] = []
    samples = np.zeros(960 * num_frames, np.float32)
    spoken = Spoken(samples, 24_000, np.zeros((num_frames, 8), np.int16), has_stopped=True)

    def speak_all(*arguments: Any) -> list[Spoken]:
        asked.append(arguments[3])
        return [spoken] * len(arguments[3])

    rules = replace(speaker.renderer.rules, min_reference_seconds=1.0)
    monkeypatch.setattr(speaker.renderer, "rules", rules)
    monkeypatch.setattr(speaker, "prompt", lambda prompt: prompt)
    monkeypatch.setattr(higgs_pipe.higgs.speaker, "speak", speak_all)
    speaker.speak(["The first one. And the second one."], SHORT, max_piece_length=20)
    [first], [second] = asked
    assert (len(first.voices), len(second.voices)) == (0, num_voices)


@pytest.mark.parametrize("stopped", [(True, False), (False, True), (True, True)])
def test_a_text_has_stopped_if_each_piece_has(stopped: tuple[bool, bool]) -> None:
    pieces = [
        Spoken(np.full(9, float(has), np.float32), 24_000, np.zeros((1, 8), np.int16), has)
        for has in stopped
    ]
    whole = joined(pieces)
    assert whole.has_stopped == (stopped == (True, True))
    assert (len(whole.samples), len(whole.codes)) == (18, 2)


def test_every_piece_uses_the_reference_voice(speaker: Speaker) -> None:
    voice = Voice("I sound so.", np.arange(80, dtype=np.int16).reshape(10, 8))
    prompt = SpeechPrompt("The first one. And the second one.", (voice,), "A hall.")
    (whole,) = speaker.speak([prompt], SHORT, max_piece_length=20)
    pieces = [replace(prompt, text=text) for text in ("The first one.", "And the second one.")]
    expected = [spoken.codes for spoken in speaker.speak(pieces, SHORT)]
    assert np.array_equal(whole.codes, np.concatenate(expected))


def test_every_piece_of_a_dialogue_keeps_its_speaker() -> None:
    prompt = SpeechPrompt("[SPEAKER0] Hello there. [SPEAKER1] Hi. How are you today? Fine?")
    assert [piece.text for piece in prompt.pieces(100)] == [
        "[SPEAKER0] Hello there.\n[SPEAKER1] Hi. How are you today? Fine?"
    ]
    assert [piece.text for piece in prompt.pieces(25)] == [
        "[SPEAKER0] Hello there.",
        "[SPEAKER1] Hi. How are you today?",
        "[SPEAKER1] Fine?",
    ]


def run(tiny_base: Path, out: Path, **options: Any) -> np.ndarray:
    """The samples of the WAV that the stage writes."""
    speak.run(base=str(tiny_base), out=out, **{"text": "Good morning", **options})
    samples, rate_hz = sf.read(out, dtype="int16")
    assert rate_hz == 24_000
    return samples


def test_each_setting_changes_what_is_spoken(
    tiny_base: Path, tmp_path: Path, corpus: PackedCorpus
) -> None:
    plain = {"max_seconds": 1.0, "device": "cpu"}
    reference = rows_of(corpus)[0]
    changes: dict[str, Mapping[str, Any]] = {
        "temperature": {"temperature": 0.3},
        "top_k": {"top_k": 2},
        "top_p": {"top_p": 0.2},
        "seed": {"seed": 1},
        "max_seconds": {"max_seconds": 0.4},
        "ras_win_len": {"top_k": 2, "ras_win_max_num_repeat": 1, "ras_win_len": 30},
        "ras_win_max_num_repeat": {"top_k": 2, "ras_win_max_num_repeat": 1},
        "text": {"text": "Good evening"},
        "scene": {"scene": "A hall."},
        "system_prompt": {"system_prompt": "Speak."},
        "max_piece_length": {"text": "Good morning, all of you. And good day."},
        "pieces": {"text": "Good morning, all of you. And good day.", "max_piece_length": 26},
        "reference": {
            "reference": [Path(reference["audio_path"])],
            "reference_text": [reference["text"]],
        },
    }
    first = run(tiny_base, tmp_path / "a.wav", **plain)
    assert np.array_equal(run(tiny_base, tmp_path / "b.wav", **plain), first)
    found = {
        name: run(tiny_base, tmp_path / "c.wav", **{**plain, **change})
        for name, change in changes.items()
    }
    outcomes = {"nothing": first} | found
    pairs = itertools.combinations(outcomes, 2)
    assert [pair for pair in pairs if np.array_equal(outcomes[pair[0]], outcomes[pair[1]])] == []
    assert len(found["max_seconds"]) == 10 * 960


def test_a_text_file_gives_a_wav_per_line_and_names_those_that_did_not_stop(
    tiny_base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    texts = tmp_path / "lines.txt"
    texts.write_text("Good morning\n\nGood evening, and good night\nGood morning\n")
    options: dict[str, Any] = {"temperature": 0.0, "max_seconds": 0.2, "batch_size": 2}
    speak.run(texts=texts, out_dir=tmp_path / "out", base=str(tiny_base), **options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0001.wav",
        "0003.wav",
        "0004.wav",
    ]
    same = [sf.read(tmp_path / f"out/{name}.wav")[0] for name in ("0001", "0004")]
    assert np.array_equal(*same)
    warning = next(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "2 of 3" in warning
    assert "0001.wav" in warning
    assert "0003.wav" not in warning


def test_text_files_are_split_at_newlines_only_and_lose_their_bom(
    tmp_path: Path,
) -> None:
    texts = tmp_path / "lines.txt"
    texts.write_bytes("\ufeffOne\u2028and two.\r\n\r\nThree.\n".encode())
    found = speak._texts_by_path(None, texts, None, tmp_path)
    assert found == {tmp_path / "0001.wav": "One\u2028and two.", tmp_path / "0003.wav": "Three."}


def test_the_wav_extension_may_be_upper_case() -> None:
    assert speak._texts_by_path("Hi", None, Path("a.WAV"), None) == {Path("a.WAV"): "Hi"}


def test_truncated_and_empty_speech_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three texts, the second did not stop and the third is empty."""
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    clips = [
        Spoken(np.zeros(9, np.float32), 24_000, np.zeros((num_frames, 8), np.int16), has_stopped)
        for num_frames, has_stopped in ((1, True), (1, False), (0, True))
    ]
    speaker = SimpleNamespace(speak=lambda *_: clips, voice=None)
    monkeypatch.setattr(Speaker, "load", lambda *_, **__: speaker)
    (tmp_path / "lines.txt").write_text("One.\nTwo.\nThree.\n")
    speak.run(texts=tmp_path / "lines.txt", out_dir=tmp_path, max_seconds=7.5)
    cut, empty = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "1 of 3 did not stop by themselves and were cut after 7.5 s" in cut
    assert has_line_with(cut, "0002.wav")
    assert "1 of 3 are empty" in empty
    assert has_line_with(empty, "0003.wav")
    assert "0001.wav" not in cut + empty


SPOKEN = {"text": "Hi", "out": Path("out.wav")}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to say": ({"out": Path("out.wav")}, "--text"),
    "nowhere to write": ({"text": "Hi"}, "--out"),
    "two kinds of text": ({**SPOKEN, "texts": Path("lines.txt")}, "--texts"),
    "no WAV": ({"text": "Hi", "out": Path("out.mp3")}, "out.mp3"),
    "a folder": ({"text": "Hi", "out": Path("folder.wav")}, "folder.wav"),
    "out in a file": ({"text": "Hi", "out": Path("r.wav/out.wav")}, "r.wav"),
    "no texts": ({"texts": Path("blank.txt"), "out_dir": Path("o")}, "--texts blank.txt .*text"),
    "no such texts": ({"texts": Path("absent.txt"), "out_dir": Path("o")}, "absent.txt"),
    "empty text": ({**SPOKEN, "text": " \u200b"}, "text 1"),
    "control token": ({**SPOKEN, "text": "Hi <|eot_id|>"}, r"text 1 .*<\|eot_id\|>"),
    "no transcript": ({**SPOKEN, "reference": [Path("a.wav")]}, "--reference-text"),
    "no reference": ({**SPOKEN, "reference_text": ["Hi"]}, "--reference "),
    "no batch": ({**SPOKEN, "batch_size": 0}, "--batch-size 0"),
    "tiny pieces": ({**SPOKEN, "max_piece_length": 19}, "--max-piece-length 19"),
    "two places": (
        {"texts": Path("lines.txt"), "out_dir": Path("o"), "out": Path("out.wav")},
        "--out-dir",
    ),
    "no such reference": (
        {**SPOKEN, "reference": [Path("absent.wav")], "reference_text": ["Hi"]},
        "absent.wav",
    ),
    "voices without tags": (
        {**SPOKEN, "reference": [Path("r.wav")] * 2, "reference_text": ["Hi", "Ho"]},
        "text 1 .*2 voices",
    ),
    "silent": ({**SPOKEN, "reference": [Path("s.wav")], "reference_text": ["Hi"]}, "s.wav"),
    "too loud": ({**SPOKEN, "reference": [Path("l.wav")], "reference_text": ["Hi"]}, "l.wav"),
    "too short": ({**SPOKEN, "reference": [Path("t.wav")], "reference_text": ["Hi"]}, "t.wav"),
    "blank transcript": (
        {**SPOKEN, "reference": [Path("r.wav")], "reference_text": [" "]},
        "r.wav",
    ),
    "output over the reference": (
        {**SPOKEN, "out": Path("./r.wav"), "reference": [Path("r.wav")], "reference_text": ["Hi"]},
        "r.wav is also read",
    ),
    "temperature": ({**SPOKEN, "temperature": -1.0}, "--temperature -1"),
    "no end": ({**SPOKEN, "max_seconds": float("inf")}, "--max-seconds inf"),
    "device": ({**SPOKEN, "device": "tpu"}, "--device tpu"),
    "no adapter": ({**SPOKEN, "base": None, "adapter": Path("absent")}, "absent"),
    "no model": ({**SPOKEN, "base": None}, "base"),
    "no codec": ({**SPOKEN, "codec": "absent/codec/here"}, "absent/codec/here"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_invalid_options_are_refused_by_name(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    noise = 0.1 * np.random.default_rng(0).standard_normal(24_000)
    for path, samples in (("r.wav", noise), ("s.wav", 0 * noise), ("t.wav", noise[:2400])):
        sf.write(path, samples, 24_000)
    sf.write("l.wav", 2000 * noise, 24_000, "FLOAT")  # 200 times full scale, or more
    Path("blank.txt").write_text(" \n\n")
    Path("folder.wav").mkdir()
    options, place = FAULTS[name]
    with pytest.raises(UserError, match=place):
        speak.run(**{"base": str(tiny_base), **options})
    assert not Path("out.wav").exists()


@pytest.mark.usefixtures("processes_as_forks")
def test_the_command_line_speaks_and_exits_with_2_on_a_user_error(
    tiny_base: Path, tmp_path: Path
) -> None:
    secrets = environment_with(**plant_secrets(tmp_path))

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, "-m", "higgs_pipe.speak", "--base", str(tiny_base)]
        options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True}
        return subprocess.run([*start, *words], env=secrets, **options)

    out = tmp_path / "spoken" / "out.wav"
    spoken = command("--text", "Good morning", "--out", str(out), "--max-seconds", "0.4")
    assert spoken.returncode == 0, spoken.stderr
    assert sf.info(out).frames == 10 * 960
    assert "frame" not in spoken.stderr  # the bar is for a terminal
    refused = command("--text", "Good morning", "--out", str(out), "--top-p", "2")
    assert refused.returncode == 2
    assert "--top-p 2" in refused.stderr
    assert "Traceback" not in refused.stderr
    for result in (spoken, refused):
        (tmp_path / "spoken" / f"{result.returncode}.log").write_text(result.stdout + result.stderr)
    assert files_with_secrets(tmp_path / "spoken") == (3, [])
    assert files_with_secrets(tmp_path)[1]  # those that were planted


def test_every_option_of_the_command_line_reaches_the_speaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[Any, ...]] = []
    load = {"base_revision": "r1", "codec_revision": "r2", "device": "cpu", "dtype": "float64"}
    sampling = {"temperature": 0.5, "top_p": 0.6, "top_k": 7, "seed": 8, "max_seconds": 9.0}
    sampling |= {"ras_win_len": 10, "ras_win_max_num_repeat": 11}

    class Spy:
        def voice(self, audio: Path, text: str) -> tuple[Path, str]:
            return audio, text

        def speak(self, prompts: list[SpeechPrompt], options: Sampling, *sizes: int) -> list[Any]:
            drawn = {name: getattr(options, name) for name in sampling}
            heard.append((prompts, drawn, sizes))
            return [
                Spoken(np.zeros(9, np.float32), 24_000, np.zeros((1, 8), np.int16), True)
                for _ in prompts
            ]

    def loaded(*models: object, **options: object) -> Spy:
        heard.append((models, options))
        return Spy()

    monkeypatch.setattr(Speaker, "load", loaded)
    others: dict[str, Any] = {"base": "B", "adapter": tmp_path, "codec": "C"}
    others |= {"system_prompt": "S", "text": "Hi", "scene": "A hall.", "out": tmp_path / "a.wav"}
    sizes = {"batch_size": 12, "max_piece_length": 30}
    options = {**load, **sampling, **others, **sizes}
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
    voices = ((tmp_path / "r.wav", "Ho"), (tmp_path / "s.wav", "Hu"))
    words += [("--reference", str(audio)) for audio, _ in voices]
    words += [("--reference-text", said) for _, said in voices]
    main(speak.run, [word for pair in words for word in pair])
    prompt = SpeechPrompt("Hi", voices, "A hall.")  # type: ignore[arg-type]
    (models, found), (prompts, drawn, found_sizes) = heard
    assert (models, found) == (("B", tmp_path, "C"), {**load, "system_prompt": "S"})
    assert [vars(each) for each in prompts] == [vars(prompt)]
    assert (drawn, found_sizes) == (sampling, (12, 30))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, corpus: PackedCorpus) -> Path:
    """A training's adapter, of one step."""
    output = tmp_path_factory.mktemp("train")
    config = write_stage_config(
        output / "train.json",
        base_model=str(corpus.base),
        train={"device": "cpu", "tracker": "none", "max_steps": 1, "learning_rate": 0.1},
    )
    higgs_pipe.train.run(config, corpus.train_rows, corpus.eval_rows, output)
    return output / "adapter"


def test_speak_finds_the_base_of_an_adapter_and_the_codec_of_the_base(
    adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    speak.run(text="Hi", out=tmp_path / "a.wav", adapter=adapter, max_seconds=1.0)
    adapted, _ = sf.read(tmp_path / "a.wav", dtype="int16")
    of_base = run(tiny_base, tmp_path / "b.wav", text="Hi", max_seconds=1.0)
    codec = tmp_path / "codec"
    shutil.copytree(tiny_base / "audio_tokenizer", codec)
    speak.run(text="Hi", out=tmp_path / "c.wav", adapter=adapter, codec=str(codec), max_seconds=1.0)
    named, _ = sf.read(tmp_path / "c.wav", dtype="int16")
    assert not np.array_equal(adapted, of_base)
    assert np.array_equal(adapted, named)


@pytest.fixture
def package(adapter: Path, tiny_base: Path, tmp_path: Path) -> Path:
    """The adapter with as much of a package's provenance as speaking reads."""
    packaged = tmp_path / "default"
    shutil.copytree(adapter, packaged)
    codec = tmp_path / "codec"
    shutil.copytree(tiny_base / "audio_tokenizer", codec)
    provenance = {
        "base_model": {
            "name": str(tiny_base),
            "revision": None,
            "fingerprint": weight_fingerprint(Pretrained("base", str(tiny_base))),
        },
        "codec": {
            "codec": str(codec),
            "revision": None,
            "fingerprint": weight_fingerprint(Pretrained("codec", str(codec))),
        },
        "config": {"pack": {"pack": {"system_prompt": "Speak.", "clean_text": False}}},
    }
    (packaged / "provenance.json").write_text(json.dumps(provenance))
    return packaged


def test_a_package_sets_codec_system_message_and_cleaning(package: Path, tmp_path: Path) -> None:
    speaker = Speaker.load(adapter=package)
    assert speaker.codec_info.codec == str(tmp_path / "codec")
    assert speaker.system_prompt == "Speak."
    prompt = speaker.prompt(SpeechPrompt("(Hi)"))
    text = speaker.renderer.tokenizer.decode(prompt.input_ids)
    assert "Speak." in text
    assert "(Hi)" in text
    own = Speaker.load(adapter=package, system_prompt="Sing.", clean=True)
    assert own.system_prompt == "Sing."
    ids = own.prompt(SpeechPrompt("(Hi)")).input_ids
    assert "(Hi)" not in own.renderer.tokenizer.decode(ids)


@pytest.mark.parametrize("is_same", [True, False])
def test_the_base_of_a_package_is_found_in_its_results_by_fingerprint(
    package: Path, tiny_base: Path, tmp_path: Path, is_same: bool
) -> None:
    packaged = shutil.copytree(package, tmp_path / "results/adapters/default")
    found = PinnedModel.of(Pretrained("base_model", str(tiny_base)))
    changes = {"name": "moved"} | ({} if is_same else {"fingerprint": "0" * 64})
    (tmp_path / "results/models").mkdir()
    found.model_copy(update=changes).write(tmp_path / "results/models/base_model.json")
    assert adapter_origin(packaged).base == ("moved" if is_same else str(tiny_base))


def test_a_codec_with_a_different_number_of_codebooks_is_refused(
    tiny_base: Path, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = replace(speaker.codec_info, num_codebooks=4)
    monkeypatch.setattr("higgs_pipe.higgs.speaker.load_codec", lambda *_: (None, info))
    with pytest.raises(UserError, match=r"has 4 codebooks, not the 8 "):
        Speaker.load(str(tiny_base))


def test_the_revision_option_overrides_that_of_the_package(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(base: Pretrained) -> None:
        raise Seen(base.revision)

    provenance = json.loads((package / "provenance.json").read_text())
    provenance["base_model"]["revision"] = "of the package"
    (package / "provenance.json").write_text(json.dumps(provenance))
    monkeypatch.setattr("higgs_pipe.higgs.speaker.renderer_of", look)
    for named, expected in (("mine", "mine"), (None, "of the package")):
        with pytest.raises(Seen, match=expected):
            Speaker.load(adapter=package, base_revision=named)


def test_the_codec_revision_option_overrides_that_of_the_package(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(codec: Pretrained, *_: object) -> None:
        raise Seen(f"{codec.name}@{codec.revision}")

    provenance = json.loads((package / "provenance.json").read_text())
    provenance["codec"] |= {"codec": "ada/codec", "revision": "of-the-package"}
    (package / "provenance.json").write_text(json.dumps(provenance))
    monkeypatch.setattr("higgs_pipe.higgs.speaker.load_base", lambda *_: None)
    monkeypatch.setattr("higgs_pipe.higgs.speaker.load_adapter", lambda *_: None)
    monkeypatch.setattr("higgs_pipe.higgs.speaker.load_codec", look)
    with pytest.raises(Seen, match="ada/codec@of-the-package"):
        Speaker.load(adapter=package)
    with pytest.raises(Seen, match="own/codec@mine"):
        Speaker.load(adapter=package, codec="own/codec", codec_revision="mine")


def test_a_damaged_provenance_is_refused(package: Path) -> None:
    (package / "provenance.json").write_text("{}")
    with pytest.raises(UserError, match=r"provenance\.json"):
        Speaker.load(adapter=package)


@pytest.mark.parametrize("part", ["base_model", "codec"])
def test_weights_other_than_in_training_are_refused_unless_given_explicitly(
    package: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    provenance = json.loads((package / "provenance.json").read_text())
    provenance[part]["fingerprint"] = "of other weights"
    (package / "provenance.json").write_text(json.dumps(provenance))
    option = part.removesuffix("_model")
    with pytest.raises(UserError, match=f"--{option}"):
        Speaker.load(adapter=package)
    name = provenance[part].get("name") or provenance[part]["codec"]
    Speaker.load(adapter=package, **{option: name})
    assert [r.levelno for r in caplog.records if name in r.getMessage()] == [logging.WARNING]


def test_the_documented_python_example_speaks(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/speak.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, tmp_path / "results/adapters/default")
    tone(tmp_path / "reference.wav", seconds=1.0)
    exec(code.replace("temperature=0.7", "max_seconds=0.4"), {})
    assert [path.name for path in sorted(tmp_path.glob("*.wav"))] == [
        "0.wav",
        "1.wav",
        "reference.wav",
    ]


@pytest.mark.slow
def test_an_overfitted_base_speaks_its_training_clips_back(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """Three clips from training to WAV: two with a reference, one with a scene."""
    clips = ("clip-04", "clip-05", "clip-06")
    splits = {
        row["clip_id"]: {"split": "train" if row["clip_id"] in clips else "eval"}
        for row in rows_of(corpus)
    }
    few = corpus.changed(tmp_path, splits)
    settings = {"max_tokens": 512, "tasks": {"speech": 0, "cloning": 1}}
    few.pack(tmp_path / "packed", **settings)
    config = write_stage_config(
        tmp_path / "train.json",
        base_model=str(corpus.base),
        train={
            "device": "cpu",
            "tracker": "none",
            "lora": {
                "r": 64,
                "alpha": 128,
                "dropout": 0.0,
                "train_in_full": ["audio_head", "audio_embeddings"],
            },
            "learning_rate": 3e-3,
            "num_epochs": 150,
            "rows_per_step": 8,
            "eval_steps": 150,
        },
    )
    higgs_pipe.train.run(config, few.train_rows, few.train_rows, tmp_path / "train")

    codes = {
        row["clip_id"]: np.asarray(row["codes"])
        for shard in sorted(few.codes_dir.iterdir())
        for row in read_table(shard, codes_spec(8)).to_pylist()
    }
    rows = rows_of(few)
    codec = Speaker.load(adapter=tmp_path / "train/adapter")
    for plan in plans(few, "train", PackConfig.model_validate(settings)):
        (row,) = (rows[clip] for clip in plan.targets)
        references = [rows[reference.clip] for reference in plan.references]
        out = tmp_path / f"{row['clip_id']}.wav"
        speak.run(
            text=row["text"],
            out=out,
            adapter=tmp_path / "train/adapter",
            scene=row["scene"],
            reference=[Path(reference["audio_path"]) for reference in references],
            reference_text=[reference["text"] for reference in references],
            temperature=0.0,
            max_seconds=4.0,
            device="cpu",
        )
        recorded = codes[row["clip_id"]]
        spoken, _ = sf.read(out, dtype="float32")
        assert len(spoken) == 960 * len(recorded)  # it stops where the recording stops
        voices = tuple(codec.voice(r["audio_path"], r["text"]) for r in references)
        (clip,) = codec.speak([SpeechPrompt(row["text"], voices, row["scene"])], GREEDY)
        assert clip.has_stopped
        assert (clip.codes == recorded).all(axis=1).mean() >= 0.95
        written = decode(codec.codec, clip.codes, codec.codec_info)
        assert np.abs(spoken - written.clip(-1, 1)).max() <= 2**-15
