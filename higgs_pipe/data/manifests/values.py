"""What a value in a manifest may be."""

import json
from typing import Any

LARGEST_INT = 2**31 - 1  # what a column of whole numbers holds


class NotRead(Exception):
    """A record that its reader has no use for; the message is the fact."""


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number of seconds, or at least could be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def is_whole_number(value: Any) -> bool:
    """Whether ``value`` counts something from 0; a float may, as tables with gaps have it."""
    if isinstance(value, float):
        return value.is_integer() and 0 <= value <= LARGEST_INT
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_INT


def is_encodable(text: str) -> bool:
    """Whether UTF-8 and a file system can take it: no half of a surrogate pair, no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def end_of(start_seconds: float, duration_seconds: float) -> float:
    """The end of a segment; 1.1 + 2.2 is 3.3 here."""
    return round(start_seconds + duration_seconds, 6)


def shown(value: Any) -> str:
    """The beginning of ``value``, for a message."""
    try:
        return f"{json.dumps(value, default=str):.60}"
    except (RecursionError, ValueError):
        return "something deeply nested"
