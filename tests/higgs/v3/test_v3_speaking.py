"""Speech by Higgs TTS 3: batches of prompts, short references, long texts, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from helpers import tone

from higgs_pipe.config.settings import Sampling
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.generation import generate
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.speech_prompts import SpeechPrompt, Voice
from higgs_pipe.higgs.v3 import generation
from higgs_pipe.higgs.v3.generation import undelayed
from higgs_pipe.higgs.v3.native import parts_of

GREEDY = Sampling(temperature=0, max_seconds=1)
SAMPLED = Sampling(max_seconds=1, seed=3)


@pytest.fixture(scope="module")
def speaker(v3_base: Path, tiny_base: Path) -> Speaker:
    return Speaker.load(str(v3_base), codec=str(tiny_base / "audio_tokenizer"), device="cpu")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_generation_does_not_depend_on_the_other_prompts_of_a_batch(
    speaker: Speaker, tmp_path: Path, sampling: Sampling
) -> None:
    voice = speaker.voice(tone(tmp_path / "a.wav", 1.5), "As I sound.")
    texts = ["One.", "A much longer second sentence.", "<|emotion:anger|>Three!"]
    prompts = [speaker.prompt(SpeechPrompt(t, v)) for t in texts for v in ((), (voice,))]
    together = generate(speaker.model, prompts, sampling, 25.0, batch_size=6)
    alone = [generate(speaker.model, [prompt], sampling, 25.0)[0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.codes, other.codes)
        assert one.has_stopped == other.has_stopped
    assert len({tuple(g.codes[0]) for g in together}) == len(prompts)


def test_positions_of_a_padded_prompt_start_at_0(speaker: Speaker) -> None:
    prompts = [speaker.prompt(SpeechPrompt(text)) for text in ("One.", "A longer second text.")]
    model: Any = speaker.model
    body = parts_of(model).body
    seen: list[list[list[int]]] = []
    hook = body.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["position_ids"].tolist()), with_kwargs=True
    )
    generate(model, prompts, Sampling(temperature=0, max_seconds=0.04), 25.0, batch_size=2)
    hook.remove()
    for row, prompt in enumerate(prompts):
        length = len(prompt.input_ids)
        assert seen[0][row][-length:] == list(range(length))
        assert [step[row] for step in seen[1:]] == [[length + n] for n in range(len(seen) - 1)]


def test_another_seed_gives_another_take(speaker: Speaker) -> None:
    samplings = [Sampling(max_seconds=0.2, seed=seed) for seed in (3, 3, 4)]
    one, same, other = (speaker.speak(["One."], sampling)[0].codes for sampling in samplings)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_codes_are_sampled_in_float32_over_a_bfloat16_base(
    v3_base: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()
    force = generation._with_forced_boc

    def look(scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        dtypes.add(scores.dtype)
        return force(scores, *rest)

    monkeypatch.setattr(generation, "_with_forced_boc", look)
    codec = str(tiny_base / "audio_tokenizer")
    halved = Speaker.load(str(v3_base), codec=codec, device="cpu", dtype="bfloat16")
    assert halved.model.dtype == torch.bfloat16
    halved.speak(["One."], Sampling(max_seconds=0.04))
    assert dtypes == {torch.float32}


def test_speech_has_the_length_of_its_codes_and_finite_samples(speaker: Speaker) -> None:
    (spoken,) = speaker.speak(["One."], SAMPLED)
    assert spoken.codes.shape == (25, 8)  # the cap
    assert spoken.codes.max() < 1024
    assert len(spoken.samples) == 25 * 960
    codes = torch.from_numpy(spoken.codes.T.astype(np.int64))[None]
    assert np.array_equal(spoken.samples, speaker.codec.decode(codes).audio_values.flatten())


def test_a_short_reference_is_padded_to_a_second_before_encoding(
    speaker: Speaker, tmp_path: Path
) -> None:
    short = speaker.voice(tone(tmp_path / "a.wav", 0.5), "Oh.")
    assert short.codes.shape == (25, 8)
    padded = np.zeros(24_000, np.float32)
    samples, _ = sf.read(tmp_path / "a.wav", dtype="float32")
    padded[: len(samples)] = samples
    sf.write(tmp_path / "b.wav", padded, 24_000)
    assert np.array_equal(speaker.voice(tmp_path / "b.wav", "Oh.").codes, short.codes)


def test_delivery_tags_are_repeated_before_each_piece_of_a_long_text(speaker: Speaker) -> None:
    tags = speaker.renderer.rules.delivery_tags
    text = "<|emotion:anger|> <|style:shouting|>First one. <|sfx:sigh|>Uh, second. Third."
    pieces = [piece.text for piece in SpeechPrompt(text).pieces(12, tags)]
    assert pieces == [
        "<|emotion:anger|><|style:shouting|>First one.",
        "<|emotion:anger|><|style:shouting|><|sfx:sigh|>Uh, second.",
        "<|emotion:anger|><|style:shouting|>Third.",
    ]


VOICE = Voice("So.", np.zeros((25, 8), np.int16))
REFUSED: dict[str, tuple[SpeechPrompt, str]] = {
    "scene": (SpeechPrompt("One.", scene="A hall."), "scene"),
    "unknown tag": (SpeechPrompt("<|emotion:angry|>One."), r"nearest tag is <\|emotion:anger\|>"),
    "speakers": (SpeechPrompt("[SPEAKER0] One. [SPEAKER1] Two."), r"\[SPEAKER0\], a mark of Higgs"),
    "command": (SpeechPrompt("One.<|audio|>"), r"contains <\|audio\|>"),
    "voices": (SpeechPrompt("One.", (VOICE, VOICE)), "2 voices"),
    "tag of a reference": (
        SpeechPrompt("One.", (Voice("<|sfx:sob|>So.", VOICE.codes),)),
        "contains <.sfx:sob",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_v3_cannot_speak_is_refused(speaker: Speaker, name: Any) -> None:
    prompt, fact = REFUSED[name]
    with pytest.raises(UserError, match=fact):
        speaker.speak([prompt], GREEDY)


def test_a_system_message_is_refused(v3_base: Path) -> None:
    with pytest.raises(UserError, match="system_prompt is a system message"):
        Speaker.load(str(v3_base), system_prompt="Speak softly.")


def test_a_frame_with_a_special_code_is_replaced_by_zeros() -> None:
    """BOC is 8, EOC 9; of three frames the second has BOC and EOC for codes."""
    frames = np.array([[1, 8, 3, 9], [8, 2, 9, 4]], np.int16).T
    assert undelayed(frames, num_frames=3, stream_eos=9).tolist() == [[1, 2], [0, 0], [3, 4]]
