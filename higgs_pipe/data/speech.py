"""Measures by speech models, and the word error rate of a transcript."""

import unicodedata
from dataclasses import dataclass

import jiwer
from fontTools.unicodedata import script as script_of_character

from higgs_pipe.data.quality import SPACELESS_SCRIPTS
from higgs_pipe.data.text import bare_words


@dataclass(frozen=True)
class SpeechMeasures:
    """Measures of a recording by speech models; None for a model that is off."""

    transcript: str | None
    stoi: float | None
    pesq: float | None
    si_sdr_db: float | None
    speaker_embedding: list[float] | None


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Return inserted, deleted and substituted words over the words of ``reference``.

    Case, punctuation, character widths and white space do not count. In scripts without spaces
    between words (Chinese, Japanese, Thai), each letter is a word.

    Returns:
        0 for equal words; above 1 with more insertions than words. A reference without words has
        as many errors as the hypothesis has words.
    """
    expected, found = _words(reference), _words(hypothesis)
    if not expected:
        return float(len(found))
    return float(jiwer.wer(" ".join(expected), " ".join(found)))


def _words(text: str) -> list[str]:
    # Some recognisers write no apostrophes: "it's" is "its".
    text = bare_words(unicodedata.normalize("NFKC", text).replace("'", "").replace("\u2019", ""))
    return words_of(text)


def words_of(text: str) -> list[str]:
    """Split a text at white space; where a script has no spaces, each letter is a word."""
    return "".join(
        f" {character} " if script_of_character(character) in SPACELESS_SCRIPTS else character
        for character in text
    ).split()
