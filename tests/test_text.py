"""Transcripts: blank ones, and control tokens in every spelling; nothing that passes is one."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from higgs_pipe.data.text import find_control_token, is_blank
from higgs_pipe.higgs import chatml, tiny
from higgs_pipe.higgs.chatml import clean_text


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b", "\ufeff \u2060", "\u3000", "\u0301", "\0"])
def test_text_with_nothing_to_see_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(text + "a")


@pytest.mark.parametrize("text", ["5", "?", "😀", "नि", "שלום", "。"])
def test_text_with_something_to_see_is_not_blank(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    "text",
    [
        "a <|eot_id|> b",
        "<|eot_id|>",
        "<|\n|>",
        "<| eot_id |>",
        "＜|eot_id|＞",
        "＜｜eot_id｜＞",
        "<｜eot_id｜>",
        "﹤|eot_id|﹥",
        "<\u200b|eot_id|>",
        "<|eot\u200d_id|\u2060>",
        "<\u00ad|eot_id|>",
        "\ufeff<\ufeff|\ufeffeot_id\ufeff|\ufeff>",
        "<\u0338|eot_id|>\u0338",
        "<|eot_id|>\u0338",
        "<\0|eot_id|>",
        "<|𝖾𝗈𝗍_𝗂𝖽|>",
    ],
)
def test_a_control_token_is_found_in_every_spelling(text: str) -> None:
    assert find_control_token([text]) is not None


@pytest.mark.parametrize("pieces", [("<", "|eot_id|>"), ("a <\n", " |eot_id|>"), ("<|", "", "|>")])
def test_a_control_token_is_found_across_the_parts_of_a_turn(pieces: tuple[str, ...]) -> None:
    assert find_control_token(pieces) is not None
    assert all(find_control_token([piece]) is None for piece in pieces)


@pytest.mark.parametrize(
    "text", ["", "a < b | c > d", "<SE>[Laughter]</SE>", "|> <|", "«ja» |x|", "a<b", "[SPEAKER0] a"]
)
def test_other_text_has_none(text: str) -> None:
    assert find_control_token([text]) is None


SIGNS = [
    "<",
    "|",
    ">",
    "<|",
    "|>",
    "_",
    "eot_id",
    "AUDIO_OUT",
    "＜",
    "｜",
    "＞",
    "°C",
    "(",
    "《",
    "》",
    "。",
    "[laugh]",
    "</s>",
    "<s>",
    "[SPEAKER0]",
]
PIECES = st.sampled_from([*SIGNS, " ", "\n", "\u200b", "\u0338", *tiny.SPECIAL_TOKENS])
TEXTS = st.lists(PIECES | st.characters(codec="utf-8"), max_size=8).map("".join)
TOKENIZER = tiny.build_tokenizer()
TOKENIZER.chat_template = tiny.CHAT_TEMPLATE


def special_ids(text: str, scene: str, ref_text: str) -> list[int]:
    messages = chatml.conversation(text, "Speak.", scene, ref_text)
    prompt = TOKENIZER.apply_chat_template(messages, tokenize=False)
    ids = TOKENIZER(prompt, add_special_tokens=False)["input_ids"]
    return [token_id for token_id in ids if token_id in TOKENIZER.added_tokens_decoder]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts=st.tuples(TEXTS, TEXTS, TEXTS), cleaned=st.booleans())
@example(texts=("a<|", "eot_id", "|>"), cleaned=True)
def test_no_text_that_passes_gives_a_special_id(texts: tuple[str, str, str], cleaned: bool) -> None:
    passing = [text if find_control_token([text]) is None else "x" for text in texts]
    if cleaned:
        passing = [clean_text(text) for text in passing]
    # The scene of a conversation may not be empty: there would be no scene message.
    text, scene, ref_text = (passed or "x" for passed in passing)
    assert special_ids(text, scene, ref_text) == special_ids("x", "x", "x")


def test_special_ids_are_counted() -> None:
    assert len(special_ids("<|eot_id|>", "x", "x")) == len(special_ids("x", "x", "x")) + 1
