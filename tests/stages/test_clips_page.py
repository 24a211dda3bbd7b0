"""The page of the recordings, through validation as the workflow runs it."""

import base64
import io
import re
from pathlib import Path

import pytest
import soundfile as sf
from helpers import clips_page_of, clips_page_with, edit_result, rows_of_tones, tone
from report_inputs import TextOfPage


def section(page: str, anchor: str) -> str:
    return page.split(f'<section id="{anchor}"')[1].split("</section>")[0]


def words(page: str, anchor: str) -> list[str]:
    """Return the words of a section as a reader sees them."""
    return TextOfPage(f"<section{section(page, anchor)}").words


def test_each_count_stands_at_its_name(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 4)
    rows[0]["speaker"] = "ada"
    rows[2] |= {"text": " ", "speaker": "cy"}
    clips_page_of(tmp_path, rows, validate={"max_rejected_fraction": 0.5})
    edit_result(
        tmp_path / "data/validation.json",
        **{"num_rows": 5034, "num_clips": 5000, "seconds": 1.5, "hours": 2.125},
        num_rejected=34,
        num_rejected_by_reason={"text_empty": 30, "silent": 4},
        clip_seconds={"min": 0.75, "median": 4.25, "max": 9.5},
        speakers={"ada": share(1100, 900, 200), "ben": share(1300, 1200, 100)},
        languages={"en": share(1700, 1600, 50)},
    )
    page = clips_page_with(tmp_path)
    counts = page.replace('aria-label="Counts"', 'id="counts"')
    assert words(counts, "counts") == [
        *("Clips kept", "5,000", "of 5,034", "Total length, hours", "2.125"),
        *("Rejected rows", "34", "Median clip, seconds", "4.25"),
    ]
    heading = ["Clips", "Train", "Held out", "Hours"]
    assert words(page, "who")[1:] == [
        *("Speaker", *heading, "ben", "1,300", "1,200", "100", "13.000"),
        *("ada", "1,100", "900", "200", "11.000"),
        *("Language", *heading, "en", "1,700", "1,600", "50", "17.000"),
    ]
    rejected = words(page, "rejected")
    assert rejected[1:7] == ["Reason", "Rows", "text empty", "30", "silent", "4"]
    assert rejected[11:14] == ["2", "cy", "text empty"]
    assert rejected[15:] == ["1.20", "And 33 more, in", "rejected.parquet", "."]
    first = words(page, "sample")[-10:-6]
    assert first == ["0", "ada", rows[0]["text"], "1.00"]
    labels = re.findall(r'aria-label="(Recording [^"]*)"', section(page, "sample"))
    assert labels == [f"Recording of {n}" for n in (0, 1, 3)]


def share(num_clips: int, num_train_clips: int, num_eval_clips: int) -> dict[str, float]:
    """A NamedShare of an hour per hundred clips."""
    return {
        **{"num_clips": num_clips, "seconds": 36.0 * num_clips, "hours": num_clips / 100},
        **{"num_train_clips": num_train_clips, "num_eval_clips": num_eval_clips},
    }


@pytest.mark.parametrize(("num_players", "num_heard"), [(0, 0), (3, 3), (20, 8)])
def test_num_players_limits_the_sample(tmp_path: Path, num_players: int, num_heard: int) -> None:
    page = clips_page_of(tmp_path, rows_of_tones(tmp_path, 8), report={"num_players": num_players})
    assert section(page, "sample").count("<audio") == num_heard


def test_a_recording_used_only_as_a_reference_is_not_in_the_sample(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 8)
    voice = tone(tmp_path / "voice.wav", 1.5, 999)
    rows[0] |= {"ref_audio": voice.name, "ref_text": "A voice."}
    sample = section(clips_page_of(tmp_path, rows), "sample")
    assert sample.count("<audio") == 8
    assert "A voice." not in sample


def test_a_rejected_row_is_shown_with_its_reason_and_a_player(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 6)
    rows[2]["text"] = " "
    rows[4]["audio"] = "nowhere.wav"
    page = clips_page_of(tmp_path, rows, validate={"max_rejected_fraction": 0.5})
    empty, missing = section(page, "rejected").split("<tr><th")[-2:]
    assert re.search(r">2<.*text empty.*<audio", empty, re.DOTALL)
    assert re.search(r">nowhere<.*audio missing.*cannot be played", missing, re.DOTALL)


def test_every_reason_has_an_example_before_any_has_two(tmp_path: Path) -> None:
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


def test_a_filter_is_shown_with_the_number_of_rows_beyond_it(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 10)
    for row in rows[:3]:  # of 1.0 to 1.2 s
        row["text"] += " And on and on it goes in haste."
    filters = {"max_characters_per_second": 20, "min_bandwidth_hz": 100}
    settings = {"validate": {"max_rejected_fraction": 0.5, "filters": filters}}
    measures = section(clips_page_of(tmp_path, rows, **settings), "measures")
    assert "validate.filters.max_characters_per_second = 20: 3 rows beyond it" in measures
    assert "validate.filters.min_bandwidth_hz = 100: 0 rows beyond it" in measures


def test_an_outlier_among_its_speakers_clips_is_listed_with_the_median(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 9)
    for row in rows:
        row["speaker"] = "ada"
    rows[7]["text"] = "A far longer text than that of the other clips of this speaker. " * 4
    unlike = section(clips_page_of(tmp_path, rows), "unlike")
    assert re.search(r'<th scope="row">7<span class="note">ada', unlike)
    fact = r"characters per second</strong>: [\d.,]+ per second; median of ada: [\d.]+ per second"
    assert re.search(fact, unlike)


@pytest.mark.parametrize("num_players", [1, 2])
def test_num_players_limits_the_outliers_listed(tmp_path: Path, num_players: int) -> None:
    rows = rows_of_tones(tmp_path, 12)
    for row in rows:
        row["speaker"] = "ada"
    for row in rows[7:10]:
        row["text"] += " A far longer text than that of the other clips of this speaker." * 4
    page = clips_page_of(tmp_path, rows, report={"num_players": num_players})
    assert section(page, "unlike").count('<th scope="row">') == num_players


def test_markup_in_texts_and_speakers_is_escaped(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 4)
    rows[0] |= {"text": "<script>alert(1)</script>", "speaker": "<img src=x onerror=alert(2)>"}
    page = clips_page_of(tmp_path, rows)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_only_the_start_of_a_very_long_recording_is_embedded(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 4)
    rows[1]["audio"] = tone(tmp_path / "long.wav", 40).name
    page = clips_page_of(tmp_path, rows, validate={"max_rejected_fraction": 0.5})
    assert "too long" in section(page, "rejected")
    [sound] = re.findall(r'<audio .*?base64,([^"]*)', section(page, "rejected"))
    assert sf.info(io.BytesIO(base64.b64decode(sound))).duration == pytest.approx(20, abs=0.1)
    assert len(sound) < 200_000


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    rows = rows_of_tones(tmp_path, 5)
    assert clips_page_of(tmp_path, rows) == clips_page_of(tmp_path, rows)
