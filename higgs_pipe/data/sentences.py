"""Long text split into pieces that a speech model can speak at once."""

import re
import unicodedata
from collections.abc import Sequence

from higgs_pipe.data.text import CONTROL_TOKEN, without_control_tokens

# Where text may be cut, best first: after a sentence, a clause, a word.
CUTS = (
    re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？｡])[”’」』）]*\s*|\n+"),
    re.compile(r"(?<=[,;:])\s+|\s+(?=[-–—]\s)|(?<=[，、；：])\s*|(?<=—)"),
    re.compile(r"\s+"),
)
WIDE_LENGTH = 4  # a Chinese character or a Korean syllable takes as long to say as 4 letters


def spoken_length(text: str) -> int:
    """Return the spoken length of a text, in letters; wide characters count as ``WIDE_LENGTH``."""
    text = without_control_tokens(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + (WIDE_LENGTH - 1) * wide


def split_text(text: str, max_length: int) -> list[str]:
    """Split text at the ends of sentences, into as few pieces as possible.

    A sentence that is too long is cut after a clause, or else after a word, or else anywhere. Only
    white space is lost at the cuts.

    Args:
        text: Any text.
        max_length: The longest piece, by :func:`spoken_length`; at least ``WIDE_LENGTH``.
    """
    pieces = (piece.strip() for piece in _split(text, max_length, CUTS))
    return [piece for piece in pieces if piece]


def _split(text: str, max_length: int, cuts: Sequence[re.Pattern[str]]) -> list[str]:
    """Return the pieces with their white space; joined, they are the text."""
    if spoken_length(text.strip()) <= max_length:
        return [text]
    ends = [match.end() for match in cuts[0].finditer(text)] if cuts else list(range(1, len(text)))
    in_token = {i for m in CONTROL_TOKEN.finditer(text) for i in range(m.start() + 1, m.end())}
    ends = [end for end in ends if end not in in_token]
    parts = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    pieces = [""]
    for part in parts:
        if spoken_length((pieces[-1] + part).strip()) <= max_length:
            pieces[-1] += part
        elif spoken_length(part.strip()) <= max_length:
            pieces.append(part)
        else:
            pieces += _split(part, max_length, cuts[1:])
    return pieces
