"""Filters on measured quality: each a setting of ``validate.filters`` with its own reason code."""

from collections.abc import Mapping
from typing import Any

from higgs_pipe.config.settings import FilterConfig
from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.units import with_unit

# The setting, the measure that it bounds from above (max_) or below (min_), and the reason.
BOUNDS = (
    ("max_clipping_fraction", "clipping_fraction", Reason.CLIPPED),
    ("max_silence_fraction", "silence_fraction", Reason.MOSTLY_SILENT),
    ("max_leading_silence_seconds", "leading_silence_seconds", Reason.LEADING_SILENCE),
    ("max_trailing_silence_seconds", "trailing_silence_seconds", Reason.TRAILING_SILENCE),
    ("min_bandwidth_hz", "bandwidth_hz", Reason.NARROW_BAND),
    ("max_dc_offset", "dc_offset", Reason.DC_OFFSET),
    ("min_snr_db", "snr_db", Reason.NOISY),
    ("min_rms_dbfs", "rms_dbfs", Reason.QUIET),
    ("min_sample_rate_hz", "sample_rate_hz", Reason.LOW_SAMPLE_RATE),
    ("min_characters_per_second", "characters_per_second", Reason.FEW_CHARACTERS_PER_SECOND),
    ("max_characters_per_second", "characters_per_second", Reason.MANY_CHARACTERS_PER_SECOND),
    ("min_words_per_second", "words_per_second", Reason.FEW_WORDS_PER_SECOND),
    ("max_words_per_second", "words_per_second", Reason.MANY_WORDS_PER_SECOND),
    ("max_word_error_rate", "word_error_rate", Reason.WORD_ERROR_RATE),
    ("min_stoi", "stoi", Reason.LOW_STOI),
    ("min_pesq", "pesq", Reason.LOW_PESQ),
    ("min_si_sdr_db", "si_sdr_db", Reason.LOW_SI_SDR),
)


def faults(measures: Mapping[str, Any], limits: FilterConfig) -> list[Fault]:
    """Return a fault for each filter that a clip does not pass.

    Args:
        measures: The clip's measures by the names of their columns, ``sample_rate_hz`` among them.
        limits: The filters.
    """
    found: list[Fault] = []
    for setting, measure, reason in BOUNDS:
        limit = getattr(limits, setting)
        if limit is None or measures[measure] is None:
            continue
        value = measures[measure]
        if setting.startswith("max_") and value > limit:
            found.append(Fault(reason, _fact(measure, value, "more", setting, limit)))
        elif setting.startswith("min_") and value < limit:
            found.append(Fault(reason, _fact(measure, value, "less", setting, limit)))
    if limits.require_language_script and measures["fits_language"] is False:
        fact = f"most letters of `text` are in script {measures['script']}, not its language's"
        found.append(Fault(Reason.WRONG_SCRIPT, fact))
    return found


def _fact(measure: str, value: float, comparison: str, setting: str, limit: float) -> str:
    found, bound = with_unit(measure, value), with_unit(measure, limit)
    return f"its {measure} is {found}, {comparison} than validate.filters.{setting} = {bound}"
