"""Conversations in the layout of inference, and the plain rows to which most of them reduce.

In that layout a reference is a user turn with its text and an assistant turn with its recording,
and the target speech is an assistant turn after the user's text. A conversation that a plain row
can express becomes one; any other keeps its turns.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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


def row_or_conversation(turns: Sequence[SpokenTurn]) -> tuple[Fields, Conversation[Span] | None]:
    """Return the fields of a row for the turns, and the turns if the fields lose something.

    Raises:
        RowFault: No recording is a target.
    """
    turns = [_without_gaps(turn) for turn in _without_echoes(turns)]
    row = _as_row(turns)
    return (_fields(turns), Conversation(tuple(turns))) if row is None else (row, None)


def _as_row(turns: Sequence[SpokenTurn]) -> Fields | None:
    """Return the fields of a row that is equivalent to the turns, if there is one.

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
    """Return the fields of the last target recording."""
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


@dataclass(frozen=True)
class Hints:
    """Texts that a sample gives beside its messages."""

    ref_transcript: str = ""
    target_text: str = ""


def with_references_as_turns(turns: Sequence[SpokenTurn], hints: Hints) -> list[SpokenTurn]:
    """Return the turns with each reference inside a user turn moved to two turns of its own.

    Trainers put a reference's text and recording before the target text in one or several user
    turns, in any order, some with a request in words. The system message, which describes that
    form, is then left out. Ambiguous turns stay as they are.

    Raises:
        RowFault: A request for a reference's voice comes without a recording.
    """
    found: list[SpokenTurn] = []
    user_turns: list[SpokenTurn] = []
    for turn in turns:
        if turn.role == USER:
            user_turns.append(turn)
            continue
        parts = [part for user in user_turns for part in user.parts]
        asked: SpokenTurn = Turn(USER, tuple(parts))
        is_request = any(CLONING_REQUEST.search(text) for text in asked.texts)
        if is_request and not asked.recordings:
            raise RowFault("the text asks for a reference's voice, but there is no reference")
        apart = _apart(asked, turn, hints) if asked.recordings else None
        found += apart or [*user_turns, turn]
        if apart:
            found = [turn for turn in found if turn.role != SYSTEM]
        user_turns = []
    return found + user_turns


def _is_text_last(turn: SpokenTurn) -> bool:
    """Return whether a turn ends with a text.

    Of two texts before a recording, either may be the target.
    """
    parts = [part for part in turn.parts if not isinstance(part, str) or part.strip()]
    return bool(parts) and isinstance(parts[-1], str)


def _apart(asked: SpokenTurn, said: SpokenTurn, hints: Hints) -> list[SpokenTurn] | None:
    """Return the references of a user turn, its text and the answer as turns, or None."""
    references = asked.recordings
    if len(said.recordings) != 1:
        return None
    texts, target = _words_and_target([text for text in asked.texts if text.strip()])
    is_asked_for = bool(target)
    target = said.text or target or hints.target_text
    if target and not is_asked_for:
        same = [i for i, text in enumerate(texts) if text.split() == target.split()]
        if same or len(texts) > len(references):
            texts.pop(same[-1] if same else -1)
    elif not target and hints.ref_transcript and len(references) == 1:
        texts = [text for text in texts if text.split() != hints.ref_transcript.split()]
        target, texts = (texts[0], []) if len(texts) == 1 else ("", texts)
    elif not target and len(texts) == len(references) + 1 and _is_text_last(asked):
        target = texts.pop()
    if len(references) == 1:
        texts = [" ".join(text.strip() for text in texts) or hints.ref_transcript.strip()]
    if not target.strip() or len(texts) != len(references) or not all(texts):
        return None
    turns: list[SpokenTurn] = []
    for words, reference in zip(texts, references, strict=True):
        turns += [text_turn(USER, words.strip()), Turn(ASSISTANT, (reference,))]
    return [*turns, text_turn(USER, target), replace(said, parts=said.recordings)]


def _words_and_target(texts: Sequence[str]) -> tuple[list[str], str]:
    """Return the texts without a request, and the text after the request, if there is one."""
    place = next((i for i, text in enumerate(texts) if CLONING_REQUEST.search(text)), None)
    if place is None:
        return list(texts), ""
    words, target = CLONING_REQUEST.split(texts[place], maxsplit=1)
    others = [*texts[:place], *texts[place + 1 :]]
    if not target.strip() and others[place:]:
        target = others.pop(place)
    return [text for text in (*others, words) if text.strip()], target.strip()


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
