"""What speech models tell of a recording, and how far a transcript is from another."""

import unicodedata
from dataclasses import dataclass

import jiwer
from fontTools.unicodedata import script as script_of_character

from higgs_pipe.data.quality import SPACELESS_SCRIPTS
from higgs_pipe.data.text import bare_words


@dataclass(frozen=True)
class SpeechMeasures:
    """What the speech models tell of a recording; None where there is no such model."""

    transcript: str | None
    stoi: float | None
    pesq: float | None
    si_sdr_db: float | None
    speaker_embedding: list[float] | None


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Words put in, left out or changed, over the words of ``reference``.

    Case, punctuation, widths of signs and white space do not count. Where words are written
    without spaces between them (Chinese, Japanese, Thai), each letter is a word.

    Returns:
        0 for equal words; above 1 where more was put in than there was. A reference without words
        has as many errors as the hypothesis has words.
    """
    expected, found = _words(reference), _words(hypothesis)
    if not expected:
        return float(len(found))
    return float(jiwer.wer(" ".join(expected), " ".join(found)))


def _words(text: str) -> list[str]:
    # An apostrophe stands within a word: "it's" is "its" to a recogniser that writes none.
    text = bare_words(unicodedata.normalize("NFKC", text).replace("'", "").replace("\u2019", ""))
    return words_of(text)


def words_of(text: str) -> list[str]:
    """Split a text at white space; where a script has no spaces, each letter is a word."""
    return "".join(
        f" {character} " if script_of_character(character) in SPACELESS_SCRIPTS else character
        for character in text
    ).split()
