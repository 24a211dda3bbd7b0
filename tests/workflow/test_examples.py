from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT

from higgs_pipe.config.settings import Config
from higgs_pipe.planning.config_check import load_schema, merge, stage_config_text

BARE: dict[str, Any] = {"manifest": "m", "base_model": "b", "codec": "c"}
OF_MEMORY = {
    "rows_per_micro_batch",
    "gradient_checkpointing",
    "max_logits_mb",
    "compile",
    "cuda_graphs",
    "quantization",
    "max_batch_seconds",
}
EXAMPLES = sorted((ROOT / "examples/configs").glob("*.yaml"))


def differences(values: dict[str, Any], defaults: dict[str, Any], path: str = "") -> set[str]:
    """Dotted names of the settings that differ from their defaults."""
    found: set[str] = set()
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            found |= differences(value, defaults[key], f"{name}.")
        elif value != defaults.get(key):
            found.add(name)
    return found


def names(values: dict[str, Any], path: str = "") -> set[str]:
    return {
        name
        for key, value in values.items()
        for name in (names(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}"})
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_keeps_no_demo_setting(example: Path) -> None:
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    overlay = yaml.safe_load(example.read_text())
    config = Config.model_validate(merge(shipped, overlay)).model_dump(by_alias=True)
    bare = {key: config[key] for key in ("manifest", "base_model", "codec")}
    defaults = Config.model_validate(bare).model_dump(by_alias=True)
    assert differences(config, defaults) <= names(overlay)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_changes_nothing_that_would_measure_recordings_again(example: Path) -> None:
    schema = load_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    overlay = yaml.safe_load(example.read_text())
    for stage in ("list_rows", "measure"):
        assert stage_config_text(shipped, stage, schema) == stage_config_text(
            merge(shipped, overlay), stage, schema
        )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_sets_nothing_that_the_memory_plan_decides(example: Path) -> None:
    chosen, all_there_are = (
        {name.split(".")[-1] for name in names(values)}
        for values in (yaml.safe_load(example.read_text()), Config(**BARE).model_dump())
    )
    assert chosen.isdisjoint(OF_MEMORY)
    assert all_there_are.issuperset(OF_MEMORY)


def test_there_are_at_least_four_examples() -> None:
    assert len(EXAMPLES) >= 4
