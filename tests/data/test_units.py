"""Measured values as text for a person."""

import numpy as np
import pytest

from higgs_pipe.data.units import UNITS, in_words, number, with_unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10_800.4, "10,800"),
        (1000.0, "1,000"),
        (1_234_567.0, "1,234,567"),
        (0.18416, "0.1842"),
        (0.00002, "0.00002"),
        (-36.9912, "-36.99"),
        (0.0, "0"),
        (1e38, "1e+38"),
        (float(np.float32(0.7)), "0.7"),
    ],
)
def test_numbers_are_written_in_plain_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_number_of_two_digits_has_no_exponent_either() -> None:
    assert [number(value, 2) for value in (124.0, 4.0, 0.996)] == ["120", "4", "1"]


def test_the_unit_follows_from_the_ending_of_the_measure_name() -> None:
    assert with_unit("bandwidth_hz", 7450.0) == "7,450 Hz"
    assert with_unit("rms_dbfs", -23.0) == "-23 dBFS"
    assert with_unit("snr_db", 31.5) == "31.5 dB"
    assert with_unit("trailing_silence_seconds", 1.5) == "1.5 s"
    assert with_unit("characters_per_second", 12.25) == "12.25 per second"
    assert with_unit("silence_fraction", 0.25) == "0.25"


def test_the_label_of_a_measure_omits_its_unit() -> None:
    names = ("si_sdr_db", "bandwidth_hz", "leading_silence_seconds", "words_per_second", "peak")
    words = ["SI SDR", "bandwidth", "leading silence", "words per second", "peak"]
    assert [in_words(name) for name in names] == words


def test_no_unit_ending_is_a_suffix_of_another() -> None:
    """Otherwise a measure would have two units."""
    assert not any(a != b and a.endswith(b) for a in UNITS for b in UNITS)
