"""The log of validation: each finding with its own number, and the table of hours."""

import logging
from typing import Any

import pytest

from higgs_pipe.data.clips.overview import log_warnings, table_lines
from higgs_pipe.data.clips.results import (
    Contradictions,
    Hours,
    LeftOut,
    Loss,
    Losses,
    Outliers,
    OutsideRoot,
    Share,
    SpeakersWithOneClip,
    TextFinding,
    ValidationSummary,
)

NOTHING: dict[str, Any] = {
    "num_clips": 10,
    "speakers_with_one_clip": SpeakersWithOneClip(speakers=[], message="Give more."),
    "largest_group_num_clips": 5,
    "outside_root": OutsideRoot(num_rows=0, first_rows=[]),
    **dict.fromkeys(("num_clips_of_one_channel", "num_clips_of_separate_channels"), 0),
    **{key: {} for key in ("contradictions", "outliers", "text_findings", "left_out")},
    **{"ignored_manifest_keys": {}, "manifest_notes": [], "duplicates": [], "shared_scene": None},
}
FOUND: dict[str, Any] = {
    "speakers_with_one_clip": SpeakersWithOneClip(speakers=["cy"], message="Give more."),
    "largest_group_num_clips": 6,
    "contradictions": {"texts": Contradictions(num_recordings=31, examples=["a (m:1), b (m:2)"])},
    "outliers": {
        "ada": {"snr_db": Outliers(median=30.0, num_clips=41, clips={"far": 5.0, "near": 9.0})}
    },
    "num_clips_of_one_channel": 51,
    "num_clips_of_separate_channels": 61,
    "text_findings": {"no_value": TextFinding(num_rows=71, examples=["m:3: nan", "m:4: nan"])},
    "manifest_notes": ["A note."],
    "left_out": {"no text": LeftOut(num_files=81, first_files=["x.wav"])},
    "shared_scene": "A hall.",
    "ignored_manifest_keys": {"gain": 91},
    "outside_root": OutsideRoot(num_rows=101, first_rows=["m:5: ../a.wav"]),
    "duplicates": [["a", "b", "c"], ["d", "e"], ["f", "g"]],
}


def logged(caplog: pytest.LogCaptureFixture, rejections: Any = (), **found: Any) -> Any:
    """Level and words of each message."""
    validation = ValidationSummary.model_construct(**NOTHING | found)
    with caplog.at_level(logging.INFO, "higgs_pipe"):
        log_warnings(validation, rejections)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_nothing_is_logged_where_nothing_was_found(caplog: pytest.LogCaptureFixture) -> None:
    """Half of the clips in one group is no finding."""
    assert logged(caplog) == []


def test_each_finding_is_logged_with_its_number_and_its_examples(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = logged(caplog, ["m:1: silent"], **FOUND)
    expected = [
        ("WARNING", "\n  m:1: silent"),
        ("WARNING", "\n  cy"),
        ("WARNING", "Give more."),
        ("WARNING", "6 of 10 clips"),
        ("WARNING", "several texts: 31\n  a (m:1), b (m:2)"),
        ("INFO", "ada, snr_db: 41, farthest far with 5 dB; median 30 dB"),
        ("WARNING", "cancel when mixed to mono: 51;"),
        ("WARNING", "each channel, such as two speakers: 61;"),
        ("INFO", "no value: 71, such as m:3: nan"),
        ("INFO", "A note."),
        ("WARNING", "no text: 81\n  x.wav"),
        ("WARNING", "'A hall.'"),
        ("INFO", "'gain' is not used (in 91 rows)"),
        ("INFO", "outside their manifest's root: 101"),
        ("INFO", "more than once: 3;"),
    ]
    for (level, message), (expected_level, words) in zip(found, expected, strict=True):
        assert level == expected_level
        assert words in message


def kept(num_clips: int) -> Share:
    return Share(num_clips=num_clips, seconds=36.0 * num_clips, hours=num_clips / 100)


def lost(num_rows: int, num_unknown: int) -> Loss:
    return Loss(num_rows=num_rows, num_rows_of_unknown_length=num_unknown, hours=num_rows / 1000)


def test_the_table_has_the_hours_kept_and_lost_of_each_part() -> None:
    """Those with most hours first; what has no length is told apart."""
    hours = Hours(
        kept=kept(2000),
        splits={"train": kept(1900), "eval": kept(100)},
        speakers={"ada": kept(500), "ben": kept(700)},
        languages={"en": kept(1200)},
        lost=Losses(
            reasons={"silent": lost(30, 2), "too_long": lost(40, 1)},
            speakers={"ada": lost(20, 0), "cy": lost(9000, 3)},
            languages={"de": lost(70, 3)},
        ),
    )
    assert [line.split() for line in table_lines(hours)] == [
        ["rows", "kept", "hours", "kept", "rows", "lost", "hours", "lost"],
        ["all", "2,000", "20.000", "70", "0.070"],
        ["train", "1,900", "19.000"],
        ["eval", "100", "1.000"],
        ["reasons:", "2"],
        ["too_long", "40", "0.040"],
        ["silent", "30", "0.030"],
        ["speakers:", "3"],
        ["cy", "9,000", "9.000"],
        ["ben", "700", "7.000"],
        ["ada", "500", "5.000", "20", "0.020"],
        ["languages:", "2"],
        ["en", "1,200", "12.000"],
        ["de", "70", "0.070"],
        ["rows", "lost,", "of", "unknown", "length", "and", "not", "in", "the", "hours:", "3"],
    ]


def test_speakers_beyond_the_twentieth_are_counted_in_the_table() -> None:
    nothing = Losses(reasons={}, speakers={}, languages={})
    speakers = {f"s{number:02d}": kept(100 - number) for number in range(22)}
    hours = Hours(kept=kept(1), splits={}, speakers=speakers, languages={}, lost=nothing)
    lines = table_lines(hours)[2:]
    assert lines[0] == "speakers: 22"
    assert [line.split()[0] for line in lines[1:21]] == [f"s{number:02d}" for number in range(20)]
    assert [line.split()[2] for line in lines[21:]] == ["2"]
