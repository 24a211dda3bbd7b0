"""Errors of a transcript against the text that should have been spoken."""

from dataclasses import dataclass
from functools import cache

import jiwer
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from higgs_pipe.data.speech import words_of


@dataclass(frozen=True)
class TextErrors:
    """Words and characters inserted, deleted or substituted, and their number in the text."""

    num_word_errors: int
    num_words: int
    num_character_errors: int
    num_characters: int


def count_errors(text: str, transcript: str, language: str | None) -> TextErrors:
    """Count the errors of a transcript.

    Both texts are normalised as for Whisper's published results: case, punctuation and text in
    brackets do not count, nor in English do number words versus digits, contractions and
    hesitations. In scripts without spaces between words, each letter is a word. White space is
    not counted as a character.

    Args:
        text: What should have been spoken.
        transcript: The recogniser's output.
        language: ISO 639 code of the text; script and region may follow. None: unknown.
    """
    normalise = _normaliser((language or "").split("-")[0].lower() in ("en", "eng"))
    expected, found = words_of(normalise(text)), words_of(normalise(transcript))
    expected_characters, found_characters = "".join(expected), "".join(found)
    num_word_errors, num_character_errors = len(found), len(found_characters)
    if expected:
        words = jiwer.process_words(" ".join(expected), " ".join(found))
        characters = jiwer.process_characters(expected_characters, found_characters)
        num_word_errors = words.substitutions + words.deletions + words.insertions
        num_character_errors = (
            characters.substitutions + characters.deletions + characters.insertions
        )
    return TextErrors(
        num_word_errors=num_word_errors,
        num_words=len(expected),
        num_character_errors=num_character_errors,
        num_characters=len(expected_characters),
    )


@cache
def _normaliser(is_english: bool) -> BasicTextNormalizer | EnglishTextNormalizer:
    return EnglishTextNormalizer({}) if is_english else BasicTextNormalizer()
