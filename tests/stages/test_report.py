"""The page: what it says, what it refuses, and that it needs nothing from outside."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from report_inputs import ADAPTER, SPEAKERS, Inputs

from higgs_pipe.errors import UserError
from higgs_pipe.reporting.charts import INK
from higgs_pipe.reporting.experiments import COLOURS


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def words(page: str) -> str:
    """The page as a reader sees it: without styles and tags, spaces made one."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(text))


def rows(page: str, label: str) -> list[list[str]]:
    """The cells of each table row that starts with ``label``."""
    found = re.findall(rf"<tr[^>]*><th[^>]*>{re.escape(label)}</th>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", cells) for cells in found]


def test_a_lower_held_out_loss_is_called_better(inputs: Inputs) -> None:
    assert (
        "default: better . The adapter’s held-out loss is 8.650, the base model’s 10.900: "
        "a difference of −2.250 nats per label." in words(inputs.html())
    )


def test_a_higher_held_out_loss_is_called_worse(inputs: Inputs) -> None:
    inputs.experiments = {"default": inputs.experiment(eval_loss=11.0)}
    assert "default: worse . The adapter’s held-out loss is 11.000" in words(inputs.html())
    assert "a difference of +0.100 nats per label" in words(inputs.page.read_text())


def test_a_loss_equal_to_three_decimals_is_no_difference(inputs: Inputs) -> None:
    inputs.experiments = {"default": inputs.experiment(eval_loss=10.9004)}
    assert "default: no difference ." in words(inputs.html())


def test_a_part_that_got_worse_is_named_beside_a_good_verdict(inputs: Inputs) -> None:
    inputs.experiments = {"default": inputs.experiment(eval_stop_loss=7.5)}
    page = words(inputs.html())
    assert "By part: text −0.750, audio −1.500, stop +0.250." in page
    assert "Caution: the stop loss got worse." in page
    assert "audio loss got worse" not in page


@pytest.mark.parametrize(("num_clips", "is_few"), [(19, True), (20, False)])
def test_fewer_than_twenty_held_out_clips_bring_a_caution(
    inputs: Inputs, num_clips: int, is_few: bool
) -> None:
    evaluation = inputs.experiments["default"]["eval/metrics.json"]
    evaluation["base"]["num_clips"] = evaluation["adapter"]["num_clips"] = num_clips
    assert (f"only {num_clips} clips held out" in words(inputs.html())) == is_few


def test_the_table_shows_base_adapter_and_change(inputs: Inputs) -> None:
    page = inputs.html()
    expected = {
        "Total": ["10.900 8.650 −2.250 better"],
        "Audio": ["8.900 7.400 −1.500 better"],
        "Stop": ["7.250 3.500 −3.750 better"],
        "Text": ["2.000 1.250 −0.750 better", "33.3 90.0 +56.7 better"],
        "codebook 0": ["8.700 6.500 −2.200 better", "0.1 5.1 +5.0 better"],
        "codebook 1": ["9.100 8.300 −0.800 better", "0.2 0.2 0.0 same"],
        "codebook 2": [],
        "Clips": ["24 24 "],
    }
    assert {key: [" ".join(cells) for cells in rows(page, key)] for key in expected} == expected


def test_experiments_stand_side_by_side(inputs: Inputs) -> None:
    inputs.experiments["rank-32"] = inputs.experiment(eval_loss=11.9)
    expected = ["10.900", "8.650", "−2.250", "better", "10.900", "11.900", "+1.000", "worse"]
    assert rows(inputs.html(), "Total") == [expected]


def test_settings_that_differ_between_experiments_are_marked(inputs: Inputs) -> None:
    inputs.experiments["rank-32"] = inputs.experiment()
    inputs.experiments["rank-32"]["train/config.json"]["train"]["lora"]["r"] = 32
    page = inputs.html()
    assert '<td class="differs">16</td><td class="differs">32</td>' in page
    assert "<td>0.0002</td><td>0.0002</td>" in page


def test_the_words_of_a_curve_give_its_ends(inputs: Inputs) -> None:
    assert (
        'aria-label="Total loss in nats per label over optimizer steps. '
        "default: training from 10.000 at step 10 to 8.500 at step 40, "
        'held-out from 10.900 at step 0 to 8.650 at step 40."' in inputs.html()
    )


def test_the_adapter_kept_is_the_one_with_the_lowest_loss_after_step_0(inputs: Inputs) -> None:
    kept = "default keeps the adapter of step 20, where the held-out loss was lowest (8.500)"
    assert kept in words(inputs.html())
    inputs.experiments["default"]["train/metrics.jsonl"][0] |= {"eval_loss": 1.0}
    assert kept in words(inputs.html())


def test_the_preflight_is_a_table(inputs: Inputs) -> None:
    page = inputs.html()
    assert rows(page, "labels") == [["passed", "96 samples"]]
    assert rows(page, "audio offset") == [["no evidence", "a random base"]]
    inputs.experiments["default"]["train/preflight.json"]["checks"] = []
    assert "Pre-flight The pre-flight was off." in words(inputs.html())


def test_alarms_are_listed_and_are_a_caution_in_the_verdict(inputs: Inputs) -> None:
    page = words(inputs.html())
    assert "Alarms None." in page
    assert "during training; see below" not in page
    alarm = {"step": 20, "alarm": "gradient_zero", "message": "the gradient's norm is 0"}
    inputs.experiments["default"]["train/metrics.jsonl"].append(alarm)
    page = inputs.html()
    assert rows(page, "gradient zero") == [["20", "the gradient&#39;s norm is 0"]]
    assert "Caution: 1 alarm during training; see below." in words(page)


def test_alarms_beyond_the_twentieth_are_counted(inputs: Inputs) -> None:
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    lines += [{"step": i, "alarm": f"sign_{i}", "message": "m"} for i in range(21)]
    page = inputs.html()
    assert rows(page, "sign 19")
    assert not rows(page, "sign 20")
    assert "And 1 more, in metrics.jsonl" in words(page)


def test_each_loss_has_its_drawing_in_the_colours_of_the_page(inputs: Inputs) -> None:
    drawings = re.findall(r'<svg [^>]*role="img".*?</svg>', inputs.html(), re.DOTALL)
    assert len(drawings) == 4
    assert all("currentColor" in d and COLOURS[0] in d for d in drawings)
    assert not any(INK in d or "#000000" in d or "#ffffff" in d for d in drawings)


def test_the_recordings_are_summed_up(inputs: Inputs) -> None:
    page = inputs.html()
    assert "Clips kept 120 of 125 Length in all, hours 0.600" in words(page)
    assert "Range, seconds 1.00–29.50" in words(page)
    assert rows(page, "ada") == [["80", "64", "16", "0.400"]]
    assert rows(page, "de") == [["40", "32", "8", "0.200"]]
    assert rows(page, "silent") == [["3"]]
    assert rows(page, "held out") == [["24", "0.100"]]


def test_speakers_beyond_the_twentieth_are_summed_in_one_row(inputs: Inputs) -> None:
    inputs.validation["speakers"] = {
        f"s{i:02}": SPEAKERS["ben"] | {"hours": 0.2 - i / 1000} for i in range(22)
    }
    page = inputs.html()
    assert rows(page, "s19")
    assert not rows(page, "s20")
    assert rows(page, "2 others") == [["80", "64", "16", "0.359"]]  # 0.180 + 0.179


def test_what_packing_lost_is_told(inputs: Inputs) -> None:
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


def test_recordings_in_both_splits_bring_a_caution(inputs: Inputs) -> None:
    assert "No recording is in both splits." in words(inputs.html())
    inputs.validation["num_audio_shared_by_splits"] = 2
    assert "Caution: recordings in both splits: 2." in words(inputs.html())


def test_a_hostile_name_is_text_and_never_markup(inputs: Inputs) -> None:
    hostile = '<script>alert("x")</script>&\'<img src=x onerror=y>'
    inputs.validation["speakers"] = {hostile: SPEAKERS["ada"]}
    inputs.validation["speakers_with_one_clip"]["speakers"] = [hostile]
    inputs.title = hostile
    page = inputs.html()
    assert (
        page.count(html.escape(hostile).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")) == 4
    )
    assert "<script" not in page
    assert "<img" not in page


def test_the_same_inputs_give_the_same_bytes(inputs: Inputs) -> None:
    assert inputs.html() == inputs.html()


def test_the_page_refers_to_nothing_outside_itself(inputs: Inputs) -> None:
    page = inputs.html()
    references = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]*)""", page)
    references += re.findall(r"""url\(\s*["']?([^"')]*)""", page)
    assert references
    assert all(reference.startswith("#") or reference == "data:," for reference in references)
    assert not re.search(r"https?:|@import|<script|<iframe", page)


def test_no_two_elements_share_an_id(inputs: Inputs) -> None:
    ids = re.findall(r'\sid="([^"]*)"', inputs.html())
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("validation.json", "judge_clips"),
        ("packing.json", "pack"),
        ("experiments/default/train/metrics.jsonl", "train_adapter"),
        ("experiments/default/train/config.json", "train_adapter"),
        ("experiments/default/train/preflight.json", "train_adapter"),
        ("experiments/default/eval/metrics.json", "eval_adapter"),
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
        ("packing", "fallbacks", "pack"),
        ("packing", "eval", "pack"),
    ],
)
def test_a_key_missing_from_the_data_is_named(
    inputs: Inputs, path: str, key: str, rule: str
) -> None:
    del getattr(inputs, path)[key]
    inputs.write()
    with pytest.raises(UserError, match=rf"{path}.json:\s+`{key}`(.|\n)*--forcerun {rule}"):
        inputs.run()


def test_experiments_with_different_settings_files_are_refused(inputs: Inputs) -> None:
    inputs.experiments["old"] = inputs.experiment()
    del inputs.experiments["old"]["train/config.json"]["train"]["lora"]["r"]
    inputs.write()
    with pytest.raises(UserError, match=r"old/train/config.json: .*train.lora.r;"):
        inputs.run()
