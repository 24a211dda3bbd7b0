"""Measured values as readable text: plain digits, with their unit."""

import numpy as np

UNITS = {
    "_hz": "Hz",
    "_db": "dB",
    "_dbfs": "dBFS",
    "_per_second": "per second",
    "_seconds": "s",
}
ABBREVIATIONS = ("RMS", "DC", "SNR", "STOI", "PESQ", "SI", "SDR")


def number(value: float, num_digits: int = 4) -> str:
    """Render with ``num_digits`` significant digits, or as a whole number: ``0.1842``, ``10,800``.

    It has an exponent only beyond a billion, as in a broken sample.
    """
    if abs(value) > 1e9:
        return f"{value:.{num_digits}g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return np.format_float_positional(value, precision=num_digits, fractional=False, trim="-")


def in_words(measure: str) -> str:
    """Render the name of a measure without its unit: ``SNR`` of ``snr_db``, ``bandwidth``."""
    endings = [ending for ending in UNITS if measure.endswith(ending) and ending != "_per_second"]
    words = measure.removesuffix(endings[0] if endings else "").split("_")
    return " ".join(word.upper() if word.upper() in ABBREVIATIONS else word for word in words)


def with_unit(measure: str, value: float) -> str:
    """Render the value of a measure, whose name ends in its unit: ``10,800 Hz`` of a bandwidth."""
    units = [unit for ending, unit in UNITS.items() if measure.endswith(ending)]
    return " ".join([number(value), *units[:1]])
