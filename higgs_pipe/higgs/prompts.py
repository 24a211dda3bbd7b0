"""From a conversation to one training sample: the prompt of inference, and labels on the targets.

The conversation is rendered by the checkpoint's own chat template, so that a model is trained on
exactly the prompt that it will see.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer

from higgs_pipe.config.settings import PackConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import ASSISTANT, Conversation, Turn
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import SamplePlan
from higgs_pipe.data.packing.turns import Recording, conversation_of
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codes import IGNORED, Codes, delay, num_delayed_frames, target_labels
from higgs_pipe.higgs.pretrained import load_pretrained
from higgs_pipe.higgs.text_cleaning import clean_text

Message = dict[str, Any]
TokenIds = npt.NDArray[np.int32]

ASSISTANT_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
# Stands for a text in a conversation's shape; private characters that no text needs.
MARK, MARKED = "\ue000{}\ue001", re.compile("\ue000(\\d+)\ue001")
MAX_KNOWN_PIECES = 2**16  # some 40 MB
PUBLISHED_TEMPLATE = "use the base model's published chat template."


def conversations_of(
    plans: Sequence[SamplePlan], clips: Clips, settings: PackConfig
) -> list[Conversation[Recording]]:
    """Return the conversation of each sample, its texts cleaned if ``settings`` say so."""
    rows = clips.rows([clip for plan in plans for clip in plan.clips])
    clean = clean_text if settings.clean_text else str
    return [conversation_of(plan, rows, clips, settings.system_prompt, clean) for plan in plans]


def message(turn: Turn[Any]) -> Message:
    """Return a turn as the chat template reads it."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio"}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}


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
class Samples:
    """Conversations one after the other as the model reads them, with their labels."""

    input_ids: TokenIds  # (S,)
    labels: TokenIds  # (S,)
    audio_input_ids: Codes  # (F, K), all recordings in order
    audio_labels: Codes  # (F, K)


@dataclass(frozen=True, eq=False)
class Shape:
    """What conversations with the same roles, kinds of parts and targets have in common.

    The tokens around their texts: a fixed run before, between and after the open pieces, which are
    tokenized each time. An open piece is text, number of a text, text, number, …, text.
    """

    fixed_ids: tuple[TokenIds, ...]
    fixed_labels: tuple[TokenIds, ...]
    open_pieces: tuple[tuple[str, ...], ...]
    is_target: tuple[bool, ...]

    def fill(self, texts: Sequence[str]) -> list[str]:
        """The open pieces with the texts of a conversation."""
        return [
            "".join(texts[int(part)] if i % 2 else part for i, part in enumerate(piece))
            for piece in self.open_pieces
        ]

    def prompt(self, open_ids: Sequence[TokenIds]) -> Prompt:
        """The prompt of a conversation from the tokens of its open pieces."""
        ids, labels = [self.fixed_ids[0]], [self.fixed_labels[0]]
        for i, piece in enumerate(open_ids):
            ids += [piece, self.fixed_ids[i + 1]]
            labels += [np.full(len(piece), IGNORED, np.int32), self.fixed_labels[i + 1]]
        return Prompt(np.concatenate(ids), np.concatenate(labels), self.is_target)


class Unsayable(Exception):
    """The chat template does not say a conversation in full; the message is the fact."""


class PromptRenderer:
    """Renders conversations with a checkpoint's template and builds samples from them.

    Raises:
        UserError: The checkpoint cannot be loaded, or lacks a template or a token.
    """

    def __init__(self, base: Pretrained) -> None:
        config = load_pretrained(AutoConfig, base)
        self.tokenizer = load_pretrained(AutoTokenizer, base)
        if self.tokenizer.chat_template is None:
            raise UserError(f"base_model {base.name!r} has no chat template; use a complete one.")
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
        special = "|".join(map(re.escape, self.tokenizer.get_added_vocab()))
        self._special_token = re.compile(f"({special})")
        self._shapes: dict[object, Shape | None] = {}
        self._known_pieces: dict[str, TokenIds] = {}

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

    def _tokenized_pieces(self, pieces: Iterable[str]) -> Mapping[str, TokenIds]:
        """As :meth:`_tokenized`, all at once, on all cores, and each text once.

        Most texts come again: as those of references.
        """
        if len(self._known_pieces) > MAX_KNOWN_PIECES:
            self._known_pieces.clear()
        new = [piece for piece in pieces if piece not in self._known_pieces]
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(new, add_special_tokens=False)
        for piece, encoding in zip(new, encoded, strict=True):
            self._known_pieces[piece] = np.asarray(encoding.ids, np.int32)
        return self._known_pieces

    def prompts(self, conversations: Sequence[Conversation[Any]]) -> list[Prompt | Unsayable]:
        """:meth:`prompt` of each conversation, or why it has none; many at once are much faster.

        Conversations of one :class:`Shape` differ in their texts alone: the template is rendered
        once a shape, and what stands around the texts is tokenized once. One conversation of each
        shape is rendered in full each time, to compare.

        Raises:
            UserError: The template writes other words around some texts than around others.
        """
        shapes = [self._shape_of(conversation) for conversation in conversations]
        texts = [[text for turn in c.turns for text in turn.texts] for c in conversations]
        filled = [
            shape.fill(said)
            if shape and all(text and text == text.strip() for text in said)
            else None
            for shape, said in zip(shapes, texts, strict=True)
        ]
        ids = self._tokenized_pieces({piece for found in filled for piece in found or ()})
        prompts: list[Prompt | Unsayable] = []
        compared: set[Shape] = set()
        for conversation, shape, found in zip(conversations, shapes, filled, strict=True):
            if shape is None or found is None:
                prompts.append(self._prompt_or_fact(conversation))
                continue
            prompt = shape.prompt([ids[piece] for piece in found])
            if shape not in compared:
                compared.add(shape)
                if not np.array_equal(prompt.ids, self.prompt(conversation).ids):
                    raise UserError(
                        "the chat template writes other words around some texts than around "
                        f"others; {PUBLISHED_TEMPLATE}"
                    )
            prompts.append(prompt)
        return prompts

    def _prompt_or_fact(self, conversation: Conversation[Any]) -> Prompt | Unsayable:
        try:
            return self.prompt(conversation)
        except Unsayable as fact:
            return fact

    def _shape_of(self, conversation: Conversation[Any]) -> Shape | None:
        key = tuple(
            (turn.role, turn.is_target, *(isinstance(part, str) for part in turn.parts))
            for turn in conversation.turns
        )
        if key not in self._shapes:
            self._shapes[key] = self._shape(conversation)
        return self._shapes[key]

    def _shape(self, conversation: Conversation[Any]) -> Shape | None:
        """The shape of a conversation.

        None if the template does not say such ones in full, or if a text of theirs is learned.
        """
        numbers = count()
        marked = conversation.map_texts(lambda _: MARK.format(next(numbers)))
        prompt = self._prompt_or_fact(marked)
        if isinstance(prompt, Unsayable):
            return None
        # A special token ends what is before it and begins what is after it, for the tokenizer too.
        pieces = [piece for piece in self._special_token.split(self._rendered(marked)) if piece]
        ids = [self._tokenized(piece) for piece in pieces]
        if not np.array_equal(np.concatenate(ids), prompt.ids):
            return None
        labels = np.split(prompt.labels, np.cumsum([len(i) for i in ids])[:-1])
        fixed: list[tuple[list[TokenIds], list[TokenIds]]] = [([], [])]
        open_pieces = []
        for piece, piece_ids, piece_labels in zip(pieces, ids, labels, strict=True):
            fragments = MARKED.split(piece)  # text, number, text, number, text
            if len(fragments) == 1:
                fixed[-1][0].append(piece_ids)
                fixed[-1][1].append(piece_labels)
            elif (piece_labels != IGNORED).any():
                return None
            else:
                open_pieces.append(tuple(fragments))
                fixed.append(([], []))
        empty = [np.empty(0, np.int32)]
        return Shape(
            fixed_ids=tuple(np.concatenate(empty + run) for run, _ in fixed),
            fixed_labels=tuple(np.concatenate(empty + run) for _, run in fixed),
            open_pieces=tuple(open_pieces),
            is_target=prompt.is_target,
        )

    def prompt(self, conversation: Conversation[Any]) -> Prompt:
        """Render and tokenize a conversation, and label its target turns.

        Text labels are all tokens of a target turn after its header but the placeholders:
        ``<|audio_out_bos|>``, ``<|audio_eos|>``, ``<|eot_id|>`` and the turn's text, if it has any.

        Raises:
            Unsayable: The template refuses the conversation or leaves out a part of it.
        """
        ids = self._tokenized(self._rendered(conversation))
        labels = np.full_like(ids, IGNORED)
        headers = self._after_assistant_headers(ids)
        answers = [turn for turn in conversation.turns if turn.role == ASSISTANT]
        if len(headers) != len(answers):
            raise Unsayable(
                f"the chat template writes {len(headers)} assistant headers for {len(answers)} "
                "assistant turns"
            )
        heard = [turn for turn in conversation.turns for _ in turn.recordings]
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

    def _rendered(self, conversation: Conversation[Any]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [message(turn) for turn in conversation.turns], tokenize=False
            )
        except TemplateError as error:
            raise Unsayable(f"the chat template refuses it: {error}") from None
        place = 0
        for turn in conversation.turns:
            for written in turn.texts:
                place = text.find(written.strip(), place)
                if place < 0:
                    raise Unsayable(f"the chat template leaves out a text of a {turn.role} turn")
                place += len(written.strip())
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
        """S of the sample that :meth:`samples` builds from recordings of these T."""
        delayed = (num_delayed_frames(n, self.tokens.num_codebooks) for n in num_frames)
        return len(prompt.ids) - len(num_frames) + sum(delayed)

    def samples(self, prompts: Sequence[Prompt], codes: Sequence[Codes]) -> Samples:
        """Put the recordings of prompts in, and label those of target turns.

        Audio labels are the targets' (:func:`codes.target_labels`); all else is ``IGNORED``.

        Args:
            prompts: Of :meth:`prompts`.
            codes: (T, K) for each recording of all prompts, in order.
        """
        tokens = self.tokens
        num_delayed = [num_delayed_frames(*recording.shape) for recording in codes]
        ids = np.concatenate([prompt.ids for prompt in prompts])  # (P,), all prompts
        placeholders = np.flatnonzero(ids == tokens.audio)
        repeats = np.ones(len(ids), np.int64)
        repeats[placeholders] = num_delayed
        input_ids = np.repeat(ids, repeats)  # (P,) -> (S,)
        ends = np.cumsum(repeats)[placeholders]
        input_ids[np.subtract.outer(ends, np.arange(1, tokens.num_codebooks))] = tokens.audio_delay
        is_target = [is_target for prompt in prompts for is_target in prompt.is_target]
        return Samples(
            input_ids=input_ids,
            labels=np.repeat(np.concatenate([prompt.labels for prompt in prompts]), repeats),
            audio_input_ids=delay(codes, tokens.stream_bos, tokens.stream_eos),
            audio_labels=target_labels(codes, tokens.stream_eos, is_target),
        )
