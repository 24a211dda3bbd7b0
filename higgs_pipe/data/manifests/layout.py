"""Conversations in the layout of inference, and the plain rows that most of them are.

In that layout a reference is a user turn with its words and an assistant turn with its recording,
and the speech to learn is an assistant turn after the user's text. A conversation that a row of a
table can express becomes one; any other keeps its turns.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT
from higgs_pipe.data.conversation import ASSISTANT, SCENE, SYSTEM, USER, Conversation, Turn
from higgs_pipe.data.manifests.fields import Fields, RowFault
from higgs_pipe.data.spans import Span

# The words of community trainers that ask for a reference's voice; the target text follows.
CLONING_REQUEST = re.compile(
    r"please generate speech for (?:the )?given text in (?:the )?reference audio['’]s voice"
    r"\s*[:：]?",
    re.IGNORECASE,
)
SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")

SpokenTurn = Turn[Span]


def arranged(turns: Sequence[SpokenTurn]) -> tuple[Fields, Conversation[Span] | None]:
    """Return the fields of a row for the turns, and the turns where the fields do not say it all.

    Raises:
        RowFault: No recording is a target.
    """
    turns = [_without_gaps(turn) for turn in _without_echoes(turns)]
    row = _as_row(turns)
    return (_fields(turns), Conversation(tuple(turns))) if row is None else (row, None)


def _as_row(turns: Sequence[SpokenTurn]) -> Fields | None:
    """Return the fields of a row that says the same as the turns, if there is one.

    There is one for speech of a single voice, with or without one whole recording as its
    reference, under the model's usual system message or none.
    """
    head = [turn for turn in turns if turn.role in (SYSTEM, SCENE)]
    body = turns[len(head) :]
    pairs = list(zip(body[::2], body[1::2], strict=False))
    if len(body) not in (2, 4) or not all(_is_speech(*pair) for pair in pairs):
        return None
    if [said.is_target for _, said in pairs] != [False, True][-len(pairs) :]:
        return None
    if any(turn.role == SYSTEM and turn.text != DEFAULT_SYSTEM_PROMPT for turn in head):
        return None
    fields = _fields(turns)
    if scene := next((turn.text for turn in head if turn.role == SCENE), None):
        fields["scene"] = scene
    if len(pairs) == 2:
        words, (reference,) = pairs[0][0].text, pairs[0][1].recordings
        if not reference.is_whole_file:
            return None
        fields |= {"ref_text": words, "ref_audio": reference.audio_path}
    return fields


def _is_speech(asked: SpokenTurn, said: SpokenTurn) -> bool:
    """Return whether a user's text is followed by one recording of it, in one voice."""
    return (
        (asked.role, said.role) == (USER, ASSISTANT)
        and not asked.recordings
        and len(said.parts) == len(said.recordings) == 1
        and not SPEAKER_TAG.search(asked.text)
    )


def _fields(turns: Sequence[SpokenTurn]) -> Fields:
    """Return the fields of the last recording to learn."""
    own = next((u for u in Conversation(tuple(turns)).utterances() if u.is_own), None)
    if own is None:
        raise RowFault(
            "no target has audio: none of the assistant's messages from `start_index` on (without "
            "it, the last one)"
        )
    return {
        "audio": own.recording.audio_path,
        "text": own.text,
        "start_seconds": own.recording.start_seconds,
        "end_seconds": own.recording.end_seconds,
    }


def split_cloning_request(turns: list[SpokenTurn], ref_transcript: Any) -> list[SpokenTurn]:
    """Return the community's cloning form with turns of its own for the reference, others as is.

    Its one user turn holds the reference's text and recording, in any order, and the request with
    the target text. Its system message, which describes that form, is left out.
    """
    match [turn for turn in turns if turn.role not in (SYSTEM, SCENE)]:
        case [Turn(role="user") as user, Turn(role="assistant") as said] if any(
            CLONING_REQUEST.search(text) for text in user.texts
        ):
            pass
        case _:
            return turns
    if len(user.recordings) != 1 or len(said.recordings) != 1:
        raise RowFault(
            "speech in a reference's voice needs one recording of the user and one of the "
            f"assistant, found {len(user.recordings)} and {len(said.recordings)}"
        )
    words, target = _words_and_target(user)
    words = words or (ref_transcript if isinstance(ref_transcript, str) else "")
    if not words.strip():
        raise RowFault(
            "the reference recording has no words; put what it says before it, as a text of its own"
        )
    return [
        *(turn for turn in turns if turn.role == SCENE),
        text_turn(USER, words.strip()),
        Turn(ASSISTANT, user.recordings),
        text_turn(USER, said.text or target),
        replace(said, parts=said.recordings),
    ]


def _words_and_target(user: SpokenTurn) -> tuple[str, str]:
    """Return what the reference says, and the text after the request."""
    texts = [text for text in user.texts if text.strip()]
    place = next(i for i, text in enumerate(texts) if CLONING_REQUEST.search(text))
    words, target = CLONING_REQUEST.split(texts[place], maxsplit=1)
    others = texts[:place] + texts[place + 1 :]
    if not target.strip() and others[place:]:
        target = others.pop(place)
    return " ".join(text.strip() for text in (*others, words) if text.strip()), target.strip()


def _without_echoes(turns: Sequence[SpokenTurn]) -> list[SpokenTurn]:
    """Return the turns without transcripts beside recordings that repeat the user's text."""
    return [
        replace(turn, parts=turn.recordings)
        if (before.role, turn.role) == (USER, ASSISTANT)
        and turn.recordings
        and turn.text.split() == before.text.split()
        else turn
        for before, turn in itertools.pairwise([Turn(USER, ()), *turns])
    ]


def _without_gaps(turn: SpokenTurn) -> SpokenTurn:
    """Return the turn with adjacent texts joined, and without blank ones beside other parts."""
    parts: list[str | Span] = []
    for is_text, group in itertools.groupby(turn.parts, lambda part: isinstance(part, str)):
        joined = Turn(turn.role, tuple(group))
        if not is_text:
            parts += joined.parts
        elif joined.text:
            parts.append(joined.text)
    return replace(turn, parts=tuple(parts) or ("",))


def text_turn(role: str, text: str) -> SpokenTurn:
    """Return a turn with a text alone."""
    return Turn(role, (text,))


def recording_turn(path: str, is_target: bool = False) -> SpokenTurn:
    """Return an assistant turn with a whole recording."""
    return Turn(ASSISTANT, (Span(os.fspath(Path(path))),), is_target)
