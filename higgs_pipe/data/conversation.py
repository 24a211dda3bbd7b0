"""A conversation: the one type shared by manifests, clips, packing and prompts."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

SYSTEM, SCENE, USER, ASSISTANT = "system", "scene", "user", "assistant"


class Named(Protocol):
    """Anything that stands for a recording: a span of a file, a clip, clips joined in time."""

    def _asdict(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Named)
S = TypeVar("S", bound=Named)


class ClipId(NamedTuple):
    """A recording by its row in the table of clips."""

    clip_id: str

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "ClipId":
        """Return the id in the JSON object of a recording."""
        return cls(columns["clip_id"])


@dataclass(frozen=True, slots=True)
class Turn(Generic[R]):
    """One message: texts and recordings in order; a target turn is trained on."""

    role: str  # system, scene, user or assistant
    parts: tuple[str | R, ...]
    is_target: bool = False

    @property
    def text(self) -> str:
        """All texts of the turn, joined by spaces."""
        return " ".join(part.strip() for part in self.texts if part.strip())

    def map_texts(self, replace: Callable[[str], str]) -> "Turn[R]":
        """Return the turn with ``replace(text)`` for each of its texts, in order."""
        parts = tuple(replace(part) if isinstance(part, str) else part for part in self.parts)
        return Turn(self.role, parts, self.is_target)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts among the parts."""
        return tuple([part for part in self.parts if isinstance(part, str)])

    @property
    def recordings(self) -> tuple[R, ...]:
        """The recordings among the parts."""
        return tuple([part for part in self.parts if not isinstance(part, str)])


@dataclass(frozen=True, slots=True)
class Utterance(Generic[R]):
    """A recording of a conversation, with the text that is said in it."""

    turn_number: int  # from 1
    recording: R
    text: str
    is_target: bool
    is_own: bool  # whether the row of the conversation is a clip of it: the last target


@dataclass(frozen=True, slots=True)
class Conversation(Generic[R]):
    """Turns in order; ``R`` is the type that stands for a recording."""

    turns: tuple[Turn[R], ...]

    def utterances(self) -> list[Utterance[R]]:
        """Return the recordings in order.

        The text of a recording is that of its turn, or else that of the last user turn before it.
        """
        places = [(i, part) for i, turn in enumerate(self.turns) for part in turn.recordings]
        own = max((n for n, (i, _) in enumerate(places) if self.turns[i].is_target), default=None)
        return [
            Utterance(i + 1, recording, self._text_of(i), self.turns[i].is_target, n == own)
            for n, (i, recording) in enumerate(places)
        ]

    def _text_of(self, index: int) -> str:
        asked = (turn.text for turn in reversed(self.turns[:index]) if turn.role == USER)
        return self.turns[index].text or next((text for text in asked if text), "")

    def map_texts(self, replace: Callable[[str], str]) -> "Conversation[R]":
        """Return the same turns with ``replace(text)`` for each text, in order."""
        return Conversation(tuple(turn.map_texts(replace) for turn in self.turns))

    def map_recordings(self, replace: Callable[[R], S]) -> "Conversation[S]":
        """Return the same turns with ``replace(recording)`` for each recording, in order."""
        return Conversation(
            tuple(
                Turn(
                    turn.role,
                    tuple(part if isinstance(part, str) else replace(part) for part in turn.parts),
                    turn.is_target,
                )
                for turn in self.turns
            )
        )

    def to_json(self) -> str:
        """Return JSON text for a column of a table; a recording is an object of its own keys."""
        turns = [
            {
                "role": turn.role,
                "parts": [
                    {"text": part} if isinstance(part, str) else part._asdict()
                    for part in turn.parts
                ],
                "is_target": turn.is_target,
            }
            for turn in self.turns
        ]
        return json.dumps(turns, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, recording: Callable[[Mapping[str, Any]], R]) -> "Conversation[R]":
        """Read what :meth:`to_json` returned.

        Args:
            text: The JSON text.
            recording: Makes a recording of its object: ``Span.of`` or ``ClipId.of``.
        """
        return cls(
            tuple(
                Turn(
                    turn["role"],
                    tuple(p["text"] if "text" in p else recording(p) for p in turn["parts"]),
                    turn["is_target"],
                )
                for turn in json.loads(text)
            )
        )


def speech_conversation(
    system_prompt: str,
    scenes: Iterable[str],
    references: Iterable[tuple[str, R]],
    text: str,
    target: R,
    clean: Callable[[str], str],
) -> Conversation[R]:
    """Return the conversation in which a text is spoken: scene, references, target.

    Args:
        system_prompt: The system message.
        scenes: Descriptions of place and speakers; may be empty.
        references: Recordings of the voices, each with its text.
        text: The words to speak; in a dialogue, one line per turn.
        target: The recording of ``text``.
        clean: Cleans ``text``, but not the transcripts of references.
    """
    turns: list[Turn[R]] = [Turn(SYSTEM, (system_prompt,))]
    if described := tuple(scenes):
        turns.append(Turn(SCENE, described))
    for words, recording in references:
        turns.append(Turn(USER, (words,)))
        turns.append(Turn(ASSISTANT, (recording,)))
    turns.append(Turn(USER, (clean(text),)))
    turns.append(Turn(ASSISTANT, (target,), is_target=True))
    return Conversation(tuple(turns))
