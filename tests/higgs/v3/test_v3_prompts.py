"""Prompts of Higgs TTS 3 compared with ids written by hand, as its servers build them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import Conversation, Turn
from higgs_pipe.data.packing.turns import Recording
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.family import FAMILIES
from higgs_pipe.higgs.prompts import NotRendered, Prompt, PromptRenderer, RenderError
from higgs_pipe.higgs.renderers import RENDERERS, renderer_of
from higgs_pipe.higgs.rules import RULES

AUDIO = Recording((0,))
SYSTEM: Turn[Recording] = Turn("system", (DEFAULT_SYSTEM_PROMPT,))


@pytest.fixture(scope="module")
def renderer(v3_base: Path) -> PromptRenderer:
    return renderer_of(Pretrained("base_model", str(v3_base)))


def asked(text: str) -> Turn[Recording]:
    return Turn("user", (text,))


def heard(*, is_target: bool) -> Turn[Recording]:
    return Turn("assistant", (AUDIO,), is_target)


def talk(*said: tuple[str, bool]) -> Conversation[Recording]:
    """A conversation of texts, each with whether its recording is a target."""
    pairs = [(asked(text), heard(is_target=is_target)) for text, is_target in said]
    return Conversation((SYSTEM, *(turn for pair in pairs for turn in pair)))


def ids_by_hand(renderer: PromptRenderer, *pieces: str | None) -> list[int]:
    """Ids of pieces of text and of tokens; None stands for a recording."""
    ids: list[int] = []
    for piece in pieces:
        encoded = renderer.tokenizer.encode(piece or "", add_special_tokens=False)
        ids += encoded if piece is not None else [renderer.shape.audio_token_id]
    return ids


CONVERSATIONS: dict[str, tuple[Conversation[Recording], tuple[str | None, ...], list[bool]]] = {
    "speech": (
        talk(("Well, good morning.", True)),
        ("<|tts|>", "<|text|>", "Well, good morning.", "<|audio|>", None),
        [True],
    ),
    "cloning": (
        talk(("As I sound.", False), (" Now this. ", True)),
        (
            *("<|tts|>", "<|ref_text|>", "As I sound.", "<|ref_audio|>", None),
            *("<|text|>", "Now this.", "<|audio|>", None),
        ),
        [False, True],
    ),
    "several chunks": (
        talk(("As I sound.", False), ("One.", True), ("Two.", False), ("Three.", True)),
        (
            *("<|tts|>", "<|ref_text|>", "As I sound.", "<|ref_audio|>", None),
            *("<|text|>", "One.", "<|audio|>", None, "<|text|>", "Two.", "<|audio|>", None),
            *("<|text|>", "Three.", "<|audio|>", None),
        ),
        [False, True, False, True],
    ),
    "tags": (
        talk(("<|emotion:anger|>No! <|sfx:sigh|>Uh.", True)),
        (
            *("<|tts|>", "<|text|>", "<|emotion:anger|>", "No! ", "<|sfx:sigh|>", "Uh."),
            *("<|audio|>", None),
        ),
        [True],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_match_a_hand_written_server_prompt_and_no_text_is_a_label(
    renderer: PromptRenderer, name: str
) -> None:
    conversation, pieces, is_target = CONVERSATIONS[name]
    prompt = renderer.prompt(conversation)
    assert prompt.ids.tolist() == ids_by_hand(renderer, *pieces)
    assert (prompt.labels == -100).all()
    assert prompt.is_target == tuple(is_target)


def test_a_tag_is_one_token(renderer: PromptRenderer) -> None:
    prompt = renderer.prompt(CONVERSATIONS["tags"][0])
    assert prompt.ids[2] == renderer.tokenizer.get_vocab()["<|emotion:anger|>"]


def test_cleaning_strips_only_outer_white_space(renderer: PromptRenderer) -> None:
    assert renderer.clean("\n Two  words. \t") == "Two  words."


def test_prompts_rendered_in_a_batch_match_those_rendered_one_by_one(
    renderer: PromptRenderer,
) -> None:
    conversations = [conversation for conversation, _, _ in CONVERSATIONS.values()]
    refused = Conversation((Turn("scene", ("A hall.",)), *conversations[0].turns))
    *found, fault = renderer.prompts([*conversations, refused])
    assert isinstance(fault, NotRendered)
    for conversation, prompt in zip(conversations, found, strict=True):
        assert isinstance(prompt, Prompt)
        assert np.array_equal(prompt.ids, renderer.prompt(conversation).ids)


TARGET = heard(is_target=True)
REFUSED: dict[str, tuple[list[Turn[Recording]], str]] = {
    "a scene": ([Turn("scene", ("A hall.",)), asked("One."), TARGET], "scene"),
    "two speakers": ([asked("[SPEAKER0] One.\n[SPEAKER1] Two."), TARGET], "speakers"),
    "two references": (
        [*talk(("A.", False), ("B.", False)).turns, asked("One."), TARGET],
        "2 recordings",
    ),
    "two texts in a row": ([asked("One."), asked("Two."), TARGET], "two texts"),
    "two answers to a text": ([asked("One."), TARGET, TARGET], "no text of its own"),
    "an answer in words": ([asked("One."), Turn("assistant", ("Yes.",)), TARGET], "not one rec"),
    "no target": ([asked("One."), heard(is_target=False)], "no assistant turn is a target"),
    "nothing answers": ([asked("One."), TARGET, asked("Two.")], "nothing answers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_conversation_no_server_would_send_is_refused_with_the_reason(
    renderer: PromptRenderer, name: str
) -> None:
    turns, fact = REFUSED[name]
    with pytest.raises(RenderError, match=fact):
        renderer.prompt(Conversation(tuple(turns)))


def test_frames_replace_the_placeholders(renderer: PromptRenderer) -> None:
    prompt = renderer.prompt(CONVERSATIONS["cloning"][0])
    codes = [np.arange(8 * n).reshape(n, 8).astype(np.int16) for n in (3, 5)]
    inputs = renderer.model_inputs([prompt], codes)
    assert len(inputs.input_ids) == renderer.sample_length(prompt, [3, 5])
    is_audio = inputs.input_ids == renderer.shape.audio_token_id
    assert is_audio.sum() == len(inputs.audio_input_ids) == (3 + 7) + (5 + 7)
    for start, recording in ((0, codes[0]), (10, codes[1])):
        for t in range(len(recording)):
            for k in range(8):
                assert inputs.audio_input_ids[start + t + k, k] == recording[t, k]
    assert (inputs.audio_labels[:10] == -100).all()
    assert inputs.audio_labels[10].tolist() == [0, *[-100] * 7]


def test_a_tokenizer_without_a_tag_is_refused(
    v3_base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    for path in v3_base.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace("<|sfx:sigh|>", "<|unknown_9|>"))
    with pytest.raises(UserError, match=r"lacks 1 tokens of Higgs TTS 3, such as <\|sfx:sigh"):
        renderer_of(Pretrained("base_model", str(tmp_path)))


def test_validation_and_renderers_share_the_rules_of_each_family() -> None:
    assert {model_type: renderer.rules for model_type, renderer in RENDERERS.items()} == RULES
    assert [family.name for family in FAMILIES] == [rules.model for rules in RULES.values()]
