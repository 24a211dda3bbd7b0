"""Audio and text measures of signals and sentences with known answers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from helpers import REAL_SPEECH, needs_real_speech

from higgs_pipe.data.quality import (
    AudioMeasures,
    TextMeasures,
    measure_audio,
    measure_text,
    outliers,
    peak,
    scripts_of_language,
)
from higgs_pipe.data.specs import MEASURE_COLUMNS, TableSpec
from higgs_pipe.data.tables import read_table, write_table

RATE = 24_000

Samples = npt.NDArray[np.float32]


def sine(frequency_hz: float, peak: float, seconds: float = 2.0) -> Samples:
    """A sine of shape (num_samples, 1)."""
    times = np.arange(round(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)[:, None]


def noise(rms: float, seconds: float = 2.0, seed: int = 0) -> Samples:
    """White noise of shape (num_samples, 1)."""
    samples = rms * np.random.default_rng(seed).standard_normal((round(seconds * RATE), 1))
    return samples.astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros((round(seconds * RATE), 1), np.float32)


def band_limited_noise(cutoff_hz: float, rms: float = 0.1) -> Samples:
    """Noise with nothing above ``cutoff_hz``: what upsampling from twice that rate gives."""
    spectrum = np.fft.rfft(noise(rms, seconds=4)[:, 0])
    spectrum[np.fft.rfftfreq(4 * RATE, 1 / RATE) > cutoff_hz] = 0
    return np.fft.irfft(spectrum).astype(np.float32)[:, None]


def bursts(peak: float = 0.3) -> Samples:
    """Tones of half a second with pauses of half a second: a speech-like envelope."""
    tone = sine(300, peak, seconds=0.5)
    return np.concatenate([tone, silence(0.5)] * 4)


def measured(samples: Samples, rate: int = RATE) -> AudioMeasures:
    return measure_audio(samples, rate)


# --- Audio ----------------------------------------------------------------------------------------


def test_peak_and_level_of_a_sine_match_the_formula() -> None:
    measures = measured(sine(440, peak=0.5))
    assert measures.peak == pytest.approx(0.5, abs=1e-4)
    assert measures.rms_dbfs == pytest.approx(10 * math.log10(0.5**2 / 2), abs=1e-3)


def test_the_peak_may_be_negative_and_32767_counts_as_clipped() -> None:
    """The largest 16-bit sample is 32,767 / 32,768."""
    lopsided = np.array([[0.25], [-0.75]], np.float32).repeat(RATE, axis=0)
    assert (peak(lopsided), measured(lopsided).clipping_fraction) == (0.75, 0)
    clipped = np.array([[0.25], [32767 / 32768]], np.float32).repeat(RATE, axis=0)
    assert measured(clipped).clipping_fraction == 0.5


def test_the_level_includes_samples_after_the_last_whole_frame() -> None:
    click = np.concatenate([silence(1), np.full((100, 1), 0.5, np.float32)])
    expected = 10 * math.log10(100 * 0.25 / (RATE + 100))
    assert measured(click).rms_dbfs == pytest.approx(expected)


def test_level_clipping_and_offset_cover_all_channels() -> None:
    stereo = np.concatenate([np.ones((RATE, 1)), np.zeros((RATE, 1))], axis=1).astype(np.float32)
    measures = measured(stereo)
    assert measures.rms_dbfs == pytest.approx(10 * math.log10(1 / 2))
    assert (measures.peak, measures.clipping_fraction, measures.dc_offset) == (1, 0.5, 0.5)


def test_a_sine_at_twice_full_scale_is_clipped_two_thirds_of_the_time() -> None:
    # |2 sin| is above 0.999 unless the phase is within asin(0.4995) of a crossing, near 1/6 pi.
    clipped = np.clip(sine(101, peak=2), -1, 1)
    assert measured(clipped).clipping_fraction == pytest.approx(2 / 3, abs=2e-3)
    assert measured(sine(101, peak=0.99)).clipping_fraction == 0


@pytest.mark.parametrize(("offset", "rms"), [(0.1, 0.02), (-0.1, 0.02), (0.5, 2e-5)])
def test_a_dc_offset_of_either_sign_is_measured_and_does_not_affect_bandwidth(
    offset: float, rms: float
) -> None:
    speech = band_limited_noise(3000, rms)
    shifted = measured(speech + np.float32(offset))
    assert shifted.dc_offset == pytest.approx(abs(offset), abs=1e-3)
    assert shifted.bandwidth_hz == measured(speech).bandwidth_hz


@pytest.mark.parametrize("cutoff_hz", [3400, 4000, 8000])
def test_bandwidth_is_the_cutoff_of_band_limited_noise(cutoff_hz: int) -> None:
    assert measured(band_limited_noise(cutoff_hz)).bandwidth_hz == pytest.approx(cutoff_hz, abs=150)


def test_bandwidth_of_white_noise_is_half_the_sample_rate() -> None:
    assert measured(noise(0.1)).bandwidth_hz == RATE / 2
    assert measure_audio(noise(0.1), 8000).bandwidth_hz == 4000


@pytest.mark.parametrize("snr_db", [5, 10, 20, 30, 40])
def test_snr_of_tones_in_noise_is_measured_within_1_db(snr_db: int) -> None:
    tones = bursts(peak=0.3)
    noise_rms = 0.3 / math.sqrt(2) * 10 ** (-snr_db / 20)
    noisy = tones + noise(noise_rms, seconds=len(tones) / RATE)
    assert measured(noisy).snr_db == pytest.approx(snr_db, abs=1)


def test_quiet_words_count_as_speech_in_the_snr() -> None:
    """The mean power of tones with peaks of 0.3 and 0.05, over that of the noise."""
    quiet, loud = sine(300, 0.05, seconds=0.5), sine(300, 0.3, seconds=0.5)
    words = np.concatenate([loud, silence(0.5), quiet, silence(0.5)] * 2)
    noisy = words + noise(0.002, seconds=4)
    expected = 10 * math.log10((0.3**2 + 0.05**2) / 4 / 0.002**2)
    assert measured(noisy).snr_db == pytest.approx(expected, abs=1)


def test_padding_with_zeros_does_not_change_snr() -> None:
    noisy = bursts() + noise(0.02, seconds=4)
    padded = np.concatenate([silence(1), noisy, silence(1)])
    assert measured(padded).snr_db == pytest.approx(measured(noisy).snr_db, abs=0.5)


def test_padding_below_one_16_bit_step_does_not_change_snr() -> None:
    noisy = bursts() + noise(0.02, seconds=4)
    padded = np.concatenate([noise(1e-7, 1), noisy, noise(1e-7, 1)])
    assert measured(padded).snr_db == pytest.approx(measured(noisy).snr_db, abs=0.5)


def test_short_pauses_are_enough_to_measure_noise() -> None:
    tones = np.concatenate([sine(300, 0.3, seconds=0.44), silence(0.06)] * 8)  # 12 % of the time
    noisy = tones + noise(0.3 / math.sqrt(2) / 10, seconds=4)
    assert measured(noisy).snr_db == pytest.approx(20, abs=1.5)


def test_bandwidth_is_that_of_the_widest_part_of_the_recording() -> None:
    """Parts follow one another, or are channels."""
    narrow, wide = band_limited_noise(2000), band_limited_noise(6000)
    both = [
        np.concatenate(parts, axis) for parts in ((narrow, wide), (wide, narrow)) for axis in (0, 1)
    ]
    for samples in both:
        assert measured(samples).bandwidth_hz == pytest.approx(6000, abs=150)


def test_without_pauses_snr_is_0_db() -> None:
    assert measured(sine(300, peak=0.3)).snr_db == pytest.approx(0, abs=0.1)


def test_leading_trailing_and_total_silence_are_measured() -> None:
    tone = sine(300, peak=0.3, seconds=1)
    samples = np.concatenate([silence(0.5), tone, silence(0.25), tone, silence(0.75)])
    measures = measured(samples)
    assert measures.leading_silence_seconds == pytest.approx(0.5, abs=0.02)
    assert measures.trailing_silence_seconds == pytest.approx(0.75, abs=0.02)
    assert measures.silence_fraction == pytest.approx(1.5 / 3.5, abs=0.02)


def test_silence_is_exact_to_the_frame() -> None:
    tone = sine(310, peak=0.3, seconds=0.2)
    measures = measured(np.concatenate([silence(0.1), tone, silence(0.06)]))
    assert measures.leading_silence_seconds == pytest.approx(0.1)
    assert measures.trailing_silence_seconds == pytest.approx(0.06)
    assert measures.silence_fraction == pytest.approx(0.16 / 0.36)


def test_silence_is_counted_in_frames_of_whole_samples() -> None:
    """At 11,025 Hz a frame of 20 ms has 220 samples, not 220.5."""
    tone = sine(440, peak=0.5, seconds=1)[:2200]
    before, after = np.zeros((11_000, 1), np.float32), np.zeros((4_400, 1), np.float32)
    found = measure_audio(np.concatenate([before, tone, after]), 11_025)
    assert found.leading_silence_seconds == pytest.approx(11_000 / 11_025)
    assert found.trailing_silence_seconds == pytest.approx(4_400 / 11_025)


def test_a_recording_below_one_16_bit_step_is_all_silence() -> None:
    faint = noise(2.0**-18)  # an eighth of a step of 16 bits
    for num_channels in (1, 8):
        found = measured(np.tile(faint, (1, num_channels)))
        assert found.silence_fraction == 1
        assert (found.leading_silence_seconds, found.trailing_silence_seconds) == (2, 0)
    assert measured(noise(2.0**-14)).silence_fraction == 0


def test_leading_noise_is_silence_at_42_but_not_at_38_db_below_the_tone() -> None:
    tone = sine(300, peak=0.3, seconds=1)
    for below_db, seconds in ((42, 1), (38, 0)):
        faint = noise(0.3 / math.sqrt(2) * 10 ** (-below_db / 20), 1)
        assert measured(np.concatenate([faint, tone])).leading_silence_seconds == seconds


@pytest.mark.parametrize("gain", [0.01, 3.0])
def test_silence_bandwidth_and_snr_do_not_depend_on_gain(gain: float) -> None:
    noisy = bursts(peak=0.2) + noise(0.002, seconds=4)
    one, other = asdict(measured(noisy)), asdict(measured(noisy * np.float32(gain)))
    for name in ("silence_fraction", "bandwidth_hz", "snr_db", "leading_silence_seconds"):
        assert one[name] == pytest.approx(other[name], abs=1e-3)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 100, 479, 480, 481])
@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("num_channels", [1, 8])
def test_very_short_recordings_have_finite_measures(
    num_samples: int, value: float, num_channels: int
) -> None:
    measures = measured(np.full((num_samples, num_channels), value, np.float32))
    assert (measures.peak, measures.dc_offset) == (value, value)
    assert measures.silence_fraction == (value == 0)
    assert not any(math.isnan(measure) for measure in asdict(measures).values())


@needs_real_speech
def test_real_recordings_have_the_measures_of_clean_speech() -> None:
    for line in REAL_SPEECH.read_text().splitlines():
        row = json.loads(line)
        samples, rate = sf.read(REAL_SPEECH.parent / row["audio"], dtype="float32", always_2d=True)
        measures = measured(samples, rate)
        assert measures.clipping_fraction == 0
        assert measures.dc_offset < 1e-3
        assert 0.9 * min(rate, 22_050) / 2 < measures.bandwidth_hz <= rate / 2
        assert 15 < measures.snr_db < 60
        assert measures.silence_fraction < 0.3
        assert measures.leading_silence_seconds + measures.trailing_silence_seconds < 0.5
        text = measure_text(row["text"], row["language"], len(samples) / rate)
        assert 8 < text.characters_per_second < 25
        assert 1.5 < text.words_per_second < 5
        assert text.fits_language


def test_bandwidth_ends_where_the_spectrum_falls_50_db_below_its_peak() -> None:
    for below_db, expected_hz in ((40, 8_000), (60, 1_000)):
        overtone = sine(8_000, 0.5 * 10 ** (-below_db / 20))
        assert measured(sine(1_000, 0.5) + overtone).bandwidth_hz == pytest.approx(
            expected_hz, abs=100
        )


def test_one_loud_frame_in_ten_makes_the_others_silent() -> None:
    """The level of loud speech is the 95th percentile: the loudest of ten frames."""
    levels = [0.5 * 10 ** (-45 / 20)] * 9 + [0.5]
    frames = [sine(500, level, seconds=0.02) for level in levels]
    assert measured(np.concatenate(frames)).silence_fraction == pytest.approx(0.9)


# --- Text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "num_characters", "num_words", "script"),
    [
        ("Hello, world!", 12, 2, "Latn"),
        (" Well - 12 of\tthem. ", 14, 4, "Latn"),
        ("Привет, мир", 10, 2, "Cyrl"),
        ("مرحبا بالعالم", 12, 2, "Arab"),
        ("שלום עולם", 8, 2, "Hebr"),
        ("नमस्ते दुनिया", 12, 2, "Deva"),
        ("안녕 세상", 4, 2, "Hang"),
        ("今天天气很好。", 7, 6, "Hani"),
        ("データが", 4, 3, "Kana"),
        ("えーーーー", 5, 1, "Hira"),  # a sign that several scripts share
        ("iPhoneを買う", 9, 4, "Latn"),
        ("สวัสดี", 6, 4, "Thai"),
        ("Ту tu", 4, 2, "Cyrl"),  # two letters each: the first by its code
        ("a ١٢٣", 4, 2, "Latn"),  # Arabic digits are no letters
        ("12 345", 5, 2, None),
        ("😀 🎉!", 3, 0, None),
        ("e\u0301te\u0301", 3, 1, "Latn"),
        ("ｆｕｌｌ", 4, 1, "Latn"),
        ("", 0, 0, None),
    ],
)
def test_characters_words_and_script_match_hand_counts(
    text: str, num_characters: int, num_words: int, script: str | None
) -> None:
    measures = measure_text(text, None, 1.0)
    assert (measures.num_characters, measures.num_words) == (num_characters, num_words)
    assert measures.script == script


def test_control_tokens_count_as_neither_characters_nor_words() -> None:
    measures = measure_text("<|emotion:happy|> Hello, world!", "en", 0.5)
    assert measures == measure_text("Hello, world!", "en", 0.5)


def test_speaking_rates_are_counts_per_second_of_the_clip() -> None:
    measures = measure_text("Hello, world!", "en", 0.5)
    assert (measures.characters_per_second, measures.words_per_second) == (24, 4)


@pytest.mark.parametrize(
    ("text", "language", "fits"),
    [
        ("Hello", "en", True),
        ("Hello", "eng", True),
        ("Hello", "en-US", True),
        ("Привет", "en", False),
        ("Hello", "ru_RU", False),
        ("Привет, world", "ru", True),
        ("你好", "zh", True),
        ("你好", "zh-TW", True),
        ("你好", "cmn", True),
        ("你好", "ja", True),
        ("こんにちは", "ja", True),
        ("こんにちは", "zh", False),
        ("안녕", "kor", True),
        ("漢字", "ko", True),
        ("あああああ abc", "ja", True),  # most letters, not most kinds of letters
        ("Zdravo", "sr", False),
        ("Zdravo", "sr-Latn", True),
        ("Hello", "english", None),
        ("Hello", "xx", None),
        ("Hello", "und", None),
        ("Hello", "mul", None),
        ("Hello", None, None),
        ("12", "en", None),
    ],
)
def test_text_fits_its_language_if_its_script_does(
    text: str, language: str | None, fits: bool | None
) -> None:
    assert measure_text(text, language, 1.0).fits_language is fits


def test_languages_map_to_their_scripts() -> None:
    assert set(scripts_of_language("ja") or ()) == {"Hani", "Hira", "Kana"}
    assert set(scripts_of_language("fas") or ()) == {"Arab"}


# --- Outliers -------------------------------------------------------------------------------------


def test_outliers_are_far_from_the_median() -> None:
    # The median is 12, the median distance 1: far is more than 3.5 * 1.4826 = 5.2 away.
    assert outliers([10, 11, 11, 12, 12, 13, 13, 17, 18, 5]) == [8, 9]


def test_an_extreme_value_does_not_hide_other_outliers() -> None:
    assert outliers([10, 11, 11, 12, 12, 13, 13, 30, 1e6]) == [7, 8]


def test_fewer_than_eight_or_equal_values_have_no_outliers() -> None:
    assert outliers([1, 1, 1, 1, 1, 1, 100]) == []
    assert outliers([1, 1, 1, 1, 1, 1, 1, 100]) == [7]  # eight suffice
    assert outliers([3.0] * 20) == []
    assert outliers([]) == []


def test_two_common_values_are_not_outliers() -> None:
    assert outliers([0.0] * 6 + [1.0] * 4) == []


def test_a_value_that_differs_from_all_equal_ones_is_an_outlier() -> None:
    # The median distance is 0 and the mean distance 5 / 11: far is more than 2.0 away.
    assert outliers([3.0] * 10 + [8.0]) == [10]


# --- Columns --------------------------------------------------------------------------------------


def test_measures_survive_a_round_trip_through_a_table(tmp_path: Path) -> None:
    spec = TableSpec("measures", 1, "validate", MEASURE_COLUMNS)
    texts = [measure_text("Hello", "en", 2.0), measure_text("12", None, 2.0)]
    rows: list[dict[str, Any]] = [asdict(measured(bursts())) | asdict(text) for text in texts]
    write_table(tmp_path / "m.parquet", spec, rows)
    for row, read in zip(rows, read_table(tmp_path / "m.parquet", spec).to_pylist(), strict=True):
        for name, value in row.items():
            assert read[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_every_measure_has_a_description() -> None:
    names = [*AudioMeasures.__dataclass_fields__, *TextMeasures.__dataclass_fields__]
    assert [column.name for column in MEASURE_COLUMNS] == names
    assert all(column.description.endswith(".") for column in MEASURE_COLUMNS)
