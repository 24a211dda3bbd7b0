"""The page: what it says, what it refuses, and that it needs nothing from outside."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from higgs_pipe import report
from higgs_pipe.errors import UserError

BASE = {
    "eval_loss": 10.9,
    "eval_text_loss": 2.0,
    "eval_audio_loss": 8.9,
    "eval_audio_loss_codebook_0": 8.7,
    "eval_audio_loss_codebook_1": 9.1,
    "eval_stop_loss": 7.25,
    "eval_text_accuracy": 0.333,
    "eval_audio_accuracy_codebook_0": 0.001,
    "eval_audio_accuracy_codebook_1": 0.002,
    "num_clips": 24,
    "num_text_labels": 72,
    "num_audio_labels": 12345,
}
ADAPTER = BASE | {
    "eval_loss": 8.65,
    "eval_text_loss": 1.25,
    "eval_audio_loss": 7.4,
    "eval_audio_loss_codebook_0": 6.5,
    "eval_audio_loss_codebook_1": 8.3,
    "eval_stop_loss": 3.5,
    "eval_text_accuracy": 0.9,
    "eval_audio_accuracy_codebook_0": 0.051,
    "eval_audio_accuracy_codebook_1": 0.002,
}
SPLIT = {
    "num_rows": 6,
    "num_samples": 96,
    "tasks": {"cloning": 41, "speech": 55},
    "audio_seconds": 1800.0,
    "num_tokens": 11900,
    "num_audio_frames": 9000,
    "num_text_labels": 288,
    "num_audio_labels": 70000,
    "fill": 0.968,
}
SPEAKERS = {
    "ada": {"num_clips": 80, "hours": 0.4, "num_train_clips": 64, "num_eval_clips": 16},
    "ben": {"num_clips": 40, "hours": 0.2, "num_train_clips": 32, "num_eval_clips": 8},
}


def evaluation_line(step: int, loss: float) -> dict[str, float]:
    losses = {"loss": loss, "text_loss": 2.0, "audio_loss": loss - 2, "stop_loss": 7.0}
    return {"step": step} | {f"eval_{key}": value for key, value in losses.items()}


def training_line(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "text_loss": 2, "audio_loss": loss - 2, "stop_loss": 7}


class Inputs:
    """The files that the page is made from, each a value that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.title = "A voice"
        self.validation: dict[str, Any] = {
            "num_rows": 125,
            "num_clips": 120,
            "num_rejected": 5,
            "num_references": 0,
            "num_rejected_by_reason": {"too_short": 2, "silent": 3},
            "hours": 0.6,
            "splits": {
                "train": {"num_clips": 96, "hours": 0.5},
                "eval": {"num_clips": 24, "hours": 0.1},
            },
            "clip_seconds": {"min": 1.004, "median": 3.1, "max": 29.5},
            "speakers": SPEAKERS,
            "languages": {"en": SPEAKERS["ada"], "de": SPEAKERS["ben"]},
            "num_clips_without_speaker": 0,
            "num_clips_without_language": 0,
            "speakers_with_one_clip": {"speakers": [], "message": "cloning falls back"},
            "num_audio_shared_by_splits": 0,
            "duplicates": [],
        }
        self.packing: dict[str, Any] = {
            "max_tokens": 2048,
            "train": SPLIT,
            "eval": SPLIT | {"fill": 0.654},
            "fallbacks": [],
            "rejected": [],
        }
        self.experiments: dict[str, dict[str, Any]] = {"default": self.experiment()}

    @staticmethod
    def experiment(**adapter: float) -> dict[str, Any]:
        lines = [(0, 10.9), (20, 8.5), (40, 8.65)]
        return {
            "eval/metrics.json": {"adapter": ADAPTER | adapter, "base": dict(BASE)},
            "train/metrics.jsonl": [
                *(evaluation_line(step, loss) for step, loss in lines),
                *(training_line(step, 10.5 - step / 20) for step in (10, 20, 30, 40)),
            ],
            "train/preflight.json": {
                "checks": [
                    {"name": "labels", "status": "passed", "found": "96 samples"},
                    {"name": "audio offset", "status": "no evidence", "found": "a random base"},
                ]
            },
            "train/config.json": {
                "base_model": "resources/tiny-higgs",
                "train": {"learning_rate": 0.0002, "lora": {"r": 16, "target_modules": ["a", "b"]}},
            },
        }

    @property
    def page(self) -> Path:
        return self.folder / "report" / "index.html"

    def write(self) -> None:
        files = {
            "report.json": {"report": {"title": self.title}},
            "validation.json": self.validation,
            "packing.json": self.packing,
        }
        for name, experiment in self.experiments.items():
            files |= {f"experiments/{name}/{path}": value for path, value in experiment.items()}
        for path, value in files.items():
            values = value if path.endswith(".jsonl") else [value]
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text("".join(json.dumps(line) + "\n" for line in values))

    def run(self) -> None:
        report.run(
            config=self.folder / "report.json",
            validation=self.folder / "validation.json",
            packing=self.folder / "packing.json",
            experiments_dir=self.folder / "experiments",
            names=list(self.experiments),
            page=self.page,
        )

    def html(self) -> str:
        self.write()
        self.run()
        return self.page.read_text(encoding="utf-8")


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
    assert "Pre-flight It was off." in words(inputs.html())


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
    assert all("currentColor" in d and report.COLOURS[0] in d for d in drawings)
    assert not any(report.INK in d or "#000000" in d or "#ffffff" in d for d in drawings)


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
    with pytest.raises(UserError, match=rf"{path}: the file is missing; .*--forcerun {rule}$"):
        inputs.run()
    assert not inputs.page.exists()


@pytest.mark.parametrize("key", sorted(ADAPTER))
@pytest.mark.parametrize("model", ["adapter", "base"])
def test_a_metric_missing_from_eval_is_an_error(inputs: Inputs, model: str, key: str) -> None:
    del inputs.experiments["default"]["eval/metrics.json"][model][key]
    inputs.write()
    with pytest.raises(
        UserError, match=r"eval/metrics.json: '.*' is missing; .*forcerun eval_adapter"
    ):
        inputs.run()


@pytest.mark.parametrize("key", ["loss", "text_loss", "audio_loss", "stop_loss"])
@pytest.mark.parametrize(("line", "prefix"), [(3, "eval_"), (7, "")])
def test_a_loss_missing_from_training_names_the_line(
    inputs: Inputs, line: int, prefix: str, key: str
) -> None:
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    del lines[line - 1][prefix + key]
    inputs.write()
    with pytest.raises(UserError, match=rf"metrics.jsonl:{line}: .*; .*forcerun train_adapter"):
        inputs.run()


def test_a_metric_that_is_no_finite_number_is_an_error(inputs: Inputs) -> None:
    for value in (None, float("nan"), "8.9", True):
        inputs.experiments = {"default": inputs.experiment(eval_stop_loss=value)}
        inputs.write()
        with pytest.raises(UserError, match=r"'eval_stop_loss' is .*, not a finite number"):
            inputs.run()


def test_losses_over_different_clips_are_not_compared(inputs: Inputs) -> None:
    inputs.experiments = {"default": inputs.experiment(num_audio_labels=12344)}
    inputs.write()
    with pytest.raises(UserError, match=r"differ in 'num_audio_labels' \(12344 and 12345\)"):
        inputs.run()


@pytest.mark.parametrize(
    ("kept", "message"), [(slice(3, None), "step 0"), (slice(1), "step 0"), (slice(3), "training")]
)
def test_training_without_both_kinds_of_loss_is_an_error(
    inputs: Inputs, kept: slice, message: str
) -> None:
    experiment = inputs.experiments["default"]
    lines = experiment["train/metrics.jsonl"]
    experiment["train/metrics.jsonl"] = lines[kept] + (lines[3:] if kept == slice(1) else [])
    inputs.write()
    with pytest.raises(UserError, match=rf"metrics.jsonl: no .*{message}"):
        inputs.run()


def test_a_line_that_is_not_json_is_named(inputs: Inputs) -> None:
    inputs.write()
    with (inputs.folder / "experiments/default/train/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 50, "lo')
    with pytest.raises(UserError, match=r"metrics.jsonl:8: not JSON .*forcerun train_adapter"):
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
def test_a_key_missing_from_the_data_is_an_error(
    inputs: Inputs, path: str, key: str, rule: str
) -> None:
    del getattr(inputs, path)[key]
    inputs.write()
    with pytest.raises(UserError, match=rf"{path}.json: '{key}' is missing; .*forcerun {rule}"):
        inputs.run()


def test_experiments_with_different_settings_files_are_refused(inputs: Inputs) -> None:
    inputs.experiments["old"] = inputs.experiment()
    del inputs.experiments["old"]["train/config.json"]["train"]["lora"]["r"]
    inputs.write()
    with pytest.raises(UserError, match=r"old/train/config.json: 'train.lora.r' is missing"):
        inputs.run()
