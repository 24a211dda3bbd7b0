"""A checked row of a manifest, as all later stages see it."""

from dataclasses import dataclass
from pathlib import Path

from higgs_pipe.data.conversation import Conversation, Utterance
from higgs_pipe.data.spans import Span


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a manifest; ``audio`` is as written there, the paths are absolute.

    ``start_seconds`` and ``end_seconds`` bound a segment of a longer recording; None is the
    recording's own start or end. Rows with one ``dialogue_id`` are its turns, in the order of
    ``turn``. A row with a ``conversation`` is trained on as that conversation; its ``audio_path``
    is then the last target recording, and its ``text`` what is said there.
    """

    manifest: str
    line: int
    clip_id: str
    audio: str
    audio_path: Path
    text: str
    speaker: str | None
    language: str | None
    scene: str | None
    ref_audio_path: Path | None
    ref_text: str | None
    split: str | None
    start_seconds: float | None = None
    end_seconds: float | None = None
    dialogue_id: str | None = None
    turn: int | None = None
    conversation: Conversation[Span] | None = None
    declared_seconds: float | None = None  # length of the clip as the manifest has it
    declared_sample_rate_hz: float | None = None
    is_outside_root: bool = False  # whether a path leads out of the manifest's root

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.manifest}:{self.line}"

    @property
    def span(self) -> Span:
        """The part of a file that the row is a clip of."""
        return Span(str(self.audio_path), self.start_seconds, self.end_seconds)

    @property
    def reference_span(self) -> Span | None:
        """The row's own reference recording: always a whole file."""
        return None if self.ref_audio_path is None else Span(str(self.ref_audio_path))

    @property
    def utterances(self) -> list[Utterance[Span]]:
        """The recordings of the row's conversation, in order; none without one."""
        return [] if self.conversation is None else self.conversation.utterances()

    @property
    def all_spans(self) -> list[Span]:
        """All that must be measured to judge the row."""
        references = [] if self.reference_span is None else [self.reference_span]
        return [self.span, *references, *(utterance.recording for utterance in self.utterances)]
