"""Validation summaries of rows whose counts are known by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from higgs_pipe.data.clips import summary
from higgs_pipe.data.clips.reasons import Reason


def clip(clip_id: str, **columns: Any) -> dict[str, Any]:
    return {"clip_id": clip_id, "speaker": "ada", "reference_id": None, "scene": None} | columns


@pytest.mark.parametrize(
    ("scenes", "shared"),
    [
        (["A hall.", "A hall."], "A hall."),
        (["A hall.", None], None),
        (["A hall.", "A room."], None),
        (["A hall."], None),  # a single clip shares nothing
        ([None, None], None),
    ],
)
def test_a_scene_is_shared_if_several_clips_all_have_it(
    scenes: list[str | None], shared: str | None
) -> None:
    clips = [clip(str(number), scene=scene) for number, scene in enumerate(scenes)]
    assert summary._shared_scene(clips) == shared


@pytest.mark.parametrize(
    ("hashes", "references", "is_named"),
    [
        (["x"], [None], True),
        (["x", "x"], [None, None], True),  # the same recording twice
        (["x", "y"], [None, None], False),
        (["x", "x"], ["r", None], True),
        (["x", "x"], ["r", "r"], False),
    ],
)
def test_a_speaker_with_one_recording_and_no_reference_cannot_be_cloned(
    hashes: list[str], references: list[str | None], is_named: bool
) -> None:
    clips = [
        clip(str(number), pcm_sha256=pcm, reference_id=reference)
        for number, (pcm, reference) in enumerate(zip(hashes, references, strict=True))
    ]
    assert summary._speakers_without_reference(clips) == (["ada"] if is_named else [])


def test_lost_hours_are_summed_and_rows_of_unknown_length_counted() -> None:
    def rejection(seconds: float | None, language: str | None) -> Any:
        row = SimpleNamespace(speaker="ada", language=language)
        fault = SimpleNamespace(reason=Reason.TOO_SHORT)
        return SimpleNamespace(fault=fault, row=row, duration_seconds=seconds)

    found = summary._losses([rejection(1800, "en"), rejection(None, None), rejection(900, "en")])
    of_reason = found.reasons["too_short"]
    assert (of_reason.num_rows, of_reason.num_rows_of_unknown_length) == (3, 1)
    assert of_reason.hours == found.languages["en"].hours == 0.75
    assert (list(found.languages), found.languages["en"].num_rows) == (["en"], 2)
    assert found.speakers["ada"] == of_reason


def test_outliers_are_counted_and_listed_from_the_farthest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = {name: 0.0 for name in summary.OUTLIER_MEASURES if name != "snr_db"}
    levels = [30.0, 31.0, 29.0, 30.5, 29.5, 30.0, 50.0, 5.0, 30.0]
    clips = [clip(str(number), snr_db=level, **others) for number, level in enumerate(levels)]
    found = summary._outliers(clips)["ada"]
    assert list(found) == ["snr_db"]
    assert (found["snr_db"].median, found["snr_db"].num_clips) == (30.0, 2)
    assert list(found["snr_db"].clips.items()) == [("7", 5.0), ("6", 50.0)]
    monkeypatch.setattr(summary, "NUM_NAMED", 1)
    named = summary._outliers(clips)["ada"]["snr_db"]
    assert (named.num_clips, named.clips) == (2, {"7": 5.0})
