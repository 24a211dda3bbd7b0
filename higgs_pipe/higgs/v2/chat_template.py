"""One conversation as the checkpoint's chat template renders it, with labels on its targets.

This is the checkpoint's own template, so a model is trained on exactly the prompts of inference.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import ASSISTANT, SYSTEM, USER, Conversation, Turn
from higgs_pipe.data.spans import Span
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.prompts import Prompt, PromptRenderer, RenderError, TokenIds
from higgs_pipe.higgs.rendering import check_template, render
from higgs_pipe.higgs.rules import sizes_json
from higgs_pipe.higgs.tokenizer import load_tokenizer
from higgs_pipe.higgs.v2.rules import RULES
from higgs_pipe.higgs.v2.shape import shape_of

Message = dict[str, Any]

ASSISTANT_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
PUBLISHED_TEMPLATE = "use the chat template that is published with the base model."
# What every template renders: a text, and its recording.
PLAIN = Conversation(
    (
        Turn(SYSTEM, ("Generate audio following instruction.",)),
        Turn(USER, ("What is said.",)),
        Turn(ASSISTANT, (Span("a.wav"),), is_target=True),
    )
)


def message(turn: Turn[Any]) -> Message:
    """Return a turn as the chat template reads it."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio"}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}


@dataclass(frozen=True)
class HiggsTokens:
    """The token ids that a sample is built from, read from the checkpoint."""

    audio: int
    audio_bos: int
    audio_eos: int
    audio_delay: int
    end_of_turn: int
    stream_bos: int
    stream_eos: int
    num_codebooks: int


class ChatTemplate(PromptRenderer):
    """The chat template and the tokenizer of a checkpoint.

    Raises:
        UserError: The checkpoint cannot be loaded, or lacks a template or a token.
    """

    remedy = PUBLISHED_TEMPLATE
    rules = RULES

    def __init__(self, base: Pretrained) -> None:
        config = sizes_json(base)
        self.shape = shape_of(config)
        self.tokenizer = load_tokenizer(base)
        check_template(self.tokenizer.chat_template, base.name)
        self.tokens = HiggsTokens(
            audio=config["audio_token_id"],
            audio_bos=config["audio_bos_token_id"],
            audio_eos=self._token_id("<|audio_eos|>"),
            audio_delay=config["audio_delay_token_id"],
            end_of_turn=self._token_id("<|eot_id|>"),
            stream_bos=config["audio_stream_bos_id"],
            stream_eos=config["audio_stream_eos_id"],
            num_codebooks=config["num_codebooks"],
        )
        self._assistant_header = self.tokenized(ASSISTANT_HEADER)
        self._check(base.name, config["vocab_size"])

    def _check(self, name: str, vocab_size: int) -> None:
        """Check that template, tokenizer and model are those of one checkpoint.

        Raises:
            UserError: The template does not render a plain sample, or a token has no embedding.
        """
        largest = max(self.tokenizer.get_vocab().values())
        if largest >= vocab_size:
            raise UserError(
                f"base_model {name!r}: its tokenizer has a token {largest}, and its config.json "
                f"{vocab_size} of them; use a complete checkpoint."
            )
        try:
            self.prompt(PLAIN)
        except RenderError as error:
            raise UserError(f"base_model {name!r}: {error}; {PUBLISHED_TEMPLATE}") from None

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise UserError(
                f"the tokenizer of the base model has no {token}; use a complete checkpoint."
            )
        return int(token_id)

    def tokenized(self, text: str) -> TokenIds:
        """Return the token ids of rendered text, which has its special tokens already: (P,)."""
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def prompt(self, conversation: Conversation[Any]) -> Prompt:
        """Render and tokenize a conversation, and label its target turns.

        Text labels are the tokens of a target turn after its header, except the placeholders:
        ``<|audio_out_bos|>``, ``<|audio_eos|>``, ``<|eot_id|>`` and the text of the turn, if any.

        Raises:
            RenderError: The template refuses the conversation or leaves out a part of it.
        """
        ids = self.tokenized(self.rendered(conversation))
        labels = np.full_like(ids, IGNORED)
        headers = self._after_assistant_headers(ids)
        answers = [turn for turn in conversation.turns if turn.role == ASSISTANT]
        if len(headers) != len(answers):
            raise RenderError(
                f"the chat template writes {len(headers)} assistant headers for {len(answers)} "
                "assistant turns"
            )
        heard = [turn for turn in conversation.turns for _ in turn.recordings]
        is_audio = ids == self.tokens.audio
        if is_audio.sum() != len(heard):
            raise RenderError(
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
            raise RenderError("no assistant turn is a target")
        return Prompt(ids, labels, tuple(turn.is_target for turn in heard))

    def rendered(self, conversation: Conversation[Any]) -> str:
        """Return the text that the template writes.

        Raises:
            RenderError: The template refuses the conversation, fails on it or leaves out a text.
            UserError: It takes too much time or memory.
        """
        num_chars = sum(len(text) for turn in conversation.turns for text in turn.texts)
        text = render(self.tokenizer, [message(turn) for turn in conversation.turns], num_chars)
        place = 0
        for turn in conversation.turns:
            for written in turn.texts:
                place = text.find(written.strip(), place)
                if place < 0:
                    raise RenderError(f"the chat template leaves out a text of a {turn.role} turn")
                place += len(written.strip())
        return text

    def _after_assistant_headers(self, ids: TokenIds) -> list[int]:
        header = self._assistant_header
        starts = np.flatnonzero(ids == header[0])
        ends = (int(start) + len(header) for start in starts)
        return [end for end in ends if np.array_equal(ids[end - len(header) : end], header)]

    def _check_target(self, ids: TokenIds) -> None:
        """Refuse a target turn (after its header) that differs from that of inference."""
        tokens = self.tokens
        is_audio = ids == tokens.audio
        framed = (
            is_audio[:1].sum() == is_audio[-1:].sum() == 0
            and (ids[:-1][is_audio[1:]] == tokens.audio_bos).all()
            and (ids[1:][is_audio[:-1]] == tokens.audio_eos).all()
        )
        if not framed or ids[-1:].tolist() != [tokens.end_of_turn]:
            raise RenderError(
                "the chat template does not put <|audio_out_bos|> before the audio and "
                "<|audio_eos|> after it, and <|eot_id|> at the end of the turn"
            )
