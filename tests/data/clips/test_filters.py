"""Quality filters: each bound rejects values beyond it and names itself in the message."""

from __future__ import annotations

from typing import Any

import pytest

from higgs_pipe.config.settings import FilterConfig
from higgs_pipe.data.clips.filters import BOUNDS, faults
from higgs_pipe.data.clips.reasons import Reason

GOOD: dict[str, Any] = {
    "clipping_fraction": 0.0,
    "silence_fraction": 0.2,
    "leading_silence_seconds": 0.1,
    "trailing_silence_seconds": 0.2,
    "bandwidth_hz": 10_000.0,
    "dc_offset": 0.001,
    "snr_db": 40.0,
    "rms_dbfs": -20.0,
    "sample_rate_hz": 24_000,
    "characters_per_second": 12.0,
    "words_per_second": 2.5,
    "script": "Latn",
    "fits_language": True,
}


def found(measures: dict[str, Any], **limits: Any) -> list[tuple[str, str]]:
    faults_found = faults(GOOD | measures, FilterConfig(**limits))
    return [(fault.reason.value, fault.fact) for fault in faults_found]


@pytest.mark.parametrize(
    ("measures", "limits", "reason"),
    [
        ({"clipping_fraction": 0.02}, {"max_clipping_fraction": 0.01}, "clipped"),
        ({"silence_fraction": 0.7}, {"max_silence_fraction": 0.6}, "mostly_silent"),
        ({"leading_silence_seconds": 2}, {"max_leading_silence_seconds": 1}, "leading_silence"),
        ({"trailing_silence_seconds": 2}, {"max_trailing_silence_seconds": 1}, "trailing_silence"),
        ({"bandwidth_hz": 3900}, {"min_bandwidth_hz": 5000}, "narrow_band"),
        ({"dc_offset": 0.1}, {"max_dc_offset": 0.02}, "dc_offset"),
        ({"snr_db": 5}, {"min_snr_db": 15}, "noisy"),
        ({"rms_dbfs": -60}, {"min_rms_dbfs": -45}, "quiet"),
        ({"sample_rate_hz": 8000}, {"min_sample_rate_hz": 16_000}, "low_sample_rate"),
        (
            {"characters_per_second": 1},
            {"min_characters_per_second": 4},
            "few_characters_per_second",
        ),
        (
            {"characters_per_second": 40},
            {"max_characters_per_second": 25},
            "many_characters_per_second",
        ),
        ({"words_per_second": 0.2}, {"min_words_per_second": 0.8}, "few_words_per_second"),
        ({"words_per_second": 9}, {"max_words_per_second": 6}, "many_words_per_second"),
        (
            {"script": "Cyrl", "fits_language": False},
            {"require_language_script": True},
            "wrong_script",
        ),
    ],
)
def test_a_filter_rejects_values_beyond_it_and_is_off_by_default(
    measures: dict[str, Any], limits: dict[str, Any], reason: str
) -> None:
    assert [code for code, _ in found(measures, **limits)] == [reason]
    assert found(measures) == []
    assert found({}, **limits) == []


def test_a_measure_equal_to_its_limit_passes() -> None:
    assert found({"snr_db": 15.0, "dc_offset": 0.02}, min_snr_db=15, max_dc_offset=0.02) == []


def test_every_fault_names_measure_limit_and_setting() -> None:
    facts = [
        fact
        for _, fact in found({"snr_db": 5.04, "dc_offset": 0.5}, min_snr_db=15, max_dc_offset=0.02)
    ]
    assert facts == [
        "its dc_offset is 0.5, more than validate.filters.max_dc_offset = 0.02",
        "its snr_db is 5.04 dB, less than validate.filters.min_snr_db = 15 dB",
    ]


def test_text_of_unknown_language_or_script_passes() -> None:
    assert found({"script": None, "fits_language": None}, require_language_script=True) == []


def test_every_filter_has_its_own_reason_with_a_remedy() -> None:
    settings = [setting for setting, _, _ in BOUNDS] + ["require_language_script"]
    assert sorted(settings) == sorted(FilterConfig.model_fields)
    reasons = [reason for _, _, reason in BOUNDS] + [Reason.WRONG_SCRIPT]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.remedy for reason in reasons)
