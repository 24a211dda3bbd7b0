"""The rules of the verdict, each tested on a hand-written table of differences."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from higgs_pipe.errors import UserError
from higgs_pipe.listening.intervals import Difference
from higgs_pipe.listening.verdict import (
    HEADLINES,
    MEASURES,
    NOT_CALLED_BETTER,
    Measure,
    Verdict,
    judge,
)

LOWER, EQUAL, HIGHER = -1, 0, 1


def difference(
    sign: int, p_value: float | None = None, num_clips: int = 20, scale: float = 1
) -> Difference:
    """-0.2 (-0.3 to -0.1), 0 (-0.1 to 0.1) or 0.2 (0.1 to 0.3)."""
    value = 0.2 * sign * scale
    return Difference(
        value=value,
        low=value - 0.1 * scale,
        high=value + 0.1 * scale,
        num_clips=num_clips,
        num_clusters=num_clips,
        p_value=(0.0001 if sign else 1.0) if p_value is None else p_value,
    )


FOLLOWS_TEXT = difference(HIGHER)
FORGOTTEN = HEADLINES["eval.other_manifest"]


def verdict_of(
    adapter_audio_loss: float = 5.0,
    adapter_text_use: Difference | None = FOLLOWS_TEXT,
    **differences: Difference,
) -> Verdict:
    return judge(
        differences,
        audio_loss=adapter_audio_loss,
        num_entries=1026,
        text_use=adapter_text_use,
        clustered_by="clip",
    )


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {measure.name: measure.outcome for measure in verdict.measures}


@pytest.mark.parametrize(
    ("signs", "overall"),
    [
        ({}, "no evidence"),
        ({"audio_loss": EQUAL, "stop_loss": EQUAL, "text_loss": EQUAL}, "no evidence"),
        ({"audio_loss": LOWER}, "better"),
        ({"audio_loss": HIGHER}, "worse"),
        ({"stop_loss": LOWER, "audio_loss": EQUAL}, "better"),
        # Text loss alone is never better, and never worse.
        ({"text_loss": LOWER, "audio_loss": EQUAL}, "no evidence"),
        ({"text_loss": HIGHER, "audio_loss": EQUAL}, "no evidence"),
        ({"text_loss": HIGHER, "audio_loss": LOWER}, "better"),
        ({"text_loss": LOWER, "audio_loss": HIGHER}, "worse"),
        # What leads and is worse outweighs all that is better.
        ({"audio_loss": LOWER, "stop_rate": LOWER}, "worse"),
        ({"audio_loss": LOWER, "stop_rate": HIGHER}, "better"),
        ({"audio_loss": LOWER, "word_error_rate": HIGHER}, "worse"),
        ({"audio_loss": EQUAL, "word_error_rate": LOWER}, "better"),
        ({"audio_loss": LOWER, "speaker_similarity": LOWER}, "worse"),
        ({"audio_loss": LOWER, "quality_shortfall": HIGHER}, "worse"),
        # What does not lead is shown and decides nothing.
        ({"audio_loss": EQUAL, "code_distance": LOWER, "silence_error": LOWER}, "no evidence"),
        ({"audio_loss": LOWER, "repeated_frame_excess": HIGHER}, "better"),
    ],
)
def test_leading_measures_decide_the_verdict(signs: dict[str, int], overall: str) -> None:
    differences: dict[str, Any] = {name: difference(sign) for name, sign in signs.items()}
    assert verdict_of(**differences).overall == overall


@pytest.mark.parametrize(
    ("sign", "headline"),
    [
        (HIGHER, FORGOTTEN.worse),
        (EQUAL, FORGOTTEN.no_evidence),
        (LOWER, FORGOTTEN.better),
    ],
)
def test_on_other_recordings_the_verdict_is_about_forgetting(sign: int, headline: str) -> None:
    told = judge(
        {"audio_loss": difference(sign)},
        audio_loss=5.0,
        num_entries=1026,
        text_use=FOLLOWS_TEXT,
        clustered_by="clip",
        clips_of="eval.other_manifest",
    )
    here = verdict_of(audio_loss=difference(sign))
    assert told.sentences[0] == headline
    assert (told.overall, told.measures) == (here.overall, here.measures)
    assert [s.startswith("Audio loss: ") for s in told.sentences] == [False, True]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_each_measure_knows_which_direction_is_better(measure: Measure) -> None:
    name = measure.name
    higher_is_better = name in ("text_use", "stop_rate") or name.startswith("speaker_similarity")
    expected = ("better", "worse") if higher_is_better else ("worse", "better")
    given: list[dict[str, Any]] = [{name: difference(sign)} for sign in (HIGHER, LOWER)]
    found = [outcomes(verdict_of(**differences))[name] for differences in given]
    assert tuple(found) == expected


def test_the_page_lists_all_measures_their_good_direction_and_which_lead() -> None:
    page = (ROOT / "docs/verdict.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`.*) \| (lower|higher) \| (yes)? ?\|$", page, re.MULTILINE)
    listed = {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert {name: better for name, (better, _) in listed.items()} == {
        measure.name: measure.better for measure in MEASURES
    }
    for name, (_, leads) in listed.items():
        given: list[dict[str, Any]] = [{name: difference(sign)} for sign in (HIGHER, LOWER)]
        found = {verdict_of(**differences).overall for differences in given}
        assert found == ({"better", "worse"} if leads else {"no evidence"}), name


def test_only_losses_need_a_difference_beyond_rounding() -> None:
    tiny = difference(HIGHER, scale=0.004)  # 0.0008 (0.0004 to 0.0012)
    given: dict[str, Any] = {measure.name: tiny for measure in MEASURES}
    found = outcomes(verdict_of(**given))
    losses = {"audio_loss", "stop_loss", "text_loss", "text_use"}
    assert {name for name, outcome in found.items() if outcome == "no evidence"} == losses


def test_fewer_than_eight_clips_are_no_evidence() -> None:
    few = verdict_of(stop_loss=difference(LOWER, num_clips=7))
    assert few.overall == "no evidence"
    assert outcomes(few)["stop_loss"] == "no evidence"
    [stop] = [measure for measure in few.measures if measure.name == "stop_loss"]
    assert "7 clips" in stop.sentence
    assert verdict_of(stop_loss=difference(LOWER, num_clips=8)).overall == "better"


def test_equal_results_for_all_clips_are_no_evidence() -> None:
    """Not even if the interval has zero width: equal stop rates of 1, with a difference of 0."""
    equal = difference(EQUAL).model_copy(update={"low": 0.0, "high": 0.0})
    found = verdict_of(stop_rate=equal, runaway_rate=equal)
    assert {outcomes(found)[name] for name in ("stop_rate", "runaway_rate")} == {"no evidence"}


def test_a_single_cluster_is_no_evidence() -> None:
    alone = Difference(value=-1, low=None, high=None, num_clips=30, num_clusters=1, p_value=None)
    assert outcomes(verdict_of(stop_loss=alone))["stop_loss"] == "no evidence"


def test_a_missing_measure_is_not_measured_rather_than_zero() -> None:
    verdict = verdict_of(stop_loss=difference(EQUAL))
    assert outcomes(verdict)["word_error_rate"] == "not measured"
    [words] = [measure for measure in verdict.measures if measure.name == "word_error_rate"]
    assert words.difference is None
    assert "text_loss" not in outcomes(verdict)  # of a base that has none


def test_a_loss_difference_within_rounding_does_not_count() -> None:
    tiny = difference(LOWER, scale=0.004)  # -0.0008 (-0.0012 to -0.0004)
    assert outcomes(verdict_of(stop_loss=tiny))["stop_loss"] == "no evidence"
    tiny_loss = difference(HIGHER, scale=0.004)
    assert outcomes(verdict_of(stop_loss=tiny_loss))["stop_loss"] == "no evidence"
    assert outcomes(verdict_of(code_distance=tiny))["code_distance"] == "better"


def test_a_possible_chance_result_only_prevents_a_better_verdict() -> None:
    """p = 0.02 is significant on its own but not as the smallest of four measures."""
    others: dict[str, Any] = {
        name: difference(EQUAL) for name in ("duration_error", "stop_rate", "stop_loss")
    }
    by_chance = difference(HIGHER, p_value=0.02)
    verdict = verdict_of(word_error_rate=by_chance, **others)
    assert outcomes(verdict)["word_error_rate"] == "worse"
    assert verdict.overall == "no evidence"
    surely_better = {"duration_error": difference(LOWER)}
    assert verdict_of(word_error_rate=by_chance, **others | surely_better).overall == "no evidence"
    assert verdict_of(word_error_rate=by_chance).overall == "worse"


def test_a_better_text_loss_is_mentioned_only_if_nothing_else_is_better() -> None:
    alone = verdict_of(text_loss=difference(LOWER), audio_loss=difference(EQUAL))
    assert alone.sentences[-1].startswith("Text loss: better")
    with_audio = verdict_of(text_loss=difference(LOWER), audio_loss=difference(LOWER))
    assert len(with_audio.sentences) == 2
    assert with_audio.sentences[1].startswith("Audio loss: better")


def test_holm_tests_the_second_measure_at_the_next_level() -> None:
    """Holm: of two, 0.025 for the smaller probability and 0.05 for the other."""
    surely_better = difference(LOWER, p_value=0.001)
    for p_value, overall in ((0.04, "worse"), (0.06, "no evidence")):
        worse = difference(LOWER, p_value=p_value)
        assert verdict_of(audio_loss=surely_better, stop_rate=worse).overall == overall


def test_an_audio_loss_above_chance_is_never_better_and_is_explained() -> None:
    blind = verdict_of(adapter_audio_loss=6.94, stop_loss=difference(LOWER))
    assert blind.overall == "no evidence"
    _, better, blindly, last = blind.sentences
    assert better.startswith("Stop loss: better")
    assert "6.94" in blindly
    assert "ln 1026 = 6.93" in blindly
    assert last == NOT_CALLED_BETTER
    assert verdict_of(adapter_audio_loss=6.93, stop_loss=difference(LOWER)).overall == "better"


def test_an_adapter_that_ignores_its_text_is_never_better() -> None:
    better: dict[str, Any] = {"stop_loss": difference(LOWER)}
    assert verdict_of(adapter_text_use=difference(EQUAL), **better).overall == "no evidence"
    assert verdict_of(adapter_text_use=difference(LOWER), **better).overall == "no evidence"
    perhaps = FOLLOWS_TEXT.model_copy(update={"low": -0.01})
    assert verdict_of(adapter_text_use=perhaps, **better).overall == "no evidence"
    alone = FOLLOWS_TEXT.model_copy(update={"low": None, "high": None})  # of one speaker
    assert verdict_of(adapter_text_use=alone, **better).overall == "no evidence"
    assert verdict_of(adapter_text_use=None, **better).overall == "better"


def test_the_headline_comes_first_and_then_the_deciding_measures() -> None:
    verdict = verdict_of(stop_rate=difference(LOWER), stop_loss=difference(LOWER))
    assert verdict.sentences[0].startswith("Worse")
    assert "-0.2 (95 % interval -0.3 to -0.1)" in verdict.sentences[1]
    assert len(verdict.sentences) == 2
    surer = difference(LOWER, p_value=1e-9)
    both = verdict_of(stop_loss=surer, audio_loss=difference(LOWER))
    assert [sentence.split(":")[0] for sentence in both.sentences[1:]] == [
        "Audio loss",
        "Stop loss",
    ]
    nothing = verdict_of(stop_rate=difference(EQUAL))
    [stop_rate] = [measure for measure in nothing.measures if measure.name == "stop_rate"]
    assert "0 (95 % interval -0.1 to +0.1)" in stop_rate.sentence


def test_a_failed_requirement_names_the_deciding_measure() -> None:
    worse = verdict_of(stop_rate=difference(LOWER))
    with pytest.raises(UserError, match=r"not_worse[^$]*worse, -0\.2 \(.* -0\.3 to -0\.1\)"):
        worse.require("not_worse")
    undecided = verdict_of(stop_rate=difference(EQUAL))
    undecided.require("not_worse")
    with pytest.raises(UserError, match="better"):
        undecided.require("better")
    verdict_of(stop_rate=difference(HIGHER)).require("better")


def test_a_verdict_survives_a_round_trip_through_its_file(tmp_path: Path) -> None:
    differences = {"stop_rate": difference(LOWER)}
    settings: Any = {"audio_loss": 5.0, "num_entries": 1026, "text_use": None}
    verdict = judge(differences, clustered_by="speaker", **settings)
    assert verdict.clustered_by == "speaker"
    verdict.write(tmp_path / "verdict.json")
    assert Verdict.read(tmp_path / "verdict.json") == verdict


def test_a_difference_with_an_unknown_name_is_a_bug() -> None:
    with pytest.raises(KeyError, match="stopp_rate"):
        verdict_of(stopp_rate=difference(LOWER))


def test_once_a_measure_may_be_chance_no_weaker_one_decides() -> None:
    """Holm: of two, the smaller p-value must be below 0.025, or the larger one does not count."""
    chance = difference(LOWER, p_value=0.03)
    assert verdict_of(audio_loss=chance, stop_loss=difference(LOWER, 0.04)).overall == "no evidence"
    sure = difference(LOWER, p_value=0.024)
    assert verdict_of(audio_loss=sure, stop_loss=difference(LOWER, 0.04)).overall == "better"


@pytest.mark.parametrize(("scale", "outcome"), [(0.009, "no evidence"), (0.011, "better")])
def test_a_loss_must_differ_by_at_least_a_thousandth_of_a_nat(scale: float, outcome: str) -> None:
    """The nearer end of the interval is at 0.1 of the scale."""
    found = verdict_of(audio_loss=difference(LOWER, scale=scale))
    assert outcomes(found)["audio_loss"] == outcome


def test_a_measure_with_few_clips_does_not_enter_the_correction() -> None:
    """One measure must be below 0.05, of two the first below 0.025."""
    few = difference(LOWER, p_value=0.5, num_clips=7)
    loss = difference(LOWER, p_value=0.03)
    assert verdict_of(audio_loss=loss, stop_loss=few).overall == "better"
    enough = difference(LOWER, p_value=0.5, num_clips=8)
    assert verdict_of(audio_loss=loss, stop_loss=enough).overall == "no evidence"
