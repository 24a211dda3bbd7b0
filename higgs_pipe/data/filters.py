"""Filters on measured quality: each a setting of ``validate.filters`` with its own reason code."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from higgs_pipe.config import FilterConfig


class FilterReason(StrEnum):
    """Why a clip is filtered out, each with what to do about it."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> Self:
        """A reason code that carries its remedy."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.remedy = remedy
        return reason

    CLIPPED = "clipped", "take an original with more headroom, or drop the row"
    MOSTLY_SILENT = "mostly_silent", "cut the pauses out, or drop the row"
    LEADING_SILENCE = "leading_silence", "trim it, or give `start_seconds`"
    TRAILING_SILENCE = "trailing_silence", "trim it, or give `end_seconds`"
    NARROW_BAND = "narrow_band", "take an original that was never downsampled, or drop the row"
    DC_OFFSET = "dc_offset", "subtract the mean sample from it, or drop the row"
    NOISY = "noisy", "take a cleaner recording, or drop the row"
    QUIET = "quiet", "amplify it, if it is not noise alone, or drop the row"
    LOW_SAMPLE_RATE = "low_sample_rate", "take an original of a higher rate, or drop the row"
    FEW_CHARACTERS = "few_characters_per_second", "complete the transcript, or cut the pauses out"
    MANY_CHARACTERS = (
        "many_characters_per_second",
        "take out what the recording does not say",
    )
    FEW_WORDS = "few_words_per_second", "complete the transcript, or cut the pauses out"
    MANY_WORDS = "many_words_per_second", "take out what the recording does not say"
    WRONG_SCRIPT = "wrong_script", "mend `language` (sr-Latn names a script), or the text"


# The setting, the measure that it bounds from above (max_) or below (min_), and the reason.
BOUNDS = (
    ("max_clipping_fraction", "clipping_fraction", FilterReason.CLIPPED),
    ("max_silence_fraction", "silence_fraction", FilterReason.MOSTLY_SILENT),
    ("max_leading_silence_seconds", "leading_silence_seconds", FilterReason.LEADING_SILENCE),
    ("max_trailing_silence_seconds", "trailing_silence_seconds", FilterReason.TRAILING_SILENCE),
    ("min_bandwidth_hz", "bandwidth_hz", FilterReason.NARROW_BAND),
    ("max_dc_offset", "dc_offset", FilterReason.DC_OFFSET),
    ("min_snr_db", "snr_db", FilterReason.NOISY),
    ("min_rms_dbfs", "rms_dbfs", FilterReason.QUIET),
    ("min_sample_rate_hz", "sample_rate_hz", FilterReason.LOW_SAMPLE_RATE),
    ("min_characters_per_second", "characters_per_second", FilterReason.FEW_CHARACTERS),
    ("max_characters_per_second", "characters_per_second", FilterReason.MANY_CHARACTERS),
    ("min_words_per_second", "words_per_second", FilterReason.FEW_WORDS),
    ("max_words_per_second", "words_per_second", FilterReason.MANY_WORDS),
)


def faults(measures: Mapping[str, Any], limits: FilterConfig) -> list[tuple[FilterReason, str]]:
    """What the filters have against a clip: reason and fact for each that it does not pass.

    Args:
        measures: The clip's measures by the names of their columns, ``sample_rate_hz`` among them.
        limits: The filters.
    """
    found = []
    for setting, measure, reason in BOUNDS:
        limit, value = getattr(limits, setting), measures[measure]
        if limit is None:
            continue
        if setting.startswith("max_") and value > limit:
            found.append((reason, _fact(measure, value, "more", setting, limit)))
        elif setting.startswith("min_") and value < limit:
            found.append((reason, _fact(measure, value, "less", setting, limit)))
    if limits.require_language_script and measures["fits_language"] is False:
        fact = f"most letters of `text` are of the script {measures['script']}, not its language's"
        found.append((FilterReason.WRONG_SCRIPT, fact))
    return found


def _fact(measure: str, value: float, comparison: str, setting: str, limit: float) -> str:
    return f"its {measure} is {value:.4g}, {comparison} than validate.filters.{setting} = {limit:g}"
