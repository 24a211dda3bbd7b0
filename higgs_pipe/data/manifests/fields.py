"""Keys of a row, and checks of their values."""

import json
import os
import re
from functools import cache
from typing import Any

REQUIRED_KEYS = ("audio", "text")
SECONDS_KEYS = ("start_seconds", "end_seconds")
# Facts about the file, compared with the file by validate.
DECLARED_KEYS = ("duration_seconds", "sample_rate_hz")
NUMBER_KEYS = (*SECONDS_KEYS, *DECLARED_KEYS, "turn")
TEXT_KEYS = (
    *REQUIRED_KEYS,
    "id", "speaker", "language", "scene", "ref_audio", "ref_text", "split", "dialogue_id",
)  # fmt: skip
OUR_KEYS = frozenset({*TEXT_KEYS, *NUMBER_KEYS})

LARGEST_INT = 2**31 - 1  # of a column of whole numbers

# Codes of languages that lists have beside those of ISO 639-1; all of three letters could be names.
COUNTRIES_FOR_LANGUAGES = frozenset({"jp", "kr", "cn", "cz"})
LONG_LANGUAGE_CODES = frozenset(
    {
        "eng", "deu", "ger", "fra", "fre", "spa", "por", "ita", "nld", "rus", "ukr", "pol",
        "jpn", "kor", "zho", "chi", "cmn", "yue", "ara", "hin", "vie", "tur",
    }
)  # fmt: skip

Fields = dict[str, Any]


class RowFault(Exception):
    """A line or sample that its reader cannot use; the message is the fact."""


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number that may be seconds: finite and below 1e9."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def as_number(text: Any) -> Any:
    """Return the number that a text spells, None for a blank text, or else the value itself."""
    try:
        return float(text) if isinstance(text, str) and text.strip() else text or None
    except ValueError:
        return text


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


def as_text(path: str) -> str:
    r"""Return a path as text that can be stored; bytes that are not UTF-8 are shown as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def end_of(start_seconds: float, duration_seconds: float) -> float:
    """Return the end of a segment in seconds, rounded so that 1.1 + 2.2 is 3.3."""
    return round(start_seconds + duration_seconds, 6)


def shown(value: Any) -> str:
    """Return the beginning of ``value``, for a message."""
    if isinstance(value, str):
        value = value[:60]
    try:
        return f"{json.dumps(value, default=str):.60}"
    except (RecursionError, ValueError):
        return "something deeply nested"


def is_language_code(value: str) -> bool:
    """Return whether ``value`` is a language by its code: en, zh-CN, pt_BR, JP."""
    code = re.split(r"[-_]", value.strip().lower())[0]
    if not re.fullmatch(r"[a-z]{2}", code):
        return value.strip().lower() in LONG_LANGUAGE_CODES
    return code in COUNTRIES_FOR_LANGUAGES or is_known_language(code)


@cache
def is_known_language(code: str) -> bool:
    """Return whether a code of two or three letters is that of a language."""
    import langcodes  # slow to import, and few manifests need it

    return langcodes.tag_is_valid(code)
