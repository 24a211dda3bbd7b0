"""Transcript files that hold more than words: labels with times, subtitles, JSON."""

import json
import re

# Start, end and label: of HTK (100 ns), TIMIT (samples), Audacity (seconds).
LABEL = re.compile(r"(\d+(?:\.\d+)?)[ \t]+(\d+(?:\.\d+)?)([ \t]+\S.*)?")
# A single line may also be a text that begins with two numbers; of TIMIT it begins with 0.
SINGLE_LABEL = re.compile(r"(?:0 +\d{4,} +|\d+\.\d+[ \t]+\d+\.\d+[ \t]+)[^\d\s].*")
SUBTITLE = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+ +--> +(?:\d+:)?\d+:\d+[.,]\d+", re.MULTILINE)
BEGINNINGS = {
    "WEBVTT": "subtitles",
    'File type = "ooTextFile': "a TextGrid of Praat",
    "<?xml": "XML",
}


def kind_of_transcript(text: str) -> str | None:
    """Return what a file holds in place of a plain text, or None for a text."""
    if kind := next((BEGINNINGS[start] for start in BEGINNINGS if text.startswith(start)), None):
        return kind
    if SUBTITLE.search(text):
        return "subtitles"
    if _is_labels([line.strip() for line in text.splitlines() if line.strip()]):
        return "labels with times"
    return "JSON" if _is_json_object(text) else None


def _is_labels(lines: list[str]) -> bool:
    if len(lines) < 2:
        return any(map(SINGLE_LABEL.fullmatch, lines))
    found = [match for line in lines if (match := LABEL.fullmatch(line))]
    times = [(float(match[1]), float(match[2])) for match in found]
    is_in_order = times == sorted(times) and all(start <= end for start, end in times)
    has_words = any(re.search(r"[^\W\d]", match[3] or "") for match in found)
    return len(found) == len(lines) and is_in_order and has_words


def _is_json_object(text: str) -> bool:
    if not text.startswith(("{", "[{")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
