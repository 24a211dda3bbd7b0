"""Conversations as Boson's trainers know them, and the plain rows that most of them are.

A sample is a list of messages; what it says is brought into the layout of inference: a reference
is a user's turn with its words and an assistant's turn with its recording, and the speech to learn
is an assistant's turn after the user's text. What a row of a table can say then is made one;
everything else keeps its turns.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT
from higgs_pipe.data.conversation import ASSISTANT, SCENE, SYSTEM, USER, Conversation, Turn
from higgs_pipe.data.manifests.values import NotRead, end_of, is_number, is_whole_number, shown
from higgs_pipe.data.spans import Span

# The model's usual way to put a scene into the system message.
SCENE_IN_SYSTEM = re.compile(
    r"(?P<system>.*?)<\|scene_desc_start\|>(?P<scene>.*?)<\|scene_desc_end\|>\s*", re.DOTALL
)
# The words in which the community's trainers ask for a reference's voice; the target text follows.
CLONING_REQUEST = re.compile(
    r"please generate speech for (?:the )?given text in (?:the )?reference audio['’]s voice"
    r"\s*[:：]?",
    re.IGNORECASE,
)
SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")
FILE_ADDRESS = re.compile(r"^file:(?:/{2}(?:localhost)?)?(?=/[^/])", re.IGNORECASE)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

SpokenTurn = Turn[Span]


def read_chatml(sample: Mapping[str, Any]) -> tuple[dict[str, Any], Conversation[Span] | None]:
    """A sample with ``messages`` as the fields of a row, and its turns where those say more.

    Targets are the assistant's turns from the message ``start_index`` on, counted from 0, or the
    last one. The paths are as written.

    Raises:
        NotRead: It is no conversation, or none with speech to learn.
    """
    misc = sample.get("misc")
    turns = _turns(sample)
    turns = _rewritten(turns, misc.get("ref_transcript") if isinstance(misc, dict) else None)
    turns = [_without_gaps(turn) for turn in _without_echoes(turns)]
    row = as_row(turns)
    return (_fields(turns), Conversation(tuple(turns))) if row is None else (row, None)


def read_ref_speakers(
    text: str, audio: str, scene: str | None, ref_speakers: Any
) -> tuple[dict[str, Any], Conversation[Span] | None]:
    """An older trainer's sample with a reference for each speaker, as :func:`read_chatml`.

    Raises:
        NotRead: A reference is not whole, or it cannot be told who speaks.
    """
    references: dict[str, tuple[str, str]] = {}
    for index, entry in enumerate(ref_speakers if isinstance(ref_speakers, list) else [None]):
        match entry:
            case {"ref_audio_file": str(path), "ref_transcript": str(words)} if (
                path.strip() and words.strip()
            ):
                tag = entry.get("speaker_tag") or f"[SPEAKER{index}]"
            case _:
                raise NotRead(
                    f"`ref_speakers[{index}]`: expected an object with `ref_audio_file` and "
                    "`ref_transcript`"
                )
        if not (isinstance(tag, str) and SPEAKER_TAG.fullmatch(tag)) or tag in references:
            raise NotRead(
                f"`ref_speakers[{index}]`: `speaker_tag` must be [SPEAKER{index}] or another "
                f"number, each once, found {shown(tag)}"
            )
        references[tag] = words.removeprefix(tag).strip(), path
    tags = set(SPEAKER_TAG.findall(text))
    if unknown := sorted(tags - references.keys()):
        raise NotRead(f"the text has {unknown[0]}, and `ref_speakers` has no reference for it")
    if len(references) > 1 and not tags:
        raise NotRead(
            f"there are {len(references)} `ref_speakers`, and no tag such as [SPEAKER0] in the "
            "text says who speaks"
        )
    turns = [_turn(SCENE, scene)] if scene and scene.strip() else []
    for tag, (words, path) in references.items():
        turns += [_turn(USER, f"{tag} {words}" if tags else words), _recording(path)]
    turns += [_turn(USER, text), replace(_recording(audio), is_target=True)]
    row = as_row(turns)
    return (_fields(turns), Conversation(tuple(turns))) if row is None else (row, None)


def as_row(turns: Sequence[SpokenTurn]) -> dict[str, Any] | None:
    """The fields of a row that says the same as the turns, if there is one.

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
    """Whether a user's text is followed by one recording of it, in one voice."""
    return (
        (asked.role, said.role) == (USER, ASSISTANT)
        and not asked.recordings
        and len(said.parts) == len(said.recordings) == 1
        and not SPEAKER_TAG.search(asked.text)
    )


def _fields(turns: Sequence[SpokenTurn]) -> dict[str, Any]:
    """Those of the last recording to learn."""
    own = next((u for u in Conversation(tuple(turns)).utterances() if u.is_own), None)
    if own is None:
        raise NotRead(
            "no recording is to be learned: none of the assistant's messages from `start_index` "
            "on (without it, the last one) has audio"
        )
    return {
        "audio": own.recording.audio_path,
        "text": own.text,
        "start_seconds": own.recording.start_seconds,
        "end_seconds": own.recording.end_seconds,
    }


# --- From messages to turns ----------------------------------------------------------------------


def _turns(sample: Mapping[str, Any]) -> list[SpokenTurn]:
    """The messages one by one, a scene in the system message as a turn of its own."""
    messages = sample.get("messages")
    if not isinstance(messages, list) or not messages:
        raise NotRead("expected `messages`, a list of objects with `role` and `content`")
    turns = [_message(message, f"`messages[{i}]`") for i, message in enumerate(messages)]
    start_index = sample.get("start_index")
    if not (start_index is None or is_whole_number(start_index)):
        raise NotRead(
            "`start_index` must be the number of a message, counted from 0, found "
            f"{shown(start_index)}"
        )
    said = [index for index, turn in enumerate(turns) if turn.role == ASSISTANT]
    first_target = start_index if start_index is not None else max(said, default=0)
    targets = {index for index in said if index >= first_target}
    if not targets:
        raise NotRead(
            f"no message of the assistant from `messages[{int(first_target)}]` on: there is "
            "nothing to learn"
        )
    if any(turn.recordings for turn in turns if turn.role in (SYSTEM, SCENE)):
        raise NotRead(
            "a recording in the system message or the scene has no words to it; give it as a "
            "user's message with its words and an assistant's with the recording"
        )
    turns = [replace(turn, is_target=i in targets) for i, turn in enumerate(turns)]
    turns = [*_system_and_scene(turns[0]), *turns[1:]]
    head = list(itertools.takewhile(lambda turn: turn.role in (SYSTEM, SCENE), turns))
    if [turn.role for turn in head] not in ([], [SYSTEM], [SCENE], [SYSTEM, SCENE]) or any(
        turn.role in (SYSTEM, SCENE) for turn in turns[len(head) :]
    ):
        raise NotRead("one system message and then one scene may come first, and none later")
    return turns


def _message(message: Any, place: str) -> SpokenTurn:
    match message:
        case {"role": "system" | "scene" | "user" | "assistant" as role, "content": content}:
            pass
        case {"role": role, "content": _}:
            raise NotRead(
                f"{place}: the role must be system, scene, user or assistant, found {shown(role)}"
            )
        case _:
            raise NotRead(f"{place}: expected an object with `role` and `content`")
    if message.get("recipient"):
        raise NotRead(f"{place}: `recipient` has no place in speech; leave it out")
    parts = [_part(part, place) for part in (content if isinstance(content, list) else [content])]
    return Turn(role, tuple(parts))


def _part(part: Any, place: str) -> str | Span:
    match part:
        case None:
            return ""
        case str(text) | {"type": "text", "text": str(text)}:
            return text
        case {"type": "audio"}:
            return _audio_part(part, place)
        case {"type": "input_audio"}:
            raise NotRead(f"{place}: audio in base64 is not read; save it as a file and name that")
    raise NotRead(
        f'{place}: expected text, {{"type": "text", "text": ...}} or {{"type": "audio", '
        f'"audio_url": ...}}, found {shown(part)}'
    )


def _audio_part(part: Mapping[str, Any], place: str) -> Span:
    path, offset, duration = (part.get(key) for key in ("audio_url", "offset", "duration"))
    if part.get("raw_audio") or (isinstance(path, str) and path.startswith("data:")):
        raise NotRead(f"{place}: audio in base64 is not read; save it as a file and name that")
    if not isinstance(path, str) or not path.strip():
        raise NotRead(f"{place}: `audio_url` must be the path of a recording, found {shown(path)}")
    if path.lower().startswith("file:"):
        path, num_prefixes = FILE_ADDRESS.subn("", path)
        if not num_prefixes:
            raise NotRead(f"{place}: a file: address must hold an absolute path: {shown(path)}")
        path = unquote(path)
    elif ADDRESS.match(path):
        raise NotRead(f"{place}: {shown(path)} is an address; download it and name the file")
    if offset is None:  # `duration` alone is that of the file
        return Span(os.fspath(Path(path)))
    if not (is_number(offset) and offset >= 0) or not (
        duration is None or (is_number(duration) and duration > 0)
    ):
        raise NotRead(f"{place}: `offset`, `duration`: no numbers of seconds")
    return Span(
        os.fspath(Path(path)),
        start_seconds=float(offset),
        end_seconds=None if duration is None else end_of(offset, duration),
    )


def _system_and_scene(turn: SpokenTurn) -> list[SpokenTurn]:
    """The first turn; if it is the system's, without empty text and with the scene apart."""
    if turn.role != SYSTEM:
        return [turn]
    text, scene = turn.text, ""
    if found := SCENE_IN_SYSTEM.fullmatch(text):
        text, scene = found["system"].strip(), found["scene"].strip()
    return [_turn(role, said) for role, said in ((SYSTEM, text), (SCENE, scene)) if said]


# --- Into the layout of inference ----------------------------------------------------------------


def _rewritten(turns: list[SpokenTurn], ref_transcript: Any) -> list[SpokenTurn]:
    """The community's cloning form as turns of its own for the reference; others as they are.

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
        raise NotRead(
            "speech in a reference's voice needs one recording of the user and one of the "
            f"assistant, found {len(user.recordings)} and {len(said.recordings)}"
        )
    words, target = _words_and_target(user)
    words = words or (ref_transcript if isinstance(ref_transcript, str) else "")
    if not words.strip():
        raise NotRead(
            "the reference recording has no words; put what it says before it, as a text of its own"
        )
    return [
        *(turn for turn in turns if turn.role == SCENE),
        _turn(USER, words.strip()),
        Turn(ASSISTANT, user.recordings),
        _turn(USER, said.text or target),
        replace(said, parts=said.recordings),
    ]


def _words_and_target(user: SpokenTurn) -> tuple[str, str]:
    """What the reference says, and the text after the request."""
    texts = [text for text in user.texts if text.strip()]
    place = next(i for i, text in enumerate(texts) if CLONING_REQUEST.search(text))
    words, target = CLONING_REQUEST.split(texts[place], maxsplit=1)
    others = texts[:place] + texts[place + 1 :]
    if not target.strip() and others[place:]:
        target = others.pop(place)
    return " ".join(text.strip() for text in (*others, words) if text.strip()), target.strip()


def _without_echoes(turns: Sequence[SpokenTurn]) -> list[SpokenTurn]:
    """The turns; a recording's transcript beside it that repeats the user's text is left out."""
    return [
        replace(turn, parts=turn.recordings)
        if (before.role, turn.role) == (USER, ASSISTANT)
        and turn.recordings
        and turn.text.split() == before.text.split()
        else turn
        for before, turn in itertools.pairwise([Turn(USER, ()), *turns])
    ]


def _without_gaps(turn: SpokenTurn) -> SpokenTurn:
    """The turn with texts side by side as one, and none blank beside another part."""
    parts: list[str | Span] = []
    for is_text, group in itertools.groupby(turn.parts, lambda part: isinstance(part, str)):
        joined = Turn(turn.role, tuple(group))
        if not is_text:
            parts += joined.parts
        elif joined.text:
            parts.append(joined.text)
    return replace(turn, parts=tuple(parts) or ("",))


def _turn(role: str, text: str) -> SpokenTurn:
    return Turn(role, (text,))


def _recording(path: str) -> SpokenTurn:
    return Turn(ASSISTANT, (Span(os.fspath(Path(path))),))
