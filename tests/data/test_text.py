"""Transcripts: blank text and control tokens of any spelling are found; accepted text has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import run_validation, tone
from hypothesis import example, given, settings
from hypothesis import strategies as st

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import Conversation, Turn
from higgs_pipe.data.packing.turns import Recording
from higgs_pipe.data.specs import CLIPS, REJECTED
from higgs_pipe.data.tables import read_table
from higgs_pipe.data.text import bare_words, find_control_token, is_blank
from higgs_pipe.higgs.prompts import Prompt
from higgs_pipe.higgs.v2 import miniature
from higgs_pipe.higgs.v2.renderer import ChatRenderer
from higgs_pipe.higgs.v2.text_cleaning import clean_text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "\u200b",
        "\ufeff \u2060",
        "\u3000",
        "\u0301",
        "\0",
        "\u115f\u1160",
        "\u3164",
        "\uffa0",
        "\u2800",
        "\ue000",
        "\u0378",
    ],
)
def test_text_without_visible_characters_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(text + "a")


@pytest.mark.parametrize("text", ["5", "?", "😀", "नि", "שלום", "。"])
def test_text_with_a_visible_character_is_not_blank(text: str) -> None:
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
        "<\u20dd|eot_id|>",
        "《|eot_id|》",
    ],
)
def test_a_control_token_is_found_in_every_spelling(text: str) -> None:
    assert find_control_token([text]) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Straße, NAÏVE!", "strasse naïve"),
        ("ＡＢ\u3000１", "ab 1"),
        ("one<|x\ny|>two", "one two"),
        ("one\0two", "one two"),
        ("3 € + 4", "3 € + 4"),
        (" “It’s—late…” ", "it s late"),
    ],
)
def test_bare_words_have_neither_case_width_punctuation_nor_tokens(text: str, words: str) -> None:
    assert bare_words(text) == words


@pytest.mark.parametrize("pieces", [("<", "|eot_id|>"), ("a <\n", " |eot_id|>"), ("<|", "", "|>")])
def test_a_control_token_is_found_across_the_parts_of_a_turn(pieces: tuple[str, ...]) -> None:
    assert find_control_token(pieces) is not None
    assert all(find_control_token([piece]) is None for piece in pieces)


@pytest.mark.parametrize(
    "text", ["", "a < b | c > d", "<SE>[Laughter]</SE>", "|> <|", "«ja» |x|", "a<b", "[SPEAKER0] a"]
)
def test_text_that_only_resembles_a_control_token_is_accepted(text: str) -> None:
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
PIECES = st.sampled_from([*SIGNS, " ", "\n", "\u200b", "\u0338", *miniature.SPECIAL_TOKENS])
TEXTS = st.lists(PIECES | st.characters(codec="utf-8"), max_size=8).map("".join)


@pytest.fixture(scope="module")
def renderer(tiny_base: Path) -> ChatRenderer:
    return ChatRenderer(Pretrained("base_model", str(tiny_base)))


def special_ids(renderer: ChatRenderer, text: str, scene: str, ref_text: str) -> list[int]:
    """The special ids of a sample's prompt, in order."""
    reference = [Turn("user", (ref_text,)), Turn("assistant", (Recording((0,)),))]
    target = [Turn("user", (text,)), Turn("assistant", (Recording((1,)),), is_target=True)]
    head: list[Turn] = [Turn("system", ("Speak.",)), Turn("scene", (scene,))]
    [prompt] = renderer.prompts([Conversation((*head, *reference, *target))])
    assert isinstance(prompt, Prompt)
    return [i for i in prompt.ids.tolist() if i in renderer.tokenizer.added_tokens_decoder]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts=st.tuples(TEXTS, TEXTS, TEXTS), cleaned=st.booleans())
@example(texts=("a<|", "eot_id", "|>"), cleaned=True)
@example(texts=("a《|eot_id|》", "b", "c"), cleaned=True)
def test_accepted_text_never_yields_special_token_ids(
    renderer: ChatRenderer, texts: tuple[str, str, str], cleaned: bool
) -> None:
    passing = [
        "x" if is_blank(text) or find_control_token([text]) is not None else text for text in texts
    ]
    said = [clean_text(text) if cleaned else text for text in passing]
    assert special_ids(renderer, *said) == special_ids(renderer, "x", "x", "x")


def test_a_control_token_let_through_would_add_a_special_token_id(renderer: ChatRenderer) -> None:
    num_special = len(special_ids(renderer, "x", "x", "x"))
    assert len(special_ids(renderer, "a <|eot_id|>", "x", "x")) == num_special + 1


# --- Through the stages ---------------------------------------------------------------------------


def validated(folder: Path, samples: list[dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """The accepted clips' texts by their ids, and the rejected rows' reasons and messages."""
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (folder / "m.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = {"max_rejected_fraction": 1.0}
    data = run_validation(folder, manifest=str(folder / "m.jsonl"), validate=settings)
    clips = read_table(data / "clips.parquet", CLIPS).to_pylist()
    rejected = read_table(data / "rejected.parquet", REJECTED).to_pylist()
    texts = {clip["clip_id"]: clip["text"] for clip in clips}
    return texts, [f"{row['reason']}: {row['message']}" for row in rejected]


def test_text_in_any_script_is_accepted_in_nfc(tmp_path: Path) -> None:
    texts = ["שלום \u202bעולם", "مرحبا", "今天天气很好。", "สวัสดี", "12 345", "Well 😀", "e\u0301"]
    for n in range(len(texts)):
        tone(tmp_path / f"{n}.wav", seconds=1, pitch_hz=200 + 50 * n)
    samples = [{"audio": f"{n}.wav", "text": text} for n, text in enumerate(texts)]
    found = {str(n): text for n, text in enumerate([*texts[:-1], "\u00e9"])}
    assert validated(tmp_path, samples) == (found, [])


def test_a_control_token_in_any_text_of_a_prompt_rejects_the_row(tmp_path: Path) -> None:
    for n in range(8):
        tone(tmp_path / f"{n}.wav", seconds=1, pitch_hz=200 + 50 * n)
    token = "＜|eot_id|>"
    bad: list[dict[str, Any]] = [
        {"text": token},
        {"scene": token},
        {"speaker": token},
        {"ref_audio": "7.wav", "ref_text": token},
    ]
    good = [{"audio": f"{n}.wav", "text": f"Good {n}."} for n in (5, 6)]
    rows = [{"audio": f"{n}.wav", "text": f"Bad {n}."} | fault for n, fault in enumerate(bad)]
    texts, reasons = validated(tmp_path, [*good, *rows])
    assert list(texts) == ["5", "6"]
    assert [reason.split(";")[0] for reason in reasons] == [
        f"control_token: `{key}` contains <|eot_id|>"
        for key in ("text", "scene", "speaker", "ref_text")
    ]


def test_a_control_token_across_the_parts_of_a_turn_rejects_the_conversation(
    tmp_path: Path,
) -> None:
    for n in range(3):
        tone(tmp_path / f"{n}.wav", seconds=1, pitch_hz=200 + 50 * n)

    def sample(n: int, *pieces: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": piece} for piece in pieces]
        said = [{"type": "audio", "audio_url": f"{n}.wav"}]
        question = {"role": "user", "content": [*parts, {"type": "text", "text": f"Say {n}."}]}
        brief = {"role": "system", "content": "Be brief."}
        return {"messages": [brief, question, {"role": "assistant", "content": said}]}

    samples = [sample(0, "Well."), sample(1, "Now."), sample(2, "a <|eot", "_id|> b")]
    texts, reasons = validated(tmp_path, samples)
    assert len(texts) == 2
    assert len(reasons) == 1
    assert reasons[0].startswith("control_token: turn 2 contains <|eot")
