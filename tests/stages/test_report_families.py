"""A report on a family without text loss shows no text loss, and no 0 instead."""

import re
from pathlib import Path
from typing import Any

from report_inputs import Inputs, rows, words

from higgs_pipe.planning.model_types import V2, V3


def without_text(experiment: dict[str, Any]) -> dict[str, Any]:
    """The results of an experiment on Higgs TTS 3: no key of the text loss is there."""
    for path in ("eval/metrics.json", "train/metrics.jsonl"):
        parts = experiment[path]
        for part in parts if isinstance(parts, list) else parts.values():
            for key in [key for key in part if "text" in key]:
                del part[key]
    verdict = experiment["eval/verdict.json"]
    verdict["measures"] = [m for m in verdict["measures"] if m["name"] != "text_loss"]
    return experiment


def numbers(page: str) -> list[str]:
    return [word.strip("().,%−").lower() for word in words(page).split()]


def test_a_report_on_v3_alone_has_no_text_loss(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.families = [V3]
    without_text(inputs.experiments["default"])
    for split in ("train", "eval"):
        inputs.packing[split] = inputs.packing[split] | {"num_text_labels": 0}
    page = inputs.html()
    assert rows(page, "Text") == rows(page, "Text labels") == []
    assert "Text loss" not in page
    assert len(list((inputs.page.parent / "figures").glob("*-loss.svg"))) == 3
    assert rows(page, "Total") == [["", "", "10.900", "8.650", "−2.250", ""]]
    assert "nan" not in numbers(page)


def test_in_a_mixed_report_only_v2_has_a_text_loss(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.families = [V2, V3]
    other = without_text(inputs.experiment())
    other["train/config.json"]["base_model"] = "resources/tiny-higgs-v3"
    inputs.experiments = {"other": other, **inputs.experiments}
    page = inputs.html()
    assert len(rows(page, "Text")) == 2  # loss and accuracy of one of the two
    assert len(rows(page, "Total")) == 2
    [chart] = set(re.findall(r"Text loss in nats[^<\"]*", page))
    assert "default: training" in chart
    assert "other: training" not in chart
    assert "nan" not in numbers(page)
