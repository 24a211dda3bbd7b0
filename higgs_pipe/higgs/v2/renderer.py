"""Prompts of many conversations, rendered once per shape."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import Conversation
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.prompts import NotRendered, Prompt, RenderError, TokenIds
from higgs_pipe.higgs.v2.chat_template import PUBLISHED_TEMPLATE, ChatTemplate
from higgs_pipe.higgs.v2.text_cleaning import clean_text

# Stands for a text in the shape of a conversation; private-use characters, which no text needs.
MARK, MARKED = "\ue000{}\ue001", re.compile("\ue000(\\d+)\ue001")
MAX_KNOWN_PIECES = 2**16  # about 40 MB


@dataclass(frozen=True, eq=False)
class Shape:
    """The common tokens of conversations with equal roles, kinds of parts and targets.

    Fixed runs of tokens stand before, between and after the open pieces, which hold the texts and
    are tokenized each time. An open piece is a format string with the numbers of its texts.
    """

    fixed_ids: tuple[TokenIds, ...]
    fixed_labels: tuple[TokenIds | None, ...]  # None: none of the run's tokens is a label
    open_pieces: tuple[str, ...]
    is_target: tuple[bool, ...]

    def fill(self, texts: Sequence[str]) -> list[str]:
        """Return the open pieces with the texts of a conversation."""
        return [piece.format(*texts) for piece in self.open_pieces]

    def prompt(self, open_ids: Sequence[TokenIds]) -> Prompt:
        """Return the prompt of a conversation, from the tokens of its open pieces."""
        runs = [self.fixed_ids[0]]
        for piece, fixed in zip(open_ids, self.fixed_ids[1:], strict=True):
            runs += [piece, fixed]
        ids = np.concatenate(runs)
        labels = np.full(len(ids), IGNORED, np.int32)
        end = 0
        for i, run in enumerate(runs):
            start, end = end, end + len(run)
            if i % 2 == 0 and (fixed_labels := self.fixed_labels[i // 2]) is not None:
                labels[start:end] = fixed_labels
        return Prompt(ids, labels, self.is_target)


class ChatRenderer(ChatTemplate):
    """Renders many conversations at once and builds samples from them.

    Raises:
        UserError: The checkpoint cannot be loaded, or lacks a template or a token.
    """

    def __init__(self, base: Pretrained) -> None:
        super().__init__(base)
        special = "|".join(map(re.escape, self.tokenizer.get_added_vocab()))
        self._special_token = re.compile(f"({special})")
        self._shapes: dict[object, Shape | None] = {}
        self._known_pieces: dict[str, TokenIds] = {}

    def clean(self, text: str) -> str:
        """Clean a text as Boson AI's inference does."""
        return clean_text(text)

    def _tokenized_pieces(self, pieces: Iterable[str]) -> Mapping[str, TokenIds]:
        """Tokenize pieces of text all at once, on all cores, and equal ones once.

        Most texts occur twice: in a target and in a reference.
        """
        if len(self._known_pieces) > MAX_KNOWN_PIECES:
            self._known_pieces.clear()
        new = [piece for piece in pieces if piece not in self._known_pieces]
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(new, add_special_tokens=False)
        for piece, encoding in zip(new, encoded, strict=True):
            self._known_pieces[piece] = np.asarray(encoding.ids, np.int32)
        return self._known_pieces

    def prompts(self, conversations: Sequence[Conversation[Any]]) -> list[Prompt | NotRendered]:
        """Return :meth:`prompt` of each conversation, or the fact that prevents it.

        Much faster than one by one: conversations of one :class:`Shape` differ only in their texts,
        so the template is rendered once per shape, and the tokens around the texts are made once.
        As a check, each call renders one conversation of each shape in full.

        Raises:
            UserError: The template renders different words around different texts.
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
        prompts: list[Prompt | NotRendered] = []
        compared: set[Shape] = set()
        for conversation, shape, found in zip(conversations, shapes, filled, strict=True):
            if shape is None or found is None:
                prompts.append(self._prompt_or_fault(conversation))
                continue
            prompt = shape.prompt([ids[piece] for piece in found])
            if shape not in compared:
                compared.add(shape)
                if not np.array_equal(prompt.ids, self.prompt(conversation).ids):
                    raise UserError(
                        "the chat template renders different words around different texts; "
                        f"{PUBLISHED_TEMPLATE}"
                    )
            prompts.append(prompt)
        return prompts

    def _prompt_or_fault(self, conversation: Conversation[Any]) -> Prompt | NotRendered:
        try:
            return self.prompt(conversation)
        except RenderError as error:
            return NotRendered(str(error))

    def _shape_of(self, conversation: Conversation[Any]) -> Shape | None:
        key = tuple(
            (turn.role, turn.is_target, *[isinstance(part, str) for part in turn.parts])
            for turn in conversation.turns
        )
        if key not in self._shapes:
            self._shapes[key] = self._shape(conversation)
        return self._shapes[key]

    def _shape(self, conversation: Conversation[Any]) -> Shape | None:
        """Return the shape of a conversation.

        None if the template does not render it in full, or if one of its texts is a label.
        """
        numbers = count()
        marked = conversation.map_texts(lambda _: MARK.format(next(numbers)))
        prompt = self._prompt_or_fault(marked)
        if isinstance(prompt, NotRendered):
            return None
        # The tokenizer, too, splits text at special tokens.
        pieces = [piece for piece in self._special_token.split(self.rendered(marked)) if piece]
        ids = [self.tokenized(piece) for piece in pieces]
        if not np.array_equal(np.concatenate(ids), prompt.ids):
            return None
        labels = np.split(prompt.labels, np.cumsum([len(i) for i in ids])[:-1])
        fixed: list[tuple[list[TokenIds], list[TokenIds]]] = [([], [])]
        open_pieces = []
        for piece, piece_ids, piece_labels in zip(pieces, ids, labels, strict=True):
            if not MARKED.search(piece):
                fixed[-1][0].append(piece_ids)
                fixed[-1][1].append(piece_labels)
            elif (piece_labels != IGNORED).any():
                return None
            else:
                literal = piece.replace("{", "{{").replace("}", "}}")
                open_pieces.append(MARKED.sub(r"{\1}", literal))
                fixed.append(([], []))
        empty = [np.empty(0, np.int32)]
        fixed_labels = [np.concatenate(empty + run) for _, run in fixed]
        return Shape(
            fixed_ids=tuple(np.concatenate(empty + run) for run, _ in fixed),
            fixed_labels=tuple(run if (run != IGNORED).any() else None for run in fixed_labels),
            open_pieces=tuple(open_pieces),
            is_target=prompt.is_target,
        )
