"""The benchmark of the training step, where it can be run without a GPU."""

import argparse
import sys
from typing import Any

import pytest
import torch
from helpers import ROOT


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    import train_step

    return train_step


def test_each_variant_of_a_micro_step_is_measured_and_written(train_step: Any) -> None:
    config = train_step.model_config(128, 2, 600)
    options = argparse.Namespace(num_clips=4, repetitions=1)
    variants = [v._replace(is_compiled=False) for v in train_step.GPU_VARIANTS]
    found = train_step.measure_variants(options, config, torch.device("cpu"), variants)
    assert [line["variant"] for line in found] == [variant.name for variant in variants]
    assert all(line["positions_per_second"] > 0 for line in found)
    table = train_step.cuda_table(found, "a machine")
    assert len(table) == 4 + len(variants)
    assert table[4].count("|") == table[2].count("|")


def test_the_tables_of_the_docs_are_what_the_formula_gives(train_step: Any) -> None:
    import forecast

    page = (ROOT / "docs/gpu-memory.md").read_text()
    assert "\n".join(forecast.tables()) in page


def test_the_table_of_the_tutorial_is_what_the_formula_gives(train_step: Any) -> None:
    import hours

    page = (ROOT / "docs/tutorials/own-voice.md").read_text()
    assert "\n".join(hours.table()) in page
