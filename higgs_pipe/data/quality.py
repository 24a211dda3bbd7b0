"""Measures of a recording and of its transcript, for filters and outliers.

Each measure is described where it is declared; its Parquet column carries the same sentence.
Together they take one pass over the samples per level, and a spectrum of a few windows.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from fontTools.unicodedata import script as script_of_character

from higgs_pipe.data.text import without_control_tokens

# Of full scale.
SILENT_PEAK = 1e-4  # three steps of 16-bit audio
MAX_PEAK = 100.0  # far above any overshoot: integers written as floating point, or noise
CLIPPING_LEVEL = 0.999  # 0.009 dB below it

# Levels are those of frames of 20 ms; a shorter rest at the end is in none.
FRAME_SECONDS = 0.02
LOUD_PERCENTILE = 95
QUIET_PERCENTILE = 10
SILENCE_BELOW_LOUD_DB = 40.0
# Noise of rounding to 16 bits, a step squared over 12; anything quieter is digital silence.
MIN_NOISE_POWER = 2.0**-30 / 12

NUM_SPECTRUM_FRAMES = 32
BANDWIDTH_BELOW_PEAK_DB = 50.0

# Modified z-score: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993).
MIN_OUTLIER_SCORE = 3.5
MIN_VALUES_FOR_OUTLIERS = 8

# Scripts by their ISO 15924 codes. Those whose words stand without spaces between them:
SPACELESS_SCRIPTS = frozenset(
    {"Hani", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}
)
# Codes that stand for several scripts written together.
JOINT_SCRIPTS = {
    "Hans": frozenset({"Hani"}),
    "Hant": frozenset({"Hani"}),
    "Jpan": frozenset({"Hani", "Hira", "Kana"}),
    "Kore": frozenset({"Hang", "Hani"}),
}
# Codes that do not name a language: undetermined, several, none, uncoded.
NO_LANGUAGE = frozenset({"und", "mul", "zxx", "mis"})

Powers = npt.NDArray[np.float64]


def _measure(description: str) -> Any:
    return field(metadata={"description": description})


@dataclass(frozen=True)
class AudioMeasures:
    """Measures of the signal that the codec gets; of all channels where stated."""

    peak: float = _measure("Largest absolute sample of any channel, full scale is 1.")
    rms_dbfs: float = _measure("Root mean square level, in dB of full scale.")
    clipping_fraction: float = _measure(
        "Share of the samples, all channels, that reach 99.9 % of full scale."
    )
    dc_offset: float = _measure("Distance of the mean sample from 0, full scale is 1.")
    leading_silence_seconds: float = _measure("Silence before the first sound, in seconds.")
    trailing_silence_seconds: float = _measure("Silence after the last sound, in seconds.")
    silence_fraction: float = _measure(
        "Share of the frames of 20 ms that are silent: 40 dB below the 95th percentile of levels."
    )
    bandwidth_hz: float = _measure(
        "Highest frequency, in Hz, less than 50 dB below the strongest of the mean power spectrum."
    )
    snr_db: float = _measure(
        "Signal-to-noise ratio, in dB, estimated from the levels of speech and of its pauses."
    )


@dataclass(frozen=True)
class TextMeasures:
    """Measures of a transcript."""

    num_characters: int = _measure("Characters (NFC) that are not white space.")
    num_words: int = _measure(
        "Words between spaces; where a script has no spaces, each letter counts as one."
    )
    characters_per_second: float = _measure("Characters per second of the clip.")
    words_per_second: float = _measure("Words per second of the clip.")
    script: str | None = _measure("Script of most letters, by ISO 15924; missing: no letters.")
    fits_language: bool | None = _measure(
        "Whether the language is written in that script; missing: either is unknown."
    )


def peak(samples: npt.NDArray[np.float32]) -> float:
    """Return the largest absolute sample of (num_samples, num_channels); NaN if any is NaN."""
    return float(np.maximum(samples.max(), -samples.min()))


def measure_audio(
    samples: npt.NDArray[np.float32], sample_rate_hz: int, highest: float | None = None
) -> AudioMeasures:
    """Measure a recording.

    Bandwidth is that of Bakhturina et al., Hi-Fi Multi-Speaker English TTS Dataset (2021). For the
    signal-to-noise ratio, noise is the level of the quietest frames; signal is the excess over it
    of the frames above the middle between quiet and loud. Without pauses the ratio is near 0 dB.

    Args:
        samples: (num_samples, num_channels), at least one sample, finite.
        sample_rate_hz: Their rate.
        highest: Their :func:`peak`, if known.
    """
    num_channels = samples.shape[1]
    highest = peak(samples) if highest is None else highest
    frame_length = min(max(1, round(FRAME_SECONDS * sample_rate_hz)), len(samples))
    num_frames = len(samples) // frame_length
    frames = samples[: num_frames * frame_length].reshape(num_frames, frame_length * num_channels)
    rest = samples[num_frames * frame_length :].reshape(-1)
    # float32 sums per frame, float64 over frames: exact enough, and fast.
    energies = np.einsum("fs,fs->f", frames, frames).astype(np.float64)  # (num_frames,)
    energy = energies.sum() + np.dot(rest, rest)
    total = np.einsum("fs->f", frames).sum(dtype=np.float64) + rest.sum()
    powers = energies / frames.shape[1]
    ordered = np.sort(powers)

    loud = _percentile(ordered, LOUD_PERCENTILE)
    sounds = np.flatnonzero(powers > max(loud * _ratio(-SILENCE_BELOW_LOUD_DB), MIN_NOISE_POWER))
    first, end = (int(sounds[0]), int(sounds[-1]) + 1) if len(sounds) else (num_frames, num_frames)
    frame_seconds = frame_length / sample_rate_hz
    return AudioMeasures(
        peak=highest,
        rms_dbfs=10 * math.log10(energy / samples.size) if energy > 0 else -math.inf,
        clipping_fraction=clipping_fraction(samples, highest),
        dc_offset=abs(float(total / samples.size)),
        leading_silence_seconds=first * frame_seconds,
        trailing_silence_seconds=(num_frames - end) * frame_seconds,
        silence_fraction=1 - len(sounds) / num_frames,
        bandwidth_hz=_bandwidth_hz(frames.reshape(num_frames, frame_length, -1), sample_rate_hz),
        snr_db=_snr_db(ordered),
    )


def measure_text(text: str, language: str | None, duration_seconds: float) -> TextMeasures:
    """Measure a transcript.

    Args:
        text: The transcript.
        language: An ISO 639 code of two or three letters; script and region may follow
            (``zh-TW``, ``sr-Latn``). Anything else counts as None.
        duration_seconds: The length of the clip.
    """
    text = unicodedata.normalize("NFC", without_control_tokens(text))
    num_characters = len(text) - sum(map(str.isspace, text))
    num_words = sum(map(_num_words, text.split()))
    script = _dominant_script(text)
    expected = None if language is None else scripts_of_language(language)
    return TextMeasures(
        num_characters=num_characters,
        num_words=num_words,
        characters_per_second=num_characters / duration_seconds,
        words_per_second=num_words / duration_seconds,
        script=script,
        fits_language=None if script is None or expected is None else script in expected,
    )


@cache
def scripts_of_language(language: str) -> frozenset[str] | None:
    """Return the ISO 15924 codes of a language's scripts (CLDR likely subtags), or None."""
    import langcodes  # slow to import, and only texts need it
    from langcodes.tag_parser import LanguageTagError

    try:
        tag = langcodes.get(language)
    except LanguageTagError:
        return None
    if not tag.is_valid() or tag.language is None or tag.language in NO_LANGUAGE:
        return None
    script = tag.maximize().script
    return None if script is None else JOINT_SCRIPTS.get(script, frozenset({script}))


def outliers(values: Sequence[float]) -> list[int]:
    """Return the indices of values far from the rest; none among fewer than eight.

    Far means a modified z-score above 3.5: the distance from the median over 1.4826 times the
    median distance, or if that is 0, over 1.2533 times the mean (Iglewicz and Hoaglin, 1993).
    """
    if len(values) < MIN_VALUES_FOR_OUTLIERS:
        return []
    distances = np.abs(np.asarray(values, np.float64) - np.median(values))
    spread = 1.4826 * np.median(distances) or 1.2533 * distances.mean()
    return np.flatnonzero(distances > MIN_OUTLIER_SCORE * spread).tolist()


def _ratio(decibels: float) -> float:
    """Return the ratio of powers of a difference of levels."""
    return float(10 ** (decibels / 10))


def _percentile(ordered: Powers, percent: float) -> float:
    return float(ordered[round(percent / 100 * (len(ordered) - 1))])


def clipping_fraction(samples: npt.NDArray[np.float32], highest: float) -> float:
    """Return the share of samples that reach 99.9 % of full scale; ``highest`` is their peak."""
    if highest < CLIPPING_LEVEL:
        return 0.0
    return float(np.count_nonzero(np.abs(samples) >= CLIPPING_LEVEL) / samples.size)


def _bandwidth_hz(frames: npt.NDArray[np.float32], sample_rate_hz: int) -> float:
    """Return the bandwidth of frames (num_frames, frame_length, num_channels), spread evenly."""
    num_frames, frame_length, _ = frames.shape
    chosen = np.linspace(0, num_frames - 1, min(num_frames, NUM_SPECTRUM_FRAMES)).round()
    windows = np.einsum("fsc->fs", frames[chosen.astype(np.int64)])  # (num_chosen, frame_length)
    # In float64: NumPy's transform is slower in float32.
    spectra = np.fft.rfft(windows * _window(frame_length))  # (num_chosen, num_bins)
    parts = spectra.view(np.float64)  # real and imaginary, (num_chosen, 2 * num_bins)
    power = np.einsum("wb,wb->b", parts, parts).reshape(-1, 2).sum(axis=1)  # (num_bins,)
    power[:2] = 0  # where the window puts a DC offset
    strong = np.flatnonzero(power > power.max() * _ratio(-BANDWIDTH_BELOW_PEAK_DB))
    return float(strong[-1] * sample_rate_hz / frame_length) if len(strong) else 0.0


@cache
def _window(frame_length: int) -> npt.NDArray[np.float64]:
    """Return the periodic Hann window."""
    return np.hanning(frame_length + 1)[:-1]


def _snr_db(ordered: Powers) -> float:
    """Return the signal-to-noise ratio of frames, given their powers in rising order."""
    audible = ordered[np.searchsorted(ordered, MIN_NOISE_POWER) :]  # padding is not noise
    if not len(audible):
        return 0.0
    noise = _percentile(audible, QUIET_PERCENTILE)
    middle = math.sqrt(noise * _percentile(audible, LOUD_PERCENTILE))
    speech = audible[np.searchsorted(audible, middle) :].mean()
    return 10 * math.log10(max(float(speech) / noise - 1, 1.0))


def _num_words(piece: str) -> int:
    """Return the number of words of a text without white space."""
    if piece.isascii():
        return int(any(map(str.isalnum, piece)))
    alone = [c for c in piece if c.isalnum() and _script(c) in SPACELESS_SCRIPTS]
    # A sign that lengthens or repeats (a Japanese long vowel) is not a word by itself.
    others = (c for c in piece if c.isalnum() and c not in alone)
    return len(alone) + int(any(unicodedata.category(c) != "Lm" for c in others))


def _dominant_script(text: str) -> str | None:
    letters = Counter(filter(str.isalpha, text))
    scripts: Counter[str] = Counter()
    for letter, times in letters.items():
        scripts[_script(letter)] += times
    scripts.pop("Zyyy", None)  # common to several scripts
    return max(sorted(scripts), key=scripts.__getitem__, default=None)


@cache
def _script(character: str) -> str:
    """Return the ISO 15924 code of a character's script."""
    code: str = script_of_character(character)
    return code
