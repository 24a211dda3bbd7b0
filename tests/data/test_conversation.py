"""Conversations: their texts, their form in a table, and the one in which a text is spoken."""

from __future__ import annotations

import json

from higgs_pipe.data.conversation import Conversation, Turn, speech_conversation
from higgs_pipe.data.spans import Span

TURNS: tuple[Turn[Span], ...] = (
    Turn("scene", ("A café.",)),
    Turn("user", (" One ", Span("r.wav"), "\n", "two.")),
    Turn("assistant", (Span("a.wav", 1.0, 2.0),)),
    Turn("user", (" ",)),
    Turn("assistant", (Span("b.wav"), "Own words."), is_target=True),
    Turn("assistant", (Span("c.wav"),), is_target=True),
    Turn("assistant", (Span("d.wav"),)),
)


def test_the_text_of_a_turn_is_its_texts_with_a_space_between() -> None:
    assert [turn.text for turn in TURNS[:4]] == ["A café.", "One two.", "", ""]


def test_the_text_of_a_recording_is_its_own_or_the_last_that_was_asked_for() -> None:
    found = [
        (heard.turn_number, heard.recording.audio_path, heard.text, heard.is_target, heard.is_own)
        for heard in Conversation((Turn("user", ("Zero.",)), *TURNS)).utterances()
    ]
    assert found == [
        (3, "r.wav", "One two.", False, False),
        (4, "a.wav", "One two.", False, False),
        (6, "b.wav", "Own words.", True, False),
        (7, "c.wav", "One two.", True, True),
        (8, "d.wav", "One two.", False, False),
    ]


def test_a_conversation_is_the_same_after_json() -> None:
    conversation = Conversation(TURNS)
    written = conversation.to_json()
    assert Conversation.from_json(written, Span.of) == conversation
    assert "A café." in written
    assert [turn["is_target"] for turn in json.loads(written)] == [False] * 4 + [True] * 2 + [False]


def test_replaced_texts_and_recordings_leave_targets_as_they_are() -> None:
    replaced = Conversation(TURNS).map_texts(str.strip).map_recordings(lambda _: Span("x.wav"))
    assert replaced.turns[1] == Turn("user", ("One", Span("x.wav"), "", "two."))
    assert [turn.is_target for turn in replaced.turns] == [turn.is_target for turn in TURNS]


def test_only_the_text_to_speak_is_cleaned() -> None:
    target = Span("t.wav")
    references = [("r.", Span("r.wav"))]
    spoken = speech_conversation("do.", ("a.", "b."), references, "t.", target, str.upper)
    assert spoken.turns == (
        Turn("system", ("do.",)),
        Turn("scene", ("a.", "b.")),
        Turn("user", ("r.",)),
        Turn("assistant", (Span("r.wav"),)),
        Turn("user", ("T.",)),
        Turn("assistant", (target,), is_target=True),
    )
