"""Prompt rules: the control tags, scenes, dialogues and references that a base model accepts."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT
from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.text import find_control_token


@dataclass(frozen=True)
class PromptRules:
    """The rules of one family of base models; the defaults allow everything."""

    model: str  # the family's name, for messages
    tags: frozenset[str] = frozenset()  # control tokens that a text may hold
    delivery_tags: frozenset[str] = frozenset()  # those that hold for a whole text, at its start
    reserved: frozenset[str] = frozenset()  # control tokens that only a prompt's frame may hold
    nearest_tag: Callable[[str], str] | None = None  # of any spelling
    # Marks in texts that other families read as commands, by the name of the family.
    foreign: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    has_system_message: bool = True
    has_scenes: bool = True
    joins_dialogues: bool = True  # a text may hold several speakers
    min_reference_seconds: float = 0.0  # `speak` pads a shorter recording with silence

    def text_fault(self, place: str, pieces: Iterable[str]) -> Fault | None:
        """Return the first mark in a text that this family does not know, or None.

        Args:
            place: The place of the text, for the message: ``turn 3``.
            pieces: The text; several pieces are joined as in a prompt.
        """
        text = "".join(piece.strip() for piece in pieces)
        for model, marks in self.foreign.items():
            if found := marks.search(text):
                fact = f"{place} contains {found.group():.60}, a mark of {model}"
                return Fault(Reason.FOREIGN_MARK, f"{fact} that {self.model} does not know")
        # A full stop holds the place of a tag: what stands around it does not meet.
        token = find_control_token([re.sub(r"<\|.*?\|>", self._kept, text)])
        if token is None:
            return None
        fact = f"{place} contains {token:.60}"
        if self.nearest_tag is None or token in self.reserved:
            return Fault(Reason.CONTROL_TOKEN, fact)
        return Fault(
            Reason.UNKNOWN_TAG,
            f"{fact}, which {self.model} does not know; the nearest tag is "
            f"{self.nearest_tag(token)}",
        )

    def _kept(self, token: re.Match[str]) -> str:
        return "." if token.group() in self.tags else token.group()

    def scene_fault(self, place: str) -> Fault | None:
        """Return the fault of a scene, or None if prompts may have one."""
        if self.has_scenes:
            return None
        return Fault(Reason.NO_SCENES, f"{place}: the prompts of {self.model} have none")

    def reference_fault(self, place: str, seconds: float) -> Fault | None:
        """Return the fault of a conversation's reference, or None if it is long enough."""
        if seconds >= self.min_reference_seconds:
            return None
        return Fault(
            Reason.SHORT_REFERENCE,
            f"{place} lasts {seconds:.3f} s, and {self.model} takes references of at least "
            f"{self.min_reference_seconds:g} s",
        )

    def system_message_fault(self, place: str, text: str) -> Fault | None:
        """Return the fault of a system message of a conversation's own, or None.

        The usual system message says nothing about the conversation, so a prompt may omit it.
        """
        if self.has_system_message or text == DEFAULT_SYSTEM_PROMPT:
            return None
        return Fault(
            Reason.NO_SYSTEM_MESSAGE,
            f"{place} is a system message, and the prompts of {self.model} have none",
        )
