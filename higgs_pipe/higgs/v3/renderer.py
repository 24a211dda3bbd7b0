"""Prompts of Higgs TTS 3: token ids joined without a chat template.

::

    <|tts|> <|text|> T <|audio|> frames
    <|tts|> <|ref_text|> R <|ref_audio|> frames <|text|> T <|audio|> frames [<|text|> T <|audio|> …]

Nothing stands before or after: neither BOS nor EOS, system message or line break. Each text is
tokenized by itself. SGLang-Omni, vLLM-Omni and mlx-audio all send this, with one reference at most.
Further chunks of text and audio follow as SGLang-Omni's cookbook describes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import ASSISTANT, SCENE, USER, Conversation
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.pretrained import load_pretrained
from higgs_pipe.higgs.prompts import NotRendered, Prompt, PromptRenderer, RenderError, TokenIds
from higgs_pipe.higgs.rules import sizes_json
from higgs_pipe.higgs.v2.marks import SPEAKER_MARK
from higgs_pipe.higgs.v3.rules import RULES
from higgs_pipe.higgs.v3.shape import shape_of
from higgs_pipe.higgs.v3.tags import TAGS

TTS, REF_TEXT, REF_AUDIO = "<|tts|>", "<|ref_text|>", "<|ref_audio|>"
TEXT, AUDIO = "<|text|>", "<|audio|>"
NEEDED = (TTS, REF_TEXT, REF_AUDIO, TEXT, AUDIO)


@dataclass(frozen=True)
class Chunk:
    """A recording with its words: the reference, or one that a text asks for."""

    text: str
    is_target: bool


def chunks_of(conversation: Conversation[Any]) -> list[Chunk]:
    """Return the recordings of a conversation with their words; a first one to keep is a reference.

    System messages are left out: no prompt has one.

    Raises:
        RenderError: The conversation has a part that no prompt of inference has.
    """
    chunks: list[Chunk] = []
    words: str | None = None
    for turn in conversation.turns:
        if turn.role == SCENE:
            raise RenderError("Higgs TTS 3 has no place for a scene")
        if SPEAKER_MARK.search(turn.text):
            raise RenderError("Higgs TTS 3 has no tags for speakers, such as [SPEAKER0]")
        if turn.role == USER:
            if words is not None:
                raise RenderError("two texts follow each other without a recording between them")
            words = turn.text
        elif turn.role == ASSISTANT:
            if turn.texts or len(turn.recordings) != 1:
                raise RenderError("an assistant turn is not one recording")
            if words is None:
                raise RenderError("a recording has no text of its own before it")
            chunks.append(Chunk(words, turn.is_target))
            words = None
    if words is not None:
        raise RenderError("nothing answers the last text")
    num_references = next((i for i, chunk in enumerate(chunks) if chunk.is_target), None)
    if num_references is None:
        raise RenderError("no assistant turn is a target")
    if num_references > 1:
        raise RenderError(
            f"{num_references} recordings come before the first target, and Higgs TTS 3 has one "
            "reference"
        )
    return chunks


class Renderer(PromptRenderer):
    """Renders prompts with the tokenizer of a checkpoint.

    Raises:
        UserError: The checkpoint cannot be loaded, or its tokenizer lacks a token.
    """

    remedy = "this is a mistake of higgs-pipe; please report it."
    rules = RULES

    def __init__(self, base: Pretrained) -> None:
        # Of tokenizer.json as it is; a class by name would build another one.
        self.tokenizer = load_pretrained(PreTrainedTokenizerFast, base)
        self.shape = shape_of(sizes_json(base))
        vocabulary = self.tokenizer.get_vocab()
        if lacking := sorted({*NEEDED, *TAGS} - set(vocabulary)):
            raise UserError(
                f"the tokenizer of {base.setting} {base.name!r} lacks {len(lacking)} tokens of "
                f"Higgs TTS 3, such as {lacking[0]}; use a complete checkpoint."
            )
        self._ids = {token: int(vocabulary[token]) for token in NEEDED}

    def clean(self, text: str) -> str:
        """Return the text without outer white space: inference sends it as it is."""
        return text.strip()

    def prompt(self, conversation: Conversation[Any]) -> Prompt:
        """Render a conversation; no text is a label.

        Raises:
            RenderError: A part of the conversation has no place in a prompt.
        """
        chunks = chunks_of(conversation)
        return self._prompt(chunks, self._tokenized(chunk.text for chunk in chunks))

    def prompts(self, conversations: Sequence[Conversation[Any]]) -> list[Prompt | NotRendered]:
        """Return :meth:`prompt` of each conversation, or the fact that prevents it.

        All texts are tokenized at once, on all cores, and equal ones once.
        """
        rendered: list[list[Chunk] | NotRendered] = []
        for conversation in conversations:
            try:
                rendered.append(chunks_of(conversation))
            except RenderError as error:
                rendered.append(NotRendered(str(error)))
        known = [chunks for chunks in rendered if not isinstance(chunks, NotRendered)]
        ids = self._tokenized(chunk.text for chunks in known for chunk in chunks)
        return [
            chunks if isinstance(chunks, NotRendered) else self._prompt(chunks, ids)
            for chunks in rendered
        ]

    def _tokenized(self, texts: Iterable[str]) -> Mapping[str, TokenIds]:
        distinct = list(dict.fromkeys(texts))
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(
            distinct, add_special_tokens=False
        )
        return {
            text: np.asarray(encoding.ids, np.int32)
            for text, encoding in zip(distinct, encoded, strict=True)
        }

    def _prompt(self, chunks: Sequence[Chunk], text_ids: Mapping[str, TokenIds]) -> Prompt:
        """Put a recording's placeholder behind each text."""
        ids: list[int] = [self._ids[TTS]]
        for chunk in chunks:
            before, after = (TEXT, AUDIO)
            if chunk is chunks[0] and not chunk.is_target:
                before, after = (REF_TEXT, REF_AUDIO)
            ids += [self._ids[before], *text_ids[chunk.text].tolist()]
            ids += [self._ids[after], self.shape.audio_token_id]
        return Prompt(
            np.asarray(ids, np.int32),
            np.full(len(ids), IGNORED, np.int32),
            tuple(chunk.is_target for chunk in chunks),
        )
