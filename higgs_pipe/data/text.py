"""What a transcript must not be: blank, or a command to the model (a ``<|...|>`` token)."""

import re
import unicodedata
from collections.abc import Iterable

CONTROL_TOKEN = re.compile(r"<\|.*?\|>", re.DOTALL)


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in ``text``: white space and invisible characters alone."""
    return not _plain(text).strip()


def find_control_token(pieces: Iterable[str]) -> str | None:
    """The first control token in text, or in what its pieces make together; None without any.

    Look-alikes are found too: full-width signs, and tokens with invisible characters in them. No
    tokenizer of today reads those as commands, but nobody says them either, and the next cleaning
    of the text may undo them.

    Args:
        pieces: Texts that a chat template writes one after another, without their outer white
            space: the parts of a turn, or a single text.
    """
    text = "".join(piece.strip() for piece in pieces)
    for spelling in (text, _plain(text)):
        if token := CONTROL_TOKEN.search(spelling):
            return token.group()
    return None


def _plain(text: str) -> str:
    """``text`` without what the eye does not see: widths, styles, and invisible characters."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        unicodedata.normalize("NFKC", character)
        for character in text
        if unicodedata.category(character) not in ("Cc", "Cf", "Mn", "Me")
    )


class _Blanked(dict[int, str]):
    """For ``str.translate``: punctuation, separators and control characters become spaces."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        is_blank = unicodedata.category(character)[0] in "PZC"
        self[code_point] = " " if is_blank else character
        return self[code_point]


_BLANKED = _Blanked()


def bare_words(text: str) -> str:
    """Return the words of a text without case, punctuation and extra space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.translate(_BLANKED).split())
