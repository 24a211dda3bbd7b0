"""The page of the recordings, through validation as the workflow runs it."""

import re
from pathlib import Path

import pytest
from helpers import clips_page_of, rows_of_tones, tone


def section(page: str, anchor: str) -> str:
    return page.split(f'<section id="{anchor}"')[1].split("</section>")[0]


@pytest.mark.parametrize(("num_players", "num_heard"), [(0, 0), (3, 3), (20, 8)])
def test_the_sample_has_as_many_players_as_asked_for(
    tmp_path: Path, num_players: int, num_heard: int
) -> None:
    page = clips_page_of(tmp_path, rows_of_tones(tmp_path, 8), report={"num_players": num_players})
    assert section(page, "sample").count("<audio") == num_heard


def test_a_recording_that_is_a_reference_alone_is_not_in_the_sample(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 8)
    voice = tone(tmp_path / "voice.wav", 1.5, 999)
    rows[0] |= {"ref_audio": voice.name, "ref_text": "A voice."}
    sample = section(clips_page_of(tmp_path, rows), "sample")
    assert sample.count("<audio") == 8
    assert "A voice." not in sample


def test_a_rejected_row_stands_with_its_reason_and_its_sound(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 6)
    rows[2]["text"] = " "
    rows[4]["audio"] = "nowhere.wav"
    page = clips_page_of(tmp_path, rows, validate={"max_rejected_fraction": 0.5})
    empty, missing = section(page, "rejected").split("<tr><th")[-2:]
    assert re.search(r">2<.*text empty.*<audio", empty, re.DOTALL)
    assert re.search(r">nowhere<.*audio missing.*cannot be played", missing, re.DOTALL)


def test_each_reason_is_heard_before_a_second_row_of_another(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 8)
    for row in rows[:3]:
        row["text"] = " "
    rows[3]["text"] = "<|eot_id|>"
    settings = {"validate": {"max_rejected_fraction": 0.6}, "report": {"num_players": 2}}
    rejected = section(clips_page_of(tmp_path, rows, **settings), "rejected")
    assert re.findall(r'note"><strong>([a-z ]+)</strong>', rejected) == [
        "text empty",
        "control token",
    ]
    assert "And 2 more" in rejected


def test_a_filter_is_shown_with_the_rows_beyond_it(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 10)
    for row in rows[:3]:  # of 1.0 to 1.2 s
        row["text"] += " And on and on it goes in haste."
    filters = {"max_characters_per_second": 20, "min_bandwidth_hz": 100}
    settings = {"validate": {"max_rejected_fraction": 0.5, "filters": filters}}
    measures = section(clips_page_of(tmp_path, rows, **settings), "measures")
    assert "validate.filters.max_characters_per_second = 20: 3 rows beyond it" in measures
    assert "validate.filters.min_bandwidth_hz = 100: 0 rows beyond it" in measures


def test_a_clip_unlike_its_speakers_others_is_listed_with_both_values(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 9)
    for row in rows:
        row["speaker"] = "ada"
    rows[7]["text"] = "A far longer text than that of the other clips of this speaker. " * 4
    unlike = section(clips_page_of(tmp_path, rows), "unlike")
    assert re.search(r'<th scope="row">7<span class="note">ada', unlike)
    fact = r"characters per second</strong>: [\d.,]+ per second; median of ada: [\d.]+ per second"
    assert re.search(fact, unlike)


@pytest.mark.parametrize("num_players", [1, 2])
def test_as_many_unlike_clips_are_listed_as_asked_for(tmp_path: Path, num_players: int) -> None:
    rows = rows_of_tones(tmp_path, 12)
    for row in rows:
        row["speaker"] = "ada"
    for row in rows[7:10]:
        row["text"] += " A far longer text than that of the other clips of this speaker." * 4
    page = clips_page_of(tmp_path, rows, report={"num_players": num_players})
    assert section(page, "unlike").count('<th scope="row">') == num_players


def test_texts_and_speakers_are_text_whatever_they_hold(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 4)
    rows[0] |= {"text": "<script>alert(1)</script>", "speaker": "<img src=x onerror=alert(2)>"}
    page = clips_page_of(tmp_path, rows)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_recording_far_too_long_is_played_by_its_start(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 4)
    rows[1]["audio"] = tone(tmp_path / "long.wav", 40).name
    page = clips_page_of(tmp_path, rows, validate={"max_rejected_fraction": 0.5})
    assert "too long" in section(page, "rejected")
    assert section(page, "rejected").count("<audio") == 1
    assert len(section(page, "rejected")) < 200_000


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 5)
    assert clips_page_of(tmp_path, rows) == clips_page_of(tmp_path, rows)
