"""Checks of a transcript (blank text, ``<|...|>`` control tokens), and its bare words."""

import re
import unicodedata
from collections.abc import Iterable

CONTROL_TOKEN = re.compile(r"<\|.*?\|>", re.DOTALL)
# Letters and signs that are drawn as nothing: fillers of Hangul, the blank of Braille.
EMPTY_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
NOT_SEEN = ("Cc", "Cf", "Cn", "Co", "Mn", "Me")  # controls, code points without a meaning, accents
ANGLE_QUOTES = str.maketrans("《》", "<>")  # text cleaning makes them so


def is_blank(text: str) -> bool:
    """Return whether ``text`` is white space and invisible characters alone."""
    return not _plain(text).strip()


def find_control_token(pieces: Iterable[str]) -> str | None:
    """Return the first control token in the joined pieces, or None.

    Look-alikes count: full-width signs, angle quotes, and tokens with invisible characters in them.
    No current tokenizer reads those as commands, but they are not speech either, and cleaning the
    text may turn them into commands.

    Args:
        pieces: Texts that a chat template joins, each stripped of outer white space: the parts
            of a turn, or a single text.
    """
    text = "".join(piece.strip() for piece in pieces)
    for spelling in (text, _plain(text)):
        if token := CONTROL_TOKEN.search(spelling):
            return token.group()
    return None


def _plain(text: str) -> str:
    """Return ``text`` without width variants, styles and invisible characters."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        unicodedata.normalize("NFKC", character)
        for character in text.translate(ANGLE_QUOTES)
        if unicodedata.category(character) not in NOT_SEEN and character not in EMPTY_LETTERS
    )


class _Blanked(dict[int, str]):
    """A table for ``str.translate``: punctuation, separators and controls become spaces."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        is_blank = unicodedata.category(character)[0] in "PZC"
        self[code_point] = " " if is_blank else character
        return self[code_point]


_BLANKED = _Blanked()


def without_control_tokens(text: str) -> str:
    """Return a text as it is spoken, with a space in place of each control token."""
    return CONTROL_TOKEN.sub(" ", text) if "<|" in text else text


def bare_words(text: str) -> str:
    """Return the words of a text without case, punctuation, control tokens and extra space."""
    text = unicodedata.normalize("NFKC", without_control_tokens(text)).casefold()
    return " ".join(text.translate(_BLANKED).split())
