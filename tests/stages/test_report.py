"""The report: its contents, what it refuses, and that it loads nothing from outside."""

import base64
import hashlib
import io
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile as sf
from report_inputs import ADAPTER, SPEAKERS, Inputs, TextOfPage, rows, words

from higgs_pipe.data.audio_formats.ogg import ogg_checksum
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.data.tables import read_table, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.listening.spoken import GENERATED
from higgs_pipe.reporting.audio import opus
from higgs_pipe.reporting.charts import INK
from higgs_pipe.reporting.experiments import COLOURS
from higgs_pipe.reporting.measures import DIFFERENCE_NOTES, SPEECH_MEASURES

LABELS = {measure.name: measure.label for measure in SPEECH_MEASURES}


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


@pytest.mark.parametrize("overall", ["better", "worse", "no evidence"])
def test_the_verdict_is_quoted_first(inputs: Inputs, overall: str) -> None:
    verdict = inputs.experiments["default"]["eval/verdict.json"]
    verdict |= {"overall": overall, "sentences": ["In short.", "Because of this.", "And that."]}
    page = inputs.html()
    assert f'class="verdict is-{overall.replace(" ", "-")}"' in page
    assert "default: In short. Because of this. And that." in words(page)
    assert page.index("In short.") < page.index("<h2>")


def test_measures_of_recording_codec_base_and_adapter_stand_side_by_side(inputs: Inputs) -> None:
    page = inputs.html()
    assert rows(page, "Total") == [["", "", "10.900", "8.650", "−2.250", ""]]
    assert rows(page, "Audio ●") == [
        ["", "", "8.900", "7.400", "−1.500 −1.600 to −1.400", "better"]
    ]
    assert rows(page, "codebook 1") == [
        ["", "", "9.100", "8.300", "−0.800", ""],
        ["", "", "0.2", "0.2", "0.0", ""],
    ]
    assert rows(page, "codebook 2") == []
    assert rows(page, "Text")[0] == [
        *("", "", "2.000", "1.250", "−0.750 −0.850 to −0.650", "better")
    ]
    assert rows(page, "Text")[1] == ["", "", "33.3", "90.0", "+56.7", ""]  # accuracy
    assert rows(page, "Clips") == [["", "", "24", "24", "", ""]]
    note = DIFFERENCE_NOTES["duration_error"]
    assert rows(page, f"{LABELS['duration_ratio']} ● {note}") == [
        ["0.05 ×", "0.10 ×", "0.40 ×", "0.90 ×", "+0.25 +0.15 to +0.35", "worse"]
    ]
    assert rows(page, f"{LABELS['stop_rate']} ●") == [
        ["", "", "40.0 %", "90.0 %", "+50.0 +40.0 to +60.0", "better"]
    ]


def test_an_unconfigured_measure_shows_its_setting_and_no_number(inputs: Inputs) -> None:
    label = f"{LABELS['speaker_similarity']} eval.speech_models.speaker is null"
    assert rows(inputs.html(), label) == [["", "", "", "", "", "not measured"]]
    # Of a model that is there, prompts without a reference have nothing to compare.
    generation = inputs.experiments["default"]["eval/generation.json"]
    generation["speech_models"]["speaker"] = "tiny"
    label = LABELS["speaker_similarity_to_reference"]
    assert rows(inputs.html(), label) == [["", "", "", "", "", "not measured"]]


def test_without_speech_the_page_says_so_and_has_no_table(inputs: Inputs) -> None:
    inputs.texts = ()
    inputs.experiments["default"]["eval/generation.json"] |= {"num_prompts": 0, "voices": []}
    page = inputs.html()
    assert "eval.num_prompts is 0" in words(page)
    assert "<audio" not in page
    assert rows(page, f"{LABELS['stop_rate']} ●") == []


def test_prompts_too_long_to_speak_are_counted(inputs: Inputs) -> None:
    inputs.experiments["default"]["eval/generation.json"] |= {"num_too_long": 2}
    assert re.search(r"eval\.max_seconds = 10\b[^.:]*: 2\.", words(inputs.html()))


def test_stopping_is_shown_at_every_temperature(inputs: Inputs) -> None:
    assert "Stopping by temperature" not in inputs.html()
    inputs.add_temperature(0.3)
    page = inputs.html()
    stops, runs_away = rows(page, "0.3")
    assert stops == ["25.0 %", "75.0 %", "+50.0 +40.0 to +60.0"]
    assert runs_away == ["75.0 %", "25.0 %", ""]
    assert rows(page, "1")[0] == ["40.0 %", "90.0 %", "+50.0 +40.0 to +60.0"]


def test_forgetting_is_in_the_verdict_and_has_its_own_section(inputs: Inputs) -> None:
    assert 'id="other"' not in inputs.html()
    inputs.add_other("worse", num_clips=33, num_rejected_by_reason={"also_in_training": 4})
    left_out = {"clip_id": "o1", "reason": "too_long", "message": "too long"}
    inputs.other["bases/b/packed/packing.json"] = inputs.packing | {"rejected": [left_out]}
    page = inputs.html()
    start = page.index('id="other"')
    assert 'Forgetting: <span class="worse">It has forgotten.</span>' in page[:start]
    part = words(page[start : page.index('id="training"')])
    assert "33 clips" in part
    assert "Left out: also in training 4, too long 1." in part
    assert "default: It has forgotten. Audio loss there: worse." in part
    assert [cells[2:5] for cells in rows(page, "Total")] == [
        ["10.900", "8.650", "−2.250"],
        ["10.900", "11.900", "+1.000"],
    ]
    assert len(rows(page, "c7")) == len(rows(page, "o7")) == 1
    assert page.count("<audio") == 2 * (3 * 4 + 1)
    lengths = [cells[3].split(" s")[0] for cells in rows(page, "Who was that? ada · cloning")]
    assert lengths == ["length 1.5", "length 3.2"]


def test_a_missing_result_on_other_recordings_is_named(inputs: Inputs) -> None:
    inputs.add_other()
    inputs.write()
    missing = inputs.folder / "experiments/default/eval/other/verdict.json"
    missing.unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(missing))}.*--forcerun eval_adapter"):
        inputs.run()


def test_experiments_are_ranked_by_verdict_then_by_audio_loss(inputs: Inputs) -> None:
    inputs.experiments = {
        "worse": inputs.experiment(eval_audio_loss=1.0),
        "second": inputs.experiment(eval_audio_loss=7.5),
        "first": inputs.experiment(eval_audio_loss=7.4),
    }
    inputs.experiments["worse"]["eval/verdict.json"]["overall"] = "worse"
    page = inputs.html()
    firsts = [cells[0] for cells in TextOfPage(page).rows]
    start = firsts.index("Experiment")
    assert firsts[start : start + 4] == ["Experiment", "first", "second", "worse"]
    assert rows(page, "second")[0][:3] == ["better", "3.500 −3.750", "7.500 −1.400"]


def test_a_prompt_has_a_player_and_measures_per_voice(inputs: Inputs) -> None:
    inputs.experiments["other"] = inputs.experiment()
    page = inputs.html()
    header = next(cells for cells in TextOfPage(page).rows if cells[0] == "Prompt")
    assert header == ["Prompt", "Recording", "Codec", "Base", "default", "other"]
    [cells] = rows(page, "Who was that? ada · cloning")
    assert cells[0] == "length 1.0 s silence 0 % (0.0 s)"
    assert cells[2] == "length 4.0 s (4 ×) stopped no silence 0 % (0.0 s)"
    assert cells[3] == "length 1.5 s (1.5 ×) stopped yes silence 0 % (0.0 s)"
    players = re.findall(r'<audio[^>]*src="data:audio/ogg;base64,([^"]+)"', page)
    assert len(players) == 3 * 5 + 1  # a reference
    samples, rate = sf.read(io.BytesIO(base64.b64decode(players[4])))  # after the reference
    assert len(samples) / rate == pytest.approx(2.0, abs=0.02)


def test_measures_of_a_take_are_shown_next_to_it_and_can_be_sorted_by(inputs: Inputs) -> None:
    inputs.write()
    table = inputs.folder / "experiments/default/eval/generation.parquet"
    measured = {
        **{"repeated_frame_share": 0.25, "num_words": 10, "num_word_errors": 3},
        **{"transcript": "Who is that?", "similarity_to_recording": 0.8, "dnsmos": 3.25},
    }
    spoken = read_table(table, GENERATED).to_pylist()
    heard = [("adapter", "c1"), ("adapter", "c2")]
    changed = [r | measured if (r["voice"], r["clip_id"]) in heard else r for r in spoken]
    write_table(table, GENERATED, changed)
    inputs.run()
    page = inputs.page.read_text()
    [cells] = rows(page, "Who was that? ada · cloning")
    assert cells[3].endswith(
        "repeated frames 25 % word errors 3 of 10 heard Who is that? voice 0.80 DNSMOS 3.2"
    )
    assert page.count('data-words="0.3" data-voice="0.2"') == 2
    assert page.count('data-words="-1" data-voice="-1"') == 1  # not measured, so it sorts last


@pytest.mark.parametrize("setting", ["base_model", "base_model_revision"])
def test_the_takes_of_another_base_are_shown_next_to_its_adapters(
    inputs: Inputs, setting: str
) -> None:
    inputs.experiments["other"] = inputs.experiment()
    inputs.experiments["other"]["train/config.json"][setting] = "another"
    inputs.write()
    table = inputs.folder / "experiments/other/eval/generation.parquet"
    spoken = read_table(table, GENERATED).to_pylist()
    changed = [row | {"duration_seconds": 3.0} if row["voice"] == "base" else row for row in spoken]
    write_table(table, GENERATED, changed)
    inputs.run()
    page = inputs.page.read_text()
    header = next(cells for cells in TextOfPage(page).rows if cells[0] == "Prompt")
    assert header[3:] == ["Base", "default", "Base of other", "other"]
    [cells] = rows(page, "Who was that? ada · cloning")
    assert [cells[i].split(" s")[0] for i in (2, 4)] == ["length 4.0", "length 3.0"]


def test_prompts_sort_by_their_worst_take(inputs: Inputs) -> None:
    inputs.adapter_seconds = (2.0, 1.5, 4.0)  # 4 s is the cap
    page = inputs.html()
    lines = re.findall(r'<tr data-order="(\d)" data-worst="(\d)"([^>]*)>', page)
    assert [line[:2] for line in lines] == [("1", "2"), ("2", "3"), ("3", "1")]
    assert 'data-stop="1.0" data-length="2.0"' in lines[2][2]
    keys = re.findall(r'<option value="(\w+)', page)
    assert keys == ["order", "worst", "stop", "length", "silence"]  # and none that nobody measured


def test_experiments_that_spoke_different_prompts_are_refused(inputs: Inputs) -> None:
    """As many of each, of which one differs."""
    inputs.experiments["other"] = inputs.experiment()
    inputs.write()
    table = inputs.folder / "experiments/other/eval/generation.parquet"
    spoken = read_table(table, GENERATED).to_pylist()
    renamed = [row | {"clip_id": row["clip_id"].replace("c1", "x1")} for row in spoken]
    write_table(table, GENERATED, renamed)
    with pytest.raises(UserError, match=r"other/eval/generation.parquet.*forcerun eval_adapter"):
        inputs.run()


def test_a_missing_sample_is_named(inputs: Inputs) -> None:
    inputs.write()
    (inputs.folder / "experiments/default/samples/c1-base.wav").unlink()
    with pytest.raises(UserError, match=r"samples/c1-base.wav.*--forcerun eval_adapter"):
        inputs.run()


def test_a_truncated_sample_is_named(inputs: Inputs) -> None:
    inputs.write()
    sample = inputs.folder / "experiments/default/samples/c1-base.wav"
    sample.write_bytes(sample.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"samples/c1-base.wav is cut off.*--forcerun eval_adapter"):
        inputs.run()


def test_opus_encoding_keeps_the_length_and_is_deterministic() -> None:
    samples = 0.3 * np.sin(np.arange(30_000) / 20).astype(np.float32)
    first = opus(samples, 24_000)
    time.sleep(0.01)  # libsndfile seeds the serial number by the clock
    assert opus(samples, 24_000) == first
    decoded, rate = sf.read(io.BytesIO(first))  # libogg refuses pages with a wrong checksum
    assert len(decoded) / rate == pytest.approx(30_000 / 24_000, abs=1e-3)
    assert len(first) < 0.25 * 30_000  # a sixteenth of 16-bit samples would be 3,750 bytes


def test_the_ogg_checksum_matches_bitwise_division() -> None:
    page = bytes(range(7, 200, 3))
    remainder = 0
    for byte in page:
        remainder ^= byte << 24
        for _ in range(8):
            carry = remainder >> 31
            remainder = (remainder << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 * carry)
    assert ogg_checksum(page) == remainder


def test_losses_by_group_stopping_and_worst_clips_are_shown(inputs: Inputs) -> None:
    page = inputs.html()
    assert rows(page, "ada")[0] == ["12", "8.900", "7.100", "−1.800 −1.900 to −1.700"]
    assert rows(page, "start") == [["12", "8.900", "7.900", "−1.000 −1.100 to −0.900"]]
    assert rows(page, "at the true end") == [["0.1 %", "93.0 %"]]
    assert rows(page, "before the true end") == [["2.0 %", "4.0 %"]]
    assert rows(page, "c7") == [["A hard one.", "9.900", "9.500"]]


def test_settings_that_differ_between_experiments_are_marked(inputs: Inputs) -> None:
    inputs.experiments["rank-32"] = inputs.experiment()
    inputs.experiments["rank-32"]["train/config.json"]["train"]["lora"]["r"] = 32
    page = inputs.html()
    assert '<td class="differs">16</td><td class="differs">32</td>' in page
    assert "<td>0.0002</td><td>0.0002</td>" in page


def test_the_description_of_a_curve_gives_its_endpoints(inputs: Inputs) -> None:
    page = inputs.html()
    for title, ends in (
        ("Total", ("10.000", "8.500", "10.900", "8.650")),
        ("Text", ("2.000", "2.000", "2.000", "2.000")),
        ("Audio", ("8.000", "6.500", "8.900", "6.650")),
        ("Stop", ("7.000", "7.000", "7.000", "7.000")),
    ):
        assert (
            f'aria-label="{title} loss in nats per label over optimizer steps. '
            "default: training from {} at step 10 to {} at step 40, "
            'held-out from {} at step 0 to {} at step 40."'.format(*ends)
            in page
        )


def test_the_adapter_kept_is_the_one_with_the_lowest_loss_after_step_0(inputs: Inputs) -> None:
    kept = re.compile(r"default keeps [^.]* step 20, [^.]* 8\.500\.")
    assert kept.search(words(inputs.html()))
    inputs.experiments["default"]["train/metrics.jsonl"][0] |= {"eval_loss": 1.0}
    assert kept.search(words(inputs.html()))


def test_the_training_time_is_that_of_the_last_logged_line(inputs: Inputs) -> None:
    metrics = inputs.experiments["default"]["train/metrics.jsonl"]
    assert "1.5 minutes" in words(inputs.html())
    metrics.append({"step": 40, "kept_step": 20, "seconds": 150.0})
    page = inputs.html()
    assert "2.5 minutes" in words(page)
    assert rows(page, "default")[-1] == ["40", "2.50", "15,789", "160", "1.2"]
    inputs.experiments["other"] = inputs.experiment()
    assert "4.0 minutes" in words(inputs.html())


def test_losses_of_the_earlier_adapter_precede_those_of_its_successor(inputs: Inputs) -> None:
    experiment = inputs.experiments["default"]
    assert "continued from" not in words(inputs.html())
    ancestor = experiment["eval/metrics.json"]["base"] | {"eval_loss": 9.875}
    experiment["eval/metrics.json"]["ancestor"] = ancestor
    experiment["train/run.json"]["ancestor"] = {"name": "<b>Ada", "fingerprint": "f" * 64}
    page = words(inputs.html())
    numbers = re.findall(r"\d\.\d{3}", page[page.index("<b>Ada") :])
    # Its total, audio and stop loss, then those of the heir.
    assert numbers[:6] == ["9.875", "8.900", "7.250", "8.650", "7.400", "3.500"]


def test_the_preflight_checks_are_a_table(inputs: Inputs) -> None:
    page = inputs.html()
    assert rows(page, "labels") == [["passed", "96 samples"]]
    assert rows(page, "audio offset") == [["no evidence", "a random base"]]
    inputs.experiments["default"]["train/preflight.json"]["checks"] = []
    assert "Pre-flight The pre-flight check was off." in words(inputs.html())


def test_alarms_are_listed_and_add_a_caution_to_the_verdict(inputs: Inputs) -> None:
    page = words(inputs.html())
    assert "Alarms None." in page
    assert "during training" not in page
    alarm = {"step": 20, "alarm": "gradient_zero", "message": "the gradient's norm is 0"}
    inputs.experiments["default"]["train/metrics.jsonl"].append(alarm)
    page = inputs.html()
    assert rows(page, "gradient zero") == [["20", "the gradient's norm is 0"]]
    assert "Caution: 1 alarm during training" in words(page)


def test_alarms_beyond_the_first_20_are_only_counted(inputs: Inputs) -> None:
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    lines += [{"step": i, "alarm": f"sign_{i}", "message": "m"} for i in range(21)]
    page = inputs.html()
    assert rows(page, "sign 19")
    assert not rows(page, "sign 20")
    assert "And 1 more, in metrics.jsonl" in words(page)


def test_each_loss_has_a_chart_in_the_colours_of_the_page(inputs: Inputs) -> None:
    drawings = re.findall(r'<svg [^>]*role="img".*?</svg>', inputs.html(), re.DOTALL)
    assert len(drawings) == 7
    assert all("currentColor" in d and COLOURS[0] in d for d in drawings)
    assert not any(INK in d or "#000000" in d or "#ffffff" in d for d in drawings)


def test_the_recordings_are_summarised(inputs: Inputs) -> None:
    page = inputs.html()
    assert "Clips kept 120 of 125 Total length, hours 0.600" in words(page)
    assert "Median clip, seconds 3.10 Range, seconds 1.00–29.50" in words(page)
    assert rows(page, "total") == [["5"]]
    assert rows(page, "ada")[-1] == ["80", "64", "16", "0.400"]
    assert rows(page, "de") == [["40", "32", "8", "0.200"]]
    assert rows(page, "silent") == [["3"]]
    assert rows(page, "held out") == [["24", "0.100"]]


def test_measures_cover_clips_in_a_split_and_clips_are_counted_by_split(inputs: Inputs) -> None:
    inputs.clip_seconds = np.array([9.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0])  # c0 and c5 are held out
    inputs.write()
    table = inputs.folder / "clips.parquet"
    clips = read_table(table, CLIPS).to_pylist()
    levels = [-20.0, -30.0, -30.0, -30.0, -30.0, -30.0, -90.0]
    clips = [
        clip | {"rms_dbfs": level, "dc_offset": 8.625e-5}
        for clip, level in zip(clips, levels, strict=True)
    ]
    write_table(table, CLIPS, [*clips[:-1], clips[-1] | {"split": "reference"}])
    inputs.run()
    page = inputs.page.read_text()
    assert "4 train, 2 held out clips" in page
    low, median, high = np.quantile(levels[:-1], [0.05, 0.5, 0.95])
    [level] = [cells for cells in TextOfPage(page).rows if cells and cells[0].startswith("RMS")]
    assert level[1:] == [f"{value:.4g}" for value in (low, median, high)]
    [offset] = [cells for cells in TextOfPage(page).rows if cells[0].startswith("DC offset")]
    assert offset[1:] == ["0.00008625"] * 3  # never with an exponent


def test_the_players_have_the_takes_at_the_first_temperature(inputs: Inputs) -> None:
    inputs.write()
    table = inputs.folder / "experiments/default/eval/generation.parquet"
    spoken = read_table(table, GENERATED).to_pylist()
    again = [r | {"temperature": 0.3, "duration_seconds": 3.0} for r in spoken if r["temperature"]]
    write_table(table, GENERATED, [*spoken, *again])
    inputs.run()
    [cells] = rows(inputs.page.read_text(), "Who was that? ada · cloning")
    assert [cells[i].split(" s")[0] for i in (2, 3)] == ["length 4.0", "length 1.5"]


def test_speakers_beyond_the_first_20_are_summed_in_one_row(inputs: Inputs) -> None:
    inputs.validation["speakers"] = {
        f"s{i:02}": SPEAKERS["ben"] | {"hours": 0.2 - i / 1000} for i in range(22)
    }
    page = inputs.html()
    assert rows(page, "s19")
    assert not rows(page, "s20")
    assert rows(page, "2 others") == [["80", "64", "16", "0.359"]]  # 0.180 + 0.179


def test_packing_fallbacks_and_rejections_are_reported(inputs: Inputs) -> None:
    inputs.packing["fallbacks"] = [
        {"split": "eval", "speaker": "dora", "reason": "no other recording", "num_clips": 1}
    ]
    inputs.packing["rejected"] = [
        {"clip_id": f"c{i}", "reason": "too_many_tokens", "message": f"m.jsonl:{i}: too long"}
        for i in range(21)
    ]
    page = inputs.html()
    assert rows(page, "dora") == [["held out", "1", "no other recording"]]
    assert rows(page, "c19") == [["m.jsonl:19: too long"]]
    assert not rows(page, "c20")
    assert "And 1 more, in packing.json" in words(page)
    assert rows(page, "Fill, % of positions") == [["96.8", "65.4"]]
    assert rows(page, "Audio trained on, hours") == [["0.500", "0.500"]]
    assert rows(page, "Text labels")[1] == ["288", "288"]
    assert rows(page, "Audio labels")[1] == ["70,000", "70,000"]


def test_each_base_has_its_own_packing_section(inputs: Inputs) -> None:
    inputs.more_packing = {"another": inputs.packing | {"max_tokens": 4096}}
    page = words(inputs.html())
    for base, max_tokens in (("tiny", "2,048"), ("another", "4,096")):
        part = page[page.index(f"Packing for {base}") :]
        assert part.index(f"at most {max_tokens} positions") < 200


def test_recordings_in_both_splits_add_a_caution(inputs: Inputs) -> None:
    assert "Caution:" not in words(inputs.html())
    inputs.validation["overlap"]["audio"] = 2
    text = words(inputs.html())
    assert re.search(r"Caution: [^.]* in both splits: 2\.", text)
    assert "No recording is in both splits." not in text
    inputs.validation["overlap"]["context"] = 3
    text = words(inputs.html())
    assert re.search(r"Caution: [^.]* in both splits: 2\.", text)
    assert re.search(r"Caution: [^.]* as context [^.]*: 3\.", text)


def test_recordings_that_the_other_split_hears_as_context_bring_a_caution(inputs: Inputs) -> None:
    assert "No recording is in both splits." in words(inputs.html())
    inputs.validation["overlap"]["context"] = 3
    text = words(inputs.html())
    assert re.search(r"Caution: [^.]* as context [^.]*: 3\. data\.keep_context_together", text)
    assert "No recording is in both splits." not in text


HOSTILE = '<script>alert("x")</script>&\'<img src=x onerror=y>${{7*7}}'


def test_hostile_strings_are_escaped(inputs: Inputs) -> None:
    plain = inputs.html()
    inputs.validation["speakers"] = {HOSTILE: SPEAKERS["ada"]}
    inputs.validation["speakers_with_one_clip"]["speakers"] = [HOSTILE]
    inputs.title = HOSTILE
    inputs.texts = (HOSTILE, *inputs.texts[1:])
    inputs.experiments["default"]["eval/breakdown.json"]["worst_clips"][0]["text"] = HOSTILE
    inputs.experiments["default"]["eval/verdict.json"]["sentences"].append(HOSTILE)
    page = inputs.html()
    assert words(page).count(" ".join(HOSTILE.split())) >= 6
    for tag in ("<script", "<img", "<iframe"):
        assert page.count(tag) == plain.count(tag)


def test_the_same_inputs_give_the_same_bytes(inputs: Inputs) -> None:
    assert inputs.html() == inputs.html()


def test_the_page_refers_to_nothing_outside_itself(inputs: Inputs) -> None:
    page = inputs.html()
    references = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]*)""", page)
    references += re.findall(r"""url\(\s*["']?([^"')]*)""", page)
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert not re.search(r"https?:|@import|<iframe", page)


def test_only_the_pages_own_script_may_run(inputs: Inputs) -> None:
    page = inputs.html()
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page
    assert "default-src 'none';" in page


def test_the_charts_are_also_written_as_files(inputs: Inputs) -> None:
    inputs.html()
    figures = sorted(path.name for path in (inputs.page.parent / "figures").iterdir())
    assert figures == [
        "audio-loss.svg",
        "hours-by-language.svg",
        "hours-by-speaker.svg",
        "lengths.svg",
        "stop-loss.svg",
        "text-loss.svg",
        "total-loss.svg",
    ]
    for name in figures:
        chart = ElementTree.parse(inputs.page.parent / "figures" / name).getroot()
        assert chart.tag == "{http://www.w3.org/2000/svg}svg"


def test_alarms_and_samples_are_marked_in_the_curves(inputs: Inputs) -> None:
    plain = inputs.html()
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    lines += [
        {"step": 20, "alarm": "gradient_zero", "message": "m"},
        {"step": 40, "sample_stop_rate": 0.5, "sample_length_ratio": 1.0},
    ]
    page = inputs.html()
    first = [re.findall(r'role="img".*?</svg>', each, re.DOTALL)[0] for each in (plain, page)]
    assert first[1].count("stroke-dasharray") == first[0].count("stroke-dasharray") + 1
    assert len(first[1]) > len(first[0])


def test_no_two_elements_share_an_id(inputs: Inputs) -> None:
    ids = re.findall(r'\sid="([^"]*)"', inputs.html())
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("validation.json", "judge_clips"),
        ("packing.json", "pack_rows"),
        ("experiments/default/train/metrics.jsonl", "train_adapter"),
        ("experiments/default/train/config.json", "train_adapter"),
        ("experiments/default/train/preflight.json", "train_adapter"),
        ("experiments/default/train/run.json", "train_adapter"),
        ("experiments/default/eval/metrics.json", "eval_adapter"),
        ("experiments/default/eval/verdict.json", "eval_adapter"),
        ("experiments/default/eval/breakdown.json", "eval_adapter"),
        ("experiments/default/eval/generation.json", "eval_adapter"),
        ("experiments/default/eval/generation.parquet", "eval_adapter"),
        ("clips.parquet", "judge_clips"),
    ],
)
def test_a_missing_file_is_named_with_the_rule_to_rerun(
    inputs: Inputs, path: str, rule: str
) -> None:
    inputs.write()
    (inputs.folder / path).unlink()
    with pytest.raises(UserError, match=rf"{path}: .*--forcerun {rule}$"):
        inputs.run()
    assert not inputs.page.exists()


@pytest.mark.parametrize("key", sorted(ADAPTER))
@pytest.mark.parametrize("model", ["adapter", "base"])
def test_a_metric_missing_from_eval_is_named(inputs: Inputs, model: str, key: str) -> None:
    del inputs.experiments["default"]["eval/metrics.json"][model][key]
    inputs.write()
    with pytest.raises(UserError, match=rf"eval/metrics.json:\s+.*{model}.*{key}") as error:
        inputs.run()
    assert "--forcerun eval_adapter" in str(error.value)


@pytest.mark.parametrize("key", ["loss", "text_loss", "audio_loss", "stop_loss"])
@pytest.mark.parametrize(("line", "prefix"), [(3, "eval_"), (7, "")])
def test_a_loss_missing_from_training_names_the_line(
    inputs: Inputs, line: int, prefix: str, key: str
) -> None:
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    del lines[line - 1][prefix + key]
    inputs.write()
    with pytest.raises(UserError, match=rf"metrics.jsonl:{line}:\s+`{prefix}{key}`") as error:
        inputs.run()
    assert "--forcerun train_adapter" in str(error.value)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "8.9", True])
@pytest.mark.parametrize("key", ["eval_stop_loss", "eval_audio_loss_codebook_1"])
def test_a_metric_that_is_not_a_finite_number_is_named(
    inputs: Inputs, key: str, value: Any
) -> None:
    inputs.experiments = {"default": inputs.experiment(**{key: value})}
    inputs.write()
    with pytest.raises(UserError, match=rf"eval/metrics.json:\s+`adapter.{key}`"):
        inputs.run()


def test_losses_over_different_clips_are_not_compared(inputs: Inputs) -> None:
    inputs.experiments = {"default": inputs.experiment(num_audio_labels=12344)}
    inputs.write()
    with pytest.raises(UserError, match=r"num_audio_labels.*12344.*12345"):
        inputs.run()


@pytest.mark.parametrize("kept", [slice(3, None), slice(1), slice(3)])
def test_training_without_both_kinds_of_loss_is_an_error(inputs: Inputs, kept: slice) -> None:
    experiment = inputs.experiments["default"]
    lines = experiment["train/metrics.jsonl"]
    experiment["train/metrics.jsonl"] = lines[kept] + (lines[3:] if kept == slice(1) else [])
    inputs.write()
    with pytest.raises(UserError, match=r"train/metrics.jsonl: .*--forcerun train_adapter"):
        inputs.run()


def test_a_line_that_is_not_json_is_named(inputs: Inputs) -> None:
    inputs.write()
    with (inputs.folder / "experiments/default/train/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 50, "lo')
    with pytest.raises(UserError, match=r"metrics.jsonl:8:(.|\n)*--forcerun train_adapter"):
        inputs.run()


@pytest.mark.parametrize(
    ("path", "key", "rule"),
    [
        ("validation", "hours", "judge_clips"),
        ("validation", "speakers", "judge_clips"),
        ("packing", "fallbacks", "pack_rows"),
        ("packing", "eval", "pack_rows"),
    ],
)
def test_a_key_missing_from_the_data_is_named(
    inputs: Inputs, path: str, key: str, rule: str
) -> None:
    del getattr(inputs, path)[key]
    inputs.write()
    with pytest.raises(UserError, match=rf"{path}.json:\s+`{key}`(.|\n)*--forcerun {rule}"):
        inputs.run()


@pytest.mark.parametrize("lacking", ["default", "second"])
def test_experiments_with_different_settings_files_are_refused(
    inputs: Inputs, lacking: str
) -> None:
    inputs.experiments["second"] = inputs.experiment()
    del inputs.experiments[lacking]["train/config.json"]["train"]["lora"]["r"]
    inputs.write()
    with pytest.raises(UserError, match=r"second/train/config.json: .*train.lora.r;"):
        inputs.run()
