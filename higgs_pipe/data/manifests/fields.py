"""Keys of a row, and checks of their values."""

import json
from typing import Any

REQUIRED_KEYS = ("audio", "text")
SECONDS_KEYS = ("start_seconds", "end_seconds")
NUMBER_KEYS = (*SECONDS_KEYS, "turn")
TEXT_KEYS = (
    *REQUIRED_KEYS,
    *("id", "speaker", "language", "scene", "ref_audio", "ref_text", "split", "dialogue_id"),
)
OUR_KEYS = frozenset({*TEXT_KEYS, *NUMBER_KEYS})

LARGEST_INT = 2**31 - 1  # of a column of whole numbers

Fields = dict[str, Any]


class RowFault(Exception):
    """A line or sample that its reader cannot use; the message is the fact."""


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number that may be seconds: finite and below 1e9."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def is_whole_number(value: Any) -> bool:
    """Return whether ``value`` counts from 0; 3.0 does, as tables with gaps store it."""
    if isinstance(value, float):
        return value.is_integer() and 0 <= value <= LARGEST_INT
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_INT


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 and a file system can hold it: no lone surrogate, no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def end_of(start_seconds: float, duration_seconds: float) -> float:
    """Return the end of a segment in seconds, rounded so that 1.1 + 2.2 is 3.3."""
    return round(start_seconds + duration_seconds, 6)


def shown(value: Any) -> str:
    """Return the beginning of ``value``, for a message."""
    try:
        return f"{json.dumps(value, default=str):.60}"
    except (RecursionError, ValueError):
        return "something deeply nested"
