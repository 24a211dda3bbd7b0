"""Speech prompts: a text with its voices, and the same as model inputs.

P positions of a prompt, T codec frames, F delayed frames, K codebooks.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from higgs_pipe.data.conversation import speech_conversation
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.sentences import split_text, spoken_length
from higgs_pipe.data.text import is_blank
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.prompts import ModelPrompt, Prompt, PromptRenderer, RenderError

SPEAKER_TAG = re.compile(r"\s*(\[SPEAKER\d+\])\s*")


@dataclass(frozen=True, eq=False)
class Voice:
    """A reference recording, by its codes, and its text."""

    text: str
    codes: Codes  # (T, K)


@dataclass(frozen=True, eq=False)
class SpeechPrompt:
    """A text to speak.

    In a dialogue each turn begins with ``[SPEAKER0]``, ``[SPEAKER1]``, …, and the voices are those
    of speaker 0, 1, …, unless their texts begin with tags of their own.
    """

    text: str
    voices: tuple[Voice, ...] = ()
    scene: str | None = None

    @property
    def is_dialogue(self) -> bool:
        """Return whether the text has speaker tags."""
        return SPEAKER_TAG.search(self.text) is not None

    def pieces(
        self, max_length: int, delivery_tags: Collection[str] = frozenset()
    ) -> list["SpeechPrompt"]:
        """Split a long text, as :func:`split_text` does; every turn keeps its speaker tag.

        Args:
            max_length: The longest piece, in letters.
            delivery_tags: Tags that apply to a whole text: those before its first word are repeated
                before each piece.
        """
        delivery, words = _delivery(self.text, delivery_tags)
        lines: list[str] = []
        before, *tagged = SPEAKER_TAG.split(words)  # text, tag, text, tag, text, …
        lines += split_text(before, max_length)
        for tag, words in zip(tagged[::2], tagged[1::2], strict=True):
            lines += [f"{tag} {words_piece}" for words_piece in split_text(words, max_length)]
        pieces = lines[:1]
        for line in lines[1:]:
            joined = f"{pieces[-1]}\n{line}"
            if self.is_dialogue and spoken_length(joined) <= max_length:
                pieces[-1] = joined
            else:
                pieces.append(line)
        return [replace(self, text=delivery + piece) for piece in pieces]


def _delivery(text: str, tags: Collection[str]) -> tuple[str, str]:
    """Split a text into its delivery tags, which are not spoken, and the rest."""
    found, rest = "", text
    while tag := next((tag for tag in tags if rest.lstrip().startswith(tag)), None):
        found, rest = found + tag, rest.lstrip().removeprefix(tag)
    return found, rest


class CodedRecording(NamedTuple):
    """A recording in a conversation by its codes (T, K); those of the target are not read."""

    codes: Codes


def model_prompt(
    renderer: PromptRenderer,
    prompt: SpeechPrompt,
    system_prompt: str,
    clean: Callable[[str], str],
) -> ModelPrompt:
    """Return the prompt of a text as the model reads it.

    It is the beginning of the sample that training makes of the text and a recording.

    Args:
        renderer: The renderer of the base.
        prompt: The text, its voices and its scene.
        system_prompt: The system message.
        clean: Cleans the text of user turns.

    Raises:
        UserError: The prompt cannot be rendered in full.
    """
    lines = SPEAKER_TAG.sub(r"\n\1 ", prompt.text).strip()
    tags = [f"[SPEAKER{i}] " if prompt.is_dialogue else "" for i in range(len(prompt.voices))]
    references = [
        (
            voice.text if SPEAKER_TAG.match(voice.text) else tag + voice.text,
            CodedRecording(voice.codes),
        )
        for tag, voice in zip(tags, prompt.voices, strict=True)
    ]
    shape = renderer.shape
    none = np.empty((0, shape.num_codebooks), np.int16)
    scenes = (prompt.scene,) if prompt.scene else ()
    conversation = speech_conversation(
        system_prompt, scenes, references, lines, CodedRecording(none), clean
    )
    try:
        whole = renderer.prompt(conversation)
    except RenderError as fact:
        raise UserError(f"the text cannot be rendered for the base model: {fact}") from None
    end = int(np.flatnonzero(whole.ids == shape.audio_token_id)[-1])
    ids, labels = whole.ids[:end], whole.labels[:end]
    if not prompt.voices:
        return ModelPrompt(ids, none)
    codes = [voice.codes for voice in prompt.voices]
    inputs = renderer.model_inputs([Prompt(ids, labels, whole.is_target[:-1])], codes)
    return ModelPrompt(inputs.input_ids, inputs.audio_input_ids)


def check_prompts(prompts: Sequence[SpeechPrompt], rules: PromptRules) -> None:
    """Refuse prompts that cannot be spoken; texts are numbered from 1.

    Args:
        prompts: The prompts.
        rules: The base's prompt rules.

    Raises:
        UserError: A text is empty, a text or a scene has marks that the base does not know, or a
            prompt has several voices and no speaker tags.
    """
    offenders = []
    for number, prompt in enumerate(prompts, start=1):
        texts = [prompt.text, prompt.scene or "", *(voice.text for voice in prompt.voices)]
        if is_blank(SPEAKER_TAG.sub("", prompt.text)):
            offenders.append(f"text {number} is empty")
        faults = [rules.text_fault(f"text {number}", [text]) for text in texts]
        faults += [rules.scene_fault(f"text {number} has a scene")] if prompt.scene else []
        offenders += [f"{fault.fact}; {fault.reason.remedy}" for fault in faults if fault][:1]
        if len(prompt.voices) > 1 and not prompt.is_dialogue:
            offenders.append(
                f"text {number} has {len(prompt.voices)} voices and no [SPEAKER0] … tags"
            )
    if offenders:
        raise UserError(f"{len(offenders)} texts cannot be spoken:\n{list_offenders(offenders)}")
