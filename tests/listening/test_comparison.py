"""Totals and differences over prompts, calculated by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from higgs_pipe.listening import intervals
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.comparison import ListenedMeasures, MeasuredTake, differences, totals
from higgs_pipe.listening.measures import SoundMeasures
from higgs_pipe.listening.verdict import MEASURES

CODES = np.array([[0, 1], [0, 1], [2, 3]], np.int16)
CLIPS = Clusters.of(["a", "b", "c"], [None] * 3, [None] * 3)


def heard(
    seconds: float = 2.0,
    silence: float = 0.1,
    longest: float = 0.2,
    has_stopped: bool | None = True,
    codes: np.ndarray | None = CODES,
    **listened: Any,
) -> MeasuredTake:
    sound = SoundMeasures(seconds, silence, longest, None if codes is None else 0.5)
    return MeasuredTake(sound, has_stopped, codes, ListenedMeasures(**listened))


def recording(**measures: Any) -> MeasuredTake:
    return heard(has_stopped=None, **measures)


RECORDINGS = [recording(), recording(), recording()]


def test_a_runaway_exceeds_twice_the_length_or_never_stops() -> None:
    voice = [heard(4.0), heard(4.1), heard(1.0, has_stopped=False)]
    found = totals(voice, RECORDINGS, CLIPS, 4)
    assert found["stop_rate"].value == pytest.approx(2 / 3)
    assert found["runaway_rate"].value == pytest.approx(2 / 3)
    assert found["duration_ratio"].value == pytest.approx(9.1 / 6)


def test_totals_are_weighted_by_seconds_and_words_and_not_by_prompt() -> None:
    voice = [
        heard(1.0, silence=0.5, num_word_errors=1, num_words=2),
        heard(3.0, silence=0.1, num_word_errors=0, num_words=8),
        heard(4.0, silence=0.0, num_word_errors=3, num_words=2),
    ]
    found = totals(voice, RECORDINGS, CLIPS, 4)
    assert found["silence_share"].value == pytest.approx((0.5 + 0.3) / 8)
    assert found["word_error_rate"].value == pytest.approx(4 / 12)
    assert found["repeated_frame_share"].value == pytest.approx(0.5)


def test_repeated_frames_are_a_share_of_all_frames_and_no_mean_over_prompts() -> None:
    voice = [heard(codes=np.zeros((n, 2), np.int16)) for n in (2, 3, 8)]  # 1, 2 and 7 pairs
    shares = (1.0, 0.5, 0.0)
    voice = [
        replace(each, sound=replace(each.sound, repeated_frame_share=share))
        for each, share in zip(voice, shares, strict=True)
    ]
    found = totals(voice, RECORDINGS, CLIPS, 4)
    assert found["repeated_frame_share"].value == pytest.approx((1 + 1) / 10)


def test_the_duration_ratio_is_total_over_total() -> None:
    recorded = [recording(seconds=seconds) for seconds in (1.0, 2.0, 5.0)]
    found = totals([heard(2.0), heard(2.0), heard(2.0)], recorded, CLIPS, 4)
    assert found["duration_ratio"].value == pytest.approx(6 / 8)


def test_a_measure_without_values_is_none() -> None:
    found = totals([heard(codes=None)] * 3, RECORDINGS, CLIPS, 4)
    for name in ("word_error_rate", "speaker_similarity", "dnsmos", "code_distance"):
        assert found[name] is None
    assert found["repeated_frame_share"] is None
    assert totals(RECORDINGS, RECORDINGS, CLIPS, 4)["stop_rate"] is None


def test_prompts_are_weighted_by_the_frames_of_their_recordings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def look(_: Any, columns: Any, sizes: Any, *__: Any, **___: Any) -> None:
        seen.append(sizes.tolist())

    monkeypatch.setattr(intervals, "estimate", look)
    monkeypatch.setattr(intervals, "difference", look)
    monkeypatch.setattr(intervals, "mean_estimate", lambda *_, **__: None)
    monkeypatch.setattr(intervals, "mean_difference", lambda *_, **__: None)
    voice = [heard(codes=np.zeros((n, 2), np.int16)) for n in (9, 1)]
    recorded = [recording(codes=np.zeros((n, 2), np.int16)) for n in (2, 5)]
    clips = Clusters.of(["a", "b"], [None] * 2, [None] * 2)
    totals(voice, recorded, clips, 4)
    differences(voice, voice, recorded, clips, 4)
    assert seen == [[2, 5], [2, 5]]


def test_recordings_have_zero_distance_to_themselves() -> None:
    found = totals(RECORDINGS, RECORDINGS, CLIPS, 4)
    assert found["code_distance"].value == pytest.approx(0)
    assert found["code_distance"].low == 0
    assert found["duration_ratio"].value == 1


def test_durations_are_compared_on_a_log2_scale() -> None:
    adapter = [heard(2.0), heard(4.0), heard(0.0)]  # 0, 1 and at most 3
    base = [heard(1.0), heard(4.0), heard(8.0)]  # 1, 1 and 2
    found = differences(adapter, base, RECORDINGS, CLIPS, 4)
    assert found["duration_error"].value == pytest.approx(4 / 3 - 4 / 3)
    found = differences(adapter, [heard(1.0)] * 3, RECORDINGS, CLIPS, 4)
    assert found["duration_error"].value == pytest.approx(4 / 3 - 1)
    found = differences([heard(1.0)] * 3, [heard(4.0)] * 3, RECORDINGS, CLIPS, 4)
    assert found["duration_error"].value == 0  # half as long is as wrong as twice as long
    found = differences([heard(2.0**6)] * 3, [heard(4.0)] * 3, RECORDINGS, CLIPS, 4)
    assert found["duration_error"].value == 3 - 1  # 32 times as long counts as 8 times


def test_silence_is_compared_with_that_of_the_recordings() -> None:
    adapter = [heard(silence=0.3, longest=0.1)] * 3  # 0.2 off, no excess
    base = [heard(silence=0.0, longest=0.9)] * 3  # 0.1 off, 0.7 s in excess
    found = differences(adapter, base, RECORDINGS, CLIPS, 4)
    assert found["silence_error"].value == pytest.approx(0.1)
    assert found["longest_silence_excess"].value == pytest.approx(-0.7)


def test_only_quality_below_that_of_the_recordings_counts() -> None:
    recordings = [recording(dnsmos=3.0)] * 3
    adapter, base = [heard(dnsmos=2.5)] * 3, [heard(dnsmos=3.5)] * 3
    found = differences(adapter, base, recordings, CLIPS, 4)
    assert found["quality_shortfall"].value == pytest.approx(0.5)


def test_prompts_missing_for_one_model_are_left_out_for_both() -> None:
    adapter = [heard(similarity_to_recording=0.5), heard(), heard(similarity_to_recording=0.9)]
    base = [heard(similarity_to_recording=0.4)] * 3
    found = differences(adapter, base, RECORDINGS, CLIPS, 4)["speaker_similarity"]
    assert (found.value, found.num_clips) == (pytest.approx(0.3), 2)
    found = differences(base, adapter, RECORDINGS, CLIPS, 4)["speaker_similarity"]
    assert (found.value, found.num_clips) == (pytest.approx(-0.3), 2)


def test_codes_closer_to_the_recordings_have_a_lower_distance() -> None:
    other = np.array([[1, 0], [1, 0], [3, 2]], np.int16)
    found = differences([heard()] * 3, [heard(codes=other)] * 3, RECORDINGS, CLIPS, 4)
    assert [found["code_distance"].value, found["code_distance"].low] == pytest.approx([-1, -1])
    found = differences([heard(codes=other)] * 3, [heard()] * 3, RECORDINGS, CLIPS, 4)
    assert found["code_distance"].value == pytest.approx(1)
    voice = [heard(), heard(codes=other), heard(codes=other)]
    assert totals(voice, RECORDINGS, CLIPS, 4)["code_distance"].high == 1  # and no more


def test_every_speech_difference_is_a_measure_of_the_verdict() -> None:
    found = differences([heard()] * 3, [heard()] * 3, RECORDINGS, CLIPS, 4)
    names = {measure.name for measure in MEASURES}
    assert names - found.keys() == {"audio_loss", "stop_loss", "text_loss", "text_use"}
    assert found.keys() <= names


MEASURED: dict[str, Any] = {
    "num_word_errors": 1,
    "num_words": 2,
    "num_character_errors": 3,
    "num_characters": 10,
    "similarity_to_recording": 0.1,
    "similarity_to_reference": 0.2,
    "similarity_to_others": 0.4,
    "dnsmos": 2.0,
}


def test_each_total_comes_from_its_own_measure() -> None:
    voice = [heard(3.0, silence=0.4, longest=0.7, **MEASURED)] * 3
    found = totals(voice, RECORDINGS, CLIPS, 4)
    assert {name: total and total.value for name, total in found.items()} == pytest.approx(
        {
            "stop_rate": 1,
            "runaway_rate": 0,
            "word_error_rate": 1 / 2,
            "character_error_rate": 3 / 10,
            "speaker_similarity": 0.1,
            "speaker_similarity_to_reference": 0.2,
            "speaker_similarity_to_others": 0.4,
            "duration_ratio": 3 / 2,
            "silence_share": 0.4,
            "longest_silence_seconds": 0.7,
            "repeated_frame_share": 0.5,
            "dnsmos": 2,
            "code_distance": 0,
        }
    )


def test_each_difference_comes_from_its_own_measure() -> None:
    """The base has no errors; repeating fewer frames than the recording is not rewarded."""
    adapter = heard(4.1, silence=0.4, longest=0.7, **MEASURED)
    adapter = replace(adapter, sound=replace(adapter.sound, repeated_frame_share=0.9))
    nothing: dict[str, Any] = dict.fromkeys(MEASURED, 0) | {"num_words": 2}
    base = heard(**nothing | {"num_characters": 10, "dnsmos": 3.0})
    base = replace(base, sound=replace(base.sound, repeated_frame_share=0.3))
    found = differences([adapter] * 3, [base] * 3, [recording(dnsmos=3.0)] * 3, CLIPS, 4)
    assert {name: change and change.value for name, change in found.items()} == pytest.approx(
        {
            "stop_rate": 0,
            "runaway_rate": 1,
            "word_error_rate": 1 / 2,
            "character_error_rate": 3 / 10,
            "speaker_similarity": 0.1,
            "speaker_similarity_to_reference": 0.2,
            "speaker_similarity_to_others": 0.4,
            "duration_error": np.log2(4.1 / 2),
            "silence_error": 0.3,
            "longest_silence_excess": 0.5,
            "repeated_frame_excess": 0.4,
            "quality_shortfall": 1,
            "code_distance": 0,
        }
    )


@pytest.mark.parametrize("name", ["stop_rate", "runaway_rate"])
def test_equal_outcomes_of_all_prompts_still_have_an_interval(name: str) -> None:
    """Without the two pseudo-clusters the interval would have zero width."""
    found: Any = totals([heard()] * 3, RECORDINGS, CLIPS, 4)[name]
    assert found.low < found.high
    compared: Any = differences([heard()] * 3, [heard()] * 3, RECORDINGS, CLIPS, 4)[name]
    assert compared.low < 0 < compared.high


@pytest.mark.parametrize("unknown", [None, np.zeros((0, 2), np.int16)], ids=["none", "empty"])
def test_the_code_distance_covers_only_prompts_with_codes(unknown: Any) -> None:
    other = np.array([[1, 0], [1, 0], [3, 2]], np.int16)
    voice = [heard(codes=unknown), heard(codes=other), heard(codes=other)]
    found = totals(voice, RECORDINGS, CLIPS, 4)["code_distance"]
    assert (found.value, found.num_clips) == (pytest.approx(1), 2)
    compared = differences(voice, [heard()] * 3, RECORDINGS, CLIPS, 4)["code_distance"]
    assert (compared.value, compared.num_clips) == (pytest.approx(1), 2)


def test_a_prompt_spoken_at_two_temperatures_counts_as_one_clip() -> None:
    clusters = Clusters.of(["a", "b", "a", "b"], [None] * 4, [None] * 4)
    found = totals([heard()] * 4, [recording()] * 4, clusters, 4)
    assert (found["stop_rate"].num_clips, found["stop_rate"].num_clusters) == (2, 2)
