"""From a conversation to one training sample: the prompt of inference, and labels on the targets.

The conversation is rendered by the checkpoint's own chat template, so that a model is trained on
exactly the prompt that it will see.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer

from higgs_pipe.data.samples import Recording, Turn
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.checkpoint import load_pretrained
from higgs_pipe.higgs.codes import IGNORED, Codes, delay, num_delayed_frames, target_labels

Message = dict[str, Any]
TokenIds = npt.NDArray[np.int32]

ASSISTANT_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
PUBLISHED_TEMPLATE = "use the base model's published chat template."

LATIN_PUNCTUATION = str.maketrans(
    {
        "，": ", ",
        "。": ". ",
        "、": ", ",
        "：": ": ",
        "；": "; ",
        "？": "? ",
        "！": "! ",
        "（": " ",
        "）": " ",
        "(": " ",
        ")": " ",
        "【": "[",
        "】": "]",
        "《": "'",
        "》": "'",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "—": "-",
        "…": "...",
    }
)
SPELLED_OUT = {
    "°F": " degrees Fahrenheit",
    "°C": " degrees Celsius",
    "[laugh]": "<SE>[Laughter]</SE>",
    "[humming start]": "<SE_s>[Humming]</SE_s>",
    "[humming end]": "<SE_e>[Humming]</SE_e>",
    "[music start]": "<SE_s>[Music]</SE_s>",
    "[music end]": "<SE_e>[Music]</SE_e>",
    "[music]": "<SE>[Music]</SE>",
    "[sing start]": "<SE_s>[Singing]</SE_s>",
    "[sing end]": "<SE_e>[Singing]</SE_e>",
    "[applause]": "<SE>[Applause]</SE>",
    "[cheering]": "<SE>[Cheering]</SE>",
    "[cough]": "<SE>[Cough]</SE>",
}
SENTENCE_ENDS = (".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>")


def clean_text(text: str) -> str:
    """Clean a transcript as Higgs Audio's inference cleans its text.

    Chinese punctuation becomes Latin, parentheses become spaces, degrees are spelled out, sound
    events become tags, white space is folded, and a text that ends bare gets a full stop.
    """
    text = text.translate(LATIN_PUNCTUATION)
    for written, spoken in SPELLED_OUT.items():
        text = text.replace(written, spoken)
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return text if text.endswith(SENTENCE_ENDS) else text + "."


def message(turn: Turn) -> Message:
    """A turn as the chat template reads it."""
    content = [
        {"type": "audio"} if isinstance(part, Recording) else {"type": "text", "text": part}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}


def cleaned(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with all that users and assistants say cleaned (:func:`clean_text`)."""

    def clean(part: str | Recording) -> str | Recording:
        return clean_text(part) if isinstance(part, str) else part

    return tuple(
        replace(turn, parts=tuple(clean(part) for part in turn.parts))
        if turn.role in ("user", "assistant")
        else turn
        for turn in turns
    )


@dataclass(frozen=True)
class HiggsTokens:
    """The ids that a sample is built from, read from the checkpoint."""

    audio: int
    audio_bos: int
    audio_eos: int
    audio_delay: int
    end_of_turn: int
    stream_bos: int
    stream_eos: int
    num_codebooks: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as tokens, before its recordings are put in."""

    ids: TokenIds  # (P,), one placeholder for each recording
    labels: TokenIds  # (P,), IGNORED at the placeholders and wherever else nothing is learned
    is_target: tuple[bool, ...]  # (A,) whether a recording is in a target turn


@dataclass(frozen=True)
class Sample:
    """One conversation as the model reads it, with its labels."""

    input_ids: TokenIds  # (S,)
    labels: TokenIds  # (S,)
    audio_input_ids: Codes  # (F, K), all recordings in order
    audio_labels: Codes  # (F, K)


class Unsayable(Exception):
    """The chat template does not say a conversation in full; the message is the fact."""


class PromptRenderer:
    """Renders conversations with a checkpoint's template and builds samples from them.

    Raises:
        UserError: The checkpoint cannot be loaded, or lacks a template or a token.
    """

    def __init__(self, base_model: str, revision: str | None = None) -> None:
        config = load_pretrained(AutoConfig, "base_model", base_model, revision)
        self.tokenizer = load_pretrained(AutoTokenizer, "base_model", base_model, revision)
        if self.tokenizer.chat_template is None:
            raise UserError(f"base_model {base_model!r} has no chat template; use a complete one.")
        self.tokens = HiggsTokens(
            audio=config.audio_token_id,
            audio_bos=config.audio_bos_token_id,
            audio_eos=self._token_id("<|audio_eos|>"),
            audio_delay=config.audio_delay_token_id,
            end_of_turn=self._token_id("<|eot_id|>"),
            stream_bos=config.audio_stream_bos_id,
            stream_eos=config.audio_stream_eos_id,
            num_codebooks=config.num_codebooks,
        )
        self._assistant_header = self._tokenized(ASSISTANT_HEADER)

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise UserError(
                f"the base model's tokenizer has no {token}; use a complete checkpoint."
            )
        return int(token_id)

    def _tokenized(self, text: str) -> TokenIds:
        # The template writes the beginning of the text itself.
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[Prompt | Unsayable]:
        """:meth:`prompt` of each conversation, or why it has none."""
        return [self._prompt_or_fact(turns) for turns in conversations]

    def _prompt_or_fact(self, turns: Sequence[Turn]) -> Prompt | Unsayable:
        try:
            return self.prompt(turns)
        except Unsayable as fact:
            return fact

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """Render and tokenize a conversation, and label its target turns.

        Text labels are all tokens of a target turn after its header but the placeholders:
        ``<|audio_out_bos|>``, ``<|audio_eos|>``, ``<|eot_id|>`` and the turn's text, if it has any.

        Raises:
            Unsayable: The template refuses the conversation or leaves out a part of it.
        """
        ids = self._tokenized(self._rendered(turns))
        labels = np.full_like(ids, IGNORED)
        headers = self._after_assistant_headers(ids)
        answers = [turn for turn in turns if turn.role == "assistant"]
        if len(headers) != len(answers):
            raise Unsayable(
                f"the chat template writes {len(headers)} assistant headers for {len(answers)} "
                "assistant turns"
            )
        heard = [turn for turn in turns for part in turn.parts if isinstance(part, Recording)]
        is_audio = ids == self.tokens.audio
        if is_audio.sum() != len(heard):
            raise Unsayable(
                f"the chat template gives {is_audio.sum()} audio placeholders for "
                f"{len(heard)} recordings"
            )
        for start, turn in zip(headers, answers, strict=True):
            ends = np.flatnonzero(ids[start:] == self.tokens.end_of_turn)
            end = start + int(ends[0]) + 1 if len(ends) else len(ids)
            if turn.is_target:
                self._check_target(ids[start:end])
                labels[start:end] = np.where(is_audio[start:end], IGNORED, ids[start:end])
        if not any(turn.is_target for turn in answers):
            raise Unsayable("no turn of an assistant is a target")
        return Prompt(ids, labels, tuple(turn.is_target for turn in heard))

    def _rendered(self, turns: Sequence[Turn]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [message(turn) for turn in turns], tokenize=False
            )
        except TemplateError as error:
            raise Unsayable(f"the chat template refuses it: {error}") from None
        place = 0
        for turn in turns:
            for part in turn.parts:
                if not isinstance(part, str):
                    continue
                place = text.find(part.strip(), place)
                if place < 0:
                    raise Unsayable(f"the chat template leaves out a text of a {turn.role} turn")
                place += len(part.strip())
        return text

    def _after_assistant_headers(self, ids: TokenIds) -> list[int]:
        header = self._assistant_header
        starts = np.flatnonzero(ids == header[0])
        ends = (int(start) + len(header) for start in starts)
        return [end for end in ends if np.array_equal(ids[end - len(header) : end], header)]

    def _check_target(self, ids: TokenIds) -> None:
        """Refuse a target turn (after its header) that is not written as at inference."""
        tokens = self.tokens
        is_audio = ids == tokens.audio
        framed = (
            is_audio[:1].sum() == is_audio[-1:].sum() == 0
            and (ids[:-1][is_audio[1:]] == tokens.audio_bos).all()
            and (ids[1:][is_audio[:-1]] == tokens.audio_eos).all()
        )
        if not framed or ids[-1:].tolist() != [tokens.end_of_turn]:
            raise Unsayable(
                "the chat template does not put <|audio_out_bos|> before the audio and "
                "<|audio_eos|> after it, and <|eot_id|> at the end of the turn"
            )

    def sample_length(self, prompt: Prompt, num_frames: Sequence[int]) -> int:
        """S of the sample that :meth:`sample` builds from recordings of these T."""
        delayed = (num_delayed_frames(n, self.tokens.num_codebooks) for n in num_frames)
        return len(prompt.ids) - len(num_frames) + sum(delayed)

    def sample(self, prompt: Prompt, codes: Sequence[Codes]) -> Sample:
        """Put the recordings of a prompt in, and label those of target turns.

        Audio labels are the targets' (:func:`codes.target_labels`); all else is ``IGNORED``.

        Args:
            prompt: Of :meth:`prompt`.
            codes: (T, K) for each recording, in order.
        """
        tokens = self.tokens
        delayed = [delay(c, tokens.stream_bos, tokens.stream_eos) for c in codes]
        placeholders = np.flatnonzero(prompt.ids == tokens.audio)
        repeats = np.ones(len(prompt.ids), np.int64)
        repeats[placeholders] = [len(frames) for frames in delayed]
        input_ids = np.repeat(prompt.ids, repeats)  # (P,) -> (S,)
        for end in np.cumsum(repeats)[placeholders]:
            input_ids[end - (tokens.num_codebooks - 1) : end] = tokens.audio_delay
        audio_labels = [
            target_labels(frames) if is_target else np.full_like(frames, IGNORED)
            for frames, is_target in zip(delayed, prompt.is_target, strict=True)
        ]
        return Sample(
            input_ids=input_ids,
            labels=np.repeat(prompt.labels, repeats),
            audio_input_ids=np.concatenate(delayed),
            audio_labels=np.concatenate(audio_labels),
        )
