"""Samples with ``messages``: Boson's ChatML and ms-swift."""

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from higgs_pipe.data.conversation import ASSISTANT, SCENE, SYSTEM, USER, Conversation, Turn
from higgs_pipe.data.manifests.conversations import (
    Hints,
    SpokenTurn,
    row_or_conversation,
    text_turn,
    with_references_as_turns,
)
from higgs_pipe.data.manifests.fields import (
    OUR_KEYS,
    Fields,
    RowFault,
    end_of,
    is_number,
    is_whole_number,
    shown,
)
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source
from higgs_pipe.data.spans import Span

# The model's usual way to put a scene into the system message.
SCENE_IN_SYSTEM = re.compile(
    r"(?P<system>.*?)<\|scene_desc_start\|>(?P<scene>.*?)<\|scene_desc_end\|>\s*", re.DOTALL
)
# What stands for a reference in a scene.
SPEAKER_BEFORE_REFERENCE = re.compile(r"\s*\[?SPEAKER\d\]?:\s*(?=<\|scene_desc_end\|>|$)")
FILE_ADDRESS = re.compile(r"^file:(?:/{2}(?:localhost)?)?(?=/[^/])", re.IGNORECASE)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

# The keys of a sample that make its turns, and those of ours that it may have.
CHATML_KEYS = ("messages", "start_index", "misc", "metadata")
SAMPLE_ID = re.compile(r"sample[_-]?\d+", re.IGNORECASE)
CHATML_ROW_KEYS = ("id", "speaker", "language", "split")


def read_chatml_samples(source: Source) -> RawRows:
    """Read Boson's ChatML: an array of samples in one file, or a sample per line.

    ``{"messages": [{"role": "user", "content": "What is said."}, {"role": "assistant", "content":
    [{"type": "audio", "audio_url": "a.wav"}]}], "start_index": 1, "speaker": "ada"}``; in an array
    a sample's number stands for its line.
    """
    for line, sample in source.json_samples(source.path):
        with source.at(f"{source.path}:{line}"):
            fields, conversation = read_chatml(sample)
            others = {key: sample[key] for key in sample if key not in CHATML_KEYS}
            if misplaced := sorted(others.keys() & OUR_KEYS - set(CHATML_ROW_KEYS)):
                raise RowFault(f"{misplaced[0]!r} cannot be given with `messages`; leave it out")
            fields |= others | {"speaker": _speaker(sample), **_declared(sample, fields)}
            yield RawRow(source.path, line, fields, conversation)


def _declared(sample: Fields, fields: Fields) -> Fields:
    """Return the length that a sample declares for its last target, if that is a whole file."""
    details = _details(sample)
    parts = [part for message in sample["messages"] for part in _contents(message)]
    durations = [
        part.get("duration")
        for part in parts
        if isinstance(part, dict) and part.get("audio_url") == fields["audio"]
    ]
    duration = next((d for d in reversed(durations) if d is not None), details.get("duration"))
    # A sample rate there is the one that the trainer resamples to.
    return {"duration_seconds": duration if fields["start_seconds"] is None else None}


def _contents(message: Fields) -> list[Any]:
    content = message["content"]
    return content if isinstance(content, list) else [content]


def _speaker(sample: Fields) -> Any:
    """Return a sample's speaker; community converters put the sample's own id there."""
    details = _details(sample)
    speaker = sample.get("speaker") or details.get("speaker")
    is_id = isinstance(speaker, str) and SAMPLE_ID.fullmatch(speaker)
    return None if is_id or speaker == details.get("sample_id") else speaker


def read_chatml(sample: Mapping[str, Any]) -> tuple[Fields, Conversation[Span] | None]:
    """Return the fields of a sample with ``messages``, and its turns where those say more.

    Targets are the assistant's turns from the message ``start_index`` on, counted from 0, or the
    last one. The paths are as written.

    Raises:
        RowFault: It is not a conversation, or has no speech to learn.
    """
    hints = Hints(
        ref_transcript=_beside(sample, "ref_transcript", "reference_transcript", "ref_text"),
        target_text=_beside(sample, "target_transcript", "target_text"),
    )
    return row_or_conversation(with_references_as_turns(_turns(sample, hints), hints))


def _beside(sample: Mapping[str, Any], *keys: str) -> str:
    """Return the first text that a sample gives by one of the keys beside its messages."""
    texts = (_details(sample).get(key) for key in keys)
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _details(sample: Mapping[str, Any]) -> Fields:
    """Return what a sample says beside its messages: ``misc``, or ``metadata`` of some trainers."""
    details: Fields = {}
    for key in ("metadata", "misc"):
        if isinstance(sample.get(key), dict):
            details |= sample[key]
    return details


def _is_transcript(asked: list[Any], content: str) -> bool:
    """Return whether messages are a recording, with or without a request, and what it says."""
    match asked:
        case []:
            return content.startswith("<audio>")
        case [*_, {"role": "user", "content": str(request)}]:
            return "<audio>" in request and len(asked) <= 2
    return False


def read_ms_swift(source: Source) -> RawRows:
    """Read a recording and its transcript per line.

    ``{"messages": [{"role": "assistant", "content": "<audio>TEXT"}], "audios": ["a.wav"]}``, or as
    speech recognition has it, with ``<audio>`` in the user's message.
    """
    for line, value in source.json_objects(source.path):
        with source.at(f"{source.path}:{line}"):
            match value:
                case {
                    "messages": [*asked, {"role": "assistant", "content": str(content)}],
                    "audios": [audio] | (str() as audio),
                } if f"{asked}{content}".count("<audio>") == 1 and _is_transcript(asked, content):
                    pass
                case _:
                    raise RowFault(
                        'expected `messages` that end with one of "assistant", its content the '
                        "text, <audio> before it or in the user's message, and `audios` with one "
                        "path"
                    )
            others = {key: value[key] for key in value if key not in ("messages", "audios")}
            text = content.removeprefix("<audio>").removeprefix("<think>").strip()
            yield RawRow(source.path, line, {**others, "audio": audio, "text": text})


def _turns(sample: Mapping[str, Any], hints: Hints) -> list[SpokenTurn]:
    """Return the messages one by one, a scene in the system message as a turn of its own."""
    messages = sample.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowFault("expected `messages`, a list of objects with `role` and `content`")
    turns = [_message(message, f"`messages[{i}]`") for i, message in enumerate(messages)]
    start_index = sample.get("start_index")
    if not (start_index is None or is_whole_number(start_index)):
        raise RowFault(
            "`start_index` must be the number of a message, counted from 0, found "
            f"{shown(start_index)}"
        )
    said = [index for index, turn in enumerate(turns) if turn.role == ASSISTANT]
    first_target = start_index if start_index is not None else max(said, default=0)
    targets = {index for index in said if index >= first_target}
    if not targets:
        raise RowFault(
            f"no message of the assistant from `messages[{int(first_target)}]` on: there is "
            "nothing to learn"
        )
    turns = [replace(turn, is_target=i in targets) for i, turn in enumerate(turns)]
    turns = [*_system_and_scene(turns[0], hints), *turns[1:]]
    head = list(itertools.takewhile(lambda turn: turn.role in (SYSTEM, SCENE), turns))
    if [turn.role for turn in head] not in ([], [SYSTEM], [SCENE], [SYSTEM, SCENE]) or any(
        turn.role in (SYSTEM, SCENE) for turn in turns[len(head) :]
    ):
        raise RowFault("only one system message, then one scene, may come first, and none later")
    return turns


def _message(message: Any, place: str) -> SpokenTurn:
    """Return a message as a turn."""
    match message:
        case {"role": "system" | "scene" | "user" | "assistant" as role, "content": _}:
            pass
        case {"role": role, "content": _}:
            raise RowFault(
                f"{place}: the role must be system, scene, user or assistant, found {shown(role)}"
            )
        case _:
            raise RowFault(f"{place}: expected an object with `role` and `content`")
    if message.get("recipient"):
        raise RowFault(f"{place}: `recipient` is not supported for speech; leave it out")
    parts = [_part(part, place) for part in _contents(message)]
    return Turn(role, tuple(parts))


def _part(part: Any, place: str) -> str | Span:
    """Return a part of a message: a text, or a recording."""
    match part:
        case None:
            return ""
        case str(text) | {"type": "text", "text": str(text)}:
            return text
        case {"type": "audio"}:
            return _audio_part(part, place)
        case {"type": "input_audio"}:
            raise RowFault(f"{place}: base64 audio is not read; save it to a file and name that")
    raise RowFault(
        f'{place}: expected text, {{"type": "text", "text": ...}} or {{"type": "audio", '
        f'"audio_url": ...}}, found {shown(part)}'
    )


def _audio_part(part: Mapping[str, Any], place: str) -> Span:
    """Return the recording of an audio part."""
    path, offset, duration = (part.get(key) for key in ("audio_url", "offset", "duration"))
    is_inline = isinstance(path, str) and path.startswith("data:")
    if is_inline or (part.get("raw_audio") and path in ("", None, "placeholder")):
        raise RowFault(f"{place}: base64 audio is not read; save it to a file and name that")
    if not isinstance(path, str) or not path.strip():
        raise RowFault(f"{place}: `audio_url` must be the path of a recording, found {shown(path)}")
    if path.lower().startswith("file:"):
        path, num_prefixes = FILE_ADDRESS.subn("", path)
        if not num_prefixes:
            raise RowFault(f"{place}: a file: URL must have an absolute path: {shown(path)}")
        path = unquote(path)
    elif ADDRESS.match(path):
        raise RowFault(f"{place}: {shown(path)} is a URL; download it and name the file")
    if offset is None:  # `duration` alone is that of the file
        return Span(os.fspath(Path(path)))
    if not (is_number(offset) and offset >= 0) or not (
        duration is None or (is_number(duration) and duration > 0)
    ):
        raise RowFault(f"{place}: `offset`, `duration`: expected numbers of seconds")
    return Span(
        os.fspath(Path(path)),
        start_seconds=float(offset),
        end_seconds=None if duration is None else end_of(offset, duration),
    )


def _system_and_scene(turn: SpokenTurn, hints: Hints) -> list[SpokenTurn]:
    """Return the first turn; the system's without empty text and with the scene apart.

    A reference in it becomes turns of its own, if its words are known.
    """
    if turn.role != SYSTEM:
        return [turn]
    text, scene = turn.text, ""
    references = turn.recordings
    if len(references) == 1 and hints.ref_transcript:
        text = SPEAKER_BEFORE_REFERENCE.sub("", text)
        if text.split() == hints.ref_transcript.split():
            text = ""  # the reference's words, not a description
        pair = [text_turn(USER, hints.ref_transcript), Turn(ASSISTANT, references)]
        return [*_system_and_scene(text_turn(SYSTEM, text), hints), *pair]
    if references:
        return [turn]
    if found := SCENE_IN_SYSTEM.fullmatch(text):
        text, scene = found["system"].strip(), found["scene"].strip()
    return [text_turn(role, said) for role, said in ((SYSTEM, text), (SCENE, scene)) if said]
