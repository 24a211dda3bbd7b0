"""The config by which ``eval.other_manifest`` is listed and judged, and inputs of its rules."""

from pathlib import Path

from higgs_pipe.config.settings import Config
from higgs_pipe.planning.manifests import config_of_other, inputs, manifest_files


def test_the_other_manifest_gets_its_own_config_with_one_shard() -> None:
    config = Config(
        manifest="own.jsonl",
        base_model="b",
        codec="c",
        data={"split_seed": 5},
        eval={"other_manifest": "other.jsonl"},
    ).model_dump(by_alias=True)
    other = config_of_other(config)
    assert (other["manifest"], other["data"]["num_shards"]) == ("other.jsonl", 1)
    unchanged = {key: value for key, value in config.items() if key not in ("manifest", "data")}
    assert unchanged.items() <= other.items()
    assert other["data"]["split_seed"] == 5
    assert config["manifest"] == "own.jsonl"


def test_missing_files_and_paths_with_braces_are_not_rule_inputs(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("m.jsonl", "{m.jsonl", "m}.jsonl", "absent")]
    for path in paths[:3]:
        Path(path).touch()
    assert inputs(paths) == paths[:1]


def test_a_name_that_is_not_utf8_is_no_rule_input(tmp_path: Path) -> None:
    """Snakemake writes the names of inputs down, and would end with a traceback."""
    for name in ("ad\udce9.txt", "adé.txt"):
        (tmp_path / name).touch()
    assert inputs(manifest_files({"manifest": str(tmp_path)})) == [str(tmp_path / "adé.txt")]
