"""Config validation: accepted and refused values, error messages, and the part each stage gets."""

import copy
import json
import re
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, has_line_with
from pydantic import ValidationError

from higgs_pipe.config.reference import reference_text
from higgs_pipe.config.schema import schema_text
from higgs_pipe.config.settings import Config, ManifestEntry, SpeechModelConfig
from higgs_pipe.config.stages import STAGES, load_stage
from higgs_pipe.errors import UserError
from higgs_pipe.planning import config_check, launching
from higgs_pipe.planning.config_check import merge

SCHEMA_PATH = ROOT / "workflow" / "schemas" / "config.schema.yaml"
DEMO_SETTINGS = ROOT / "examples" / "demo" / "settings.yaml"
SCHEMA = config_check.load_schema(SCHEMA_PATH)
SHIPPED: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
MINIMAL: dict[str, Any] = {"manifest": "m.jsonl", "base_model": "b", "codec": "c"}


# Each has ten times as many values as the one before.
ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


def load(config: dict[str, Any]) -> dict[str, Any]:
    return config_check.load_config(config, SCHEMA_PATH)


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        load(config)
    return str(error.value)


def with_value(config: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    *sections, key = dotted.split(".")
    section = changed
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return changed


def leaves(section: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in section.items():
        nested = isinstance(value, dict) and prefix + key != "experiments"
        names += leaves(value, f"{prefix}{key}.") if nested else [prefix + key]
    return names


@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        ("manifest: &it [*it]", "20 levels"),
        ("a: &a {a: *a}", "20 levels"),
        ("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + ALIASES, "100,000 values"),
    ],
    ids=["list in itself", "section in itself", "ten billion values"],
)
def test_exponential_or_recursive_yaml_aliases_are_refused(hostile: str, told: str) -> None:
    assert told in refusal({**MINIMAL, **yaml.safe_load(hostile)})


def nested(num_levels: int) -> dict[str, Any]:
    return {"x": nested(num_levels - 1)} if num_levels else {}


def test_as_many_values_and_levels_as_are_allowed_are_read() -> None:
    """The config itself counts too, and its other three values and the list."""
    for largest, too_many, told in (
        ([0] * 99_995, [0] * 99_996, "100,000 values"),
        (nested(17), nested(18), "20 levels"),
    ):
        assert "x: unknown key" in refusal({**MINIMAL, "x": largest})
        assert told in refusal({**MINIMAL, "x": too_many})


def test_an_empty_section_of_an_experiment_changes_nothing() -> None:
    assert merge({"lora": {"r": 4}, "seed": 1}, {"lora": {}}) == {"lora": {"r": 4}, "seed": 1}


def test_the_schema_file_is_up_to_date() -> None:
    assert SCHEMA_PATH.read_text() == schema_text()


def test_the_settings_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == reference_text()


def test_the_settings_reference_has_default_and_bounds_per_key() -> None:
    page = reference_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert "| `learning_rate` | number > 0, ≤ 1 | `0.0002` | Peak learning rate. |" in rows
    assert len(rows) == len(leaves(load(MINIMAL))) + len(ManifestEntry.model_fields)


def test_the_shipped_config_names_every_setting_and_is_accepted() -> None:
    assert sorted(leaves(SHIPPED)) == sorted(leaves(load(MINIMAL)))
    Config.model_validate(load(SHIPPED))


def test_the_shipped_config_has_defaults_except_for_the_demo() -> None:
    demo = {key: SHIPPED[key] for key in ("manifest", "base_model", "codec")}
    assert load(SHIPPED) == load(demo)


def test_demo_settings_are_valid_and_differ_from_the_defaults() -> None:
    settings = yaml.safe_load(DEMO_SETTINGS.read_text())
    changed = load(merge(SHIPPED, settings))
    for name in leaves(settings):
        shipped, value = load(SHIPPED), changed
        for key in name.split("."):
            shipped, value = shipped[key], value[key]
        assert value != shipped


def test_user_settings_override_those_of_the_demo() -> None:
    typed = {"train": {"learning_rate": 2e-4}}  # the default, but asked for
    config = load(merge(SHIPPED, {"data": {"num_shards": 3}}))
    changes = config_check.use_demo_settings(config, DEMO_SETTINGS, SCHEMA_PATH, typed)
    assert "data.num_shards" not in changes
    assert "train.learning_rate" not in changes
    assert (changes["train.num_epochs"], changes["train.sampling.max_seconds"]) == (16, 6.0)
    assert config["train"]["sampling"] == load(SHIPPED)["train"]["sampling"] | {"max_seconds": 6.0}
    assert (config["data"]["num_shards"], config["data"]["eval_fraction"]) == (3, 0.15)
    assert (config["train"]["learning_rate"], config["train"]["num_epochs"]) == (2e-4, 16)


def test_given_experiments_replace_those_of_the_config_file() -> None:
    given = {"experiments": {"small": {"lora": {"r": "4"}}}, "train": {"seed": 3}}
    file = merge(SHIPPED, {"train": {"num_epochs": 5}})
    config = config_check.load_config(merge(file, given), SCHEMA_PATH, given)
    assert config["experiments"] == {"small": {"lora": {"r": 4}}}
    assert (config["train"]["num_epochs"], config["train"]["seed"]) == (5, 3)


def test_every_setting_of_the_shipped_config_has_a_comment() -> None:
    lines = (ROOT / "config.yaml").read_text().splitlines()
    settings = [
        (above, line)
        for above, line in pairwise(lines)
        if ": " in line and not line.lstrip().startswith("#") and line != "  default: {}"
    ]
    assert len(settings) == len(leaves(SHIPPED)) - 1  # experiments: is a section in the file
    assert [line for above, line in settings if not above.lstrip().startswith("#")] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_each_example_merged_into_the_shipped_config_is_valid(path: Path) -> None:
    laid_over = merge(SHIPPED, yaml.safe_load(path.read_text()))
    Config.model_validate(load(laid_over))


def test_missing_keys_get_the_declared_defaults() -> None:
    assert load(MINIMAL) == Config(**MINIMAL).model_dump(by_alias=True)


def test_an_experiment_keeps_only_its_overrides() -> None:
    experiments = {"small": {"lora": {"r": 4}}, "plain": None}
    assert load({**MINIMAL, "experiments": experiments})["experiments"] == {
        "small": {"lora": {"r": 4}},
        "plain": {},
    }


def test_all_faults_are_reported_at_once_by_name() -> None:
    message = refusal(
        {
            "manifest": [],
            "codec": "c",
            "data": 3,
            "train": {"learning_rte": 1, "num_epochs": 0, "dtype": "half", "lora": {"r": "many"}},
            "experiments": {"a b": {}, "ok": {"lora": {"alfa": 1}}},
            "learning_rate": 1e-4,
        }
    )
    assert message.splitlines()[1:-1] == [
        "  learning_rate: unknown key; did you mean train.learning_rate?",
        f"  base_model: missing. {Config.model_fields['base_model'].description}",
        "  data: must be a section of keys, not 3",
        "  experiments: names hold 1 to 100 letters, digits, '.', '_' and '-', with a letter or"
        ' digit first and without .zip at the end, not "a b"',
        "  experiments.ok.lora.alfa: unknown key; did you mean experiments.ok.lora.alpha?",
        "  manifest: must not be empty, not []",
        "  train.learning_rte: unknown key; did you mean train.learning_rate?",
        '  train.dtype: must be one of auto, bfloat16, float32, float64, not "half"',
        '  train.lora.r: must be a whole number, not "many"',
        "  train.num_epochs: must be at least 1, not 0",
    ]


@pytest.mark.parametrize(
    ("key", "allowed", "refused", "told"),
    [
        ("num_shards", 2_000, 2_001, "at most 2000"),
        ("split_seed", 0, -1, "at least 0"),
        ("eval_fraction", 0.01, 0, "above 0"),
        ("eval_fraction", 0.99, 1, "below 1"),
    ],
)
def test_the_bound_that_a_value_exceeds_is_named(
    key: str, allowed: float, refused: float, told: str
) -> None:
    load({**MINIMAL, "data": {key: allowed}})
    assert f"  data.{key}: must be {told}, not {refused}" in refusal(
        {**MINIMAL, "data": {key: refused}}
    )


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("rows_per_micro_batch", "many", 'must be a whole number or auto, not "many"'),
        ("compile", 3, "must be true or false or auto, not 3"),
        ("gradient_checkpointing", 0, "must be at least 1, not 0"),
    ],
)
def test_a_word_allowed_instead_of_a_number_is_named(key: str, value: Any, told: str) -> None:
    assert f"  train.{key}: {told}" in refusal({**MINIMAL, "train": {key: value}}).splitlines()


def test_a_fault_in_a_list_is_named_by_its_place() -> None:
    weights = {**MINIMAL, "train": {"loss_weights": {"codebooks": [1, "two"]}}}
    assert "  train.loss_weights.codebooks.1: must be a finite number" in refusal(weights)
    entries = {**MINIMAL, "manifest": [{"path": "m.csv"}, {"path": "n.csv", "root": 1, "rot": 2}]}
    for named in ("  manifest.1.root: must be null or text", "  manifest.1.rot: unknown key"):
        assert named in refusal(entries)


def test_a_misplaced_key_of_an_experiment_is_found_in_the_experiment() -> None:
    misplaced = {**MINIMAL, "experiments": {"e": {"lora": {"max_steps": 3}}}}
    told = "experiments.e.lora.max_steps: unknown key; did you mean experiments.e.max_steps?"
    assert told in refusal(misplaced)


def test_a_long_value_is_shown_by_its_beginning() -> None:
    told = f'  train.seed: must be a whole number, not "{56 * "x"}...'
    assert told in refusal({**MINIMAL, "train": {"seed": 1_000 * "x"}}).splitlines()


PATHS = (
    *("manifest", "eval.other_manifest", "base_model", "codec", "experiments.e.base_model"),
    *("train.init_adapter", "experiments.e.init_adapter", "train.accelerate_config"),
    *(f"validate.speech_models.{model}" for model in ("asr", "quality", "speaker")),
    *(f"eval.speech_models.{model}" for model in ("asr", "dnsmos", "speaker")),
)


def with_paths(path: str) -> dict[str, Any]:
    return reduce(lambda config, dotted: with_value(config, dotted, path), PATHS, MINIMAL)


@pytest.mark.parametrize(
    "name", ["n" * 256, "a/" * 2_500, "a\0b", "a\udcffb", "circle", "circle/b"]
)
def test_a_path_that_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    message = refusal(with_paths(f"{tmp_path}/{name}"))
    assert len(message.splitlines()) == len(PATHS) + 2
    for dotted in PATHS:
        assert has_line_with(message, f"  {dotted}: must be a path ")


@pytest.mark.parametrize("name", ["n" * 255, "none/b", "file/b", "é", "a\nb", ""])
def test_a_path_that_could_be_opened_is_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    load(with_paths(f"{tmp_path}/{name}"))


def test_a_path_that_only_a_shell_would_expand_is_refused_unless_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(with_paths("~/ada"))
    assert has_line_with(message, "  manifest: ", "full path", '"~/ada"')
    (tmp_path / "~" / "ada").mkdir(parents=True)
    load(with_paths("~/ada"))


def test_each_path_of_a_list_of_manifests_is_checked() -> None:
    load({**MINIMAL, "manifest": ["a", {"path": f"s3://bucket/{'x' * 300}.csv", "root": "c"}]})
    for entry in (300 * "x", {"path": "b\0"}, {"path": "b", "root": 300 * "x"}):
        assert has_line_with(refusal({**MINIMAL, "manifest": ["a", entry]}), "  manifest.1", "path")


@pytest.mark.parametrize("name", ["n" * 101, "n\n", "../n", "", "n.zip", ".zip"])
def test_an_experiment_whose_files_could_not_be_named_after_it_is_refused(name: str) -> None:
    load({**MINIMAL, "experiments": {"n" * 100: {}, "zip": {}, "n.zip.2": {}}})
    assert "experiments: names hold 1 to 100 " in refusal({**MINIMAL, "experiments": {name: {}}})


def test_a_repository_without_an_owner_is_named() -> None:
    message = refusal({**MINIMAL, "push": {"repo": "ada"}})
    assert has_line_with(message, "  push.repo: ", '"ada"', "OWNER/NAME")


def test_an_unknown_key_without_a_close_match_lists_the_known_ones() -> None:
    assert "report.zzz: unknown key; known here: num_players, title" in refusal(
        {**MINIMAL, "report": {"zzz": 1}}
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rate", "train: {learning_rate: ...}"),
        ("train.lora.r", "train: {lora: {r: ...}}"),
    ],
)
def test_a_dotted_key_gets_a_hint_to_nest_it(key: str, meant: str) -> None:
    assert f"  {key}: unknown key; write {meant}" in refusal({**MINIMAL, key: 1}).splitlines()


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("train.learning_rate", "2e-4", 0.0002),  # YAML 1.1 takes this for text
        ("train.num_epochs", "3", 3),
        ("train.gradient_checkpointing", "True", True),
        ("codec_revision", "null", None),
        ("train.seed", 4.0, 4),
        ("train.rows_per_micro_batch", "2", 2),  # or the word auto
        ("eval.temperatures", ["5e-1"], [0.5]),
        ("experiments.fast.learning_rate", "1e-3", 0.001),
        ("train.max_steps", "1e3", 1000),  # or null
        ("tokenize.max_batch_seconds", 60, 60.0),
        ("package.description", "123", "123"),  # text stays text
        ("package.description", "null", "null"),
    ],
)
def test_strings_are_converted_to_the_type_in_the_schema(
    dotted: str, text: Any, value: Any
) -> None:
    found: Any = load(with_value(MINIMAL, dotted, text))
    for key in dotted.split("."):
        found = found[key]
    assert (found, type(found)) == (value, type(value))


def test_a_section_with_every_key_commented_out_means_its_defaults() -> None:
    assert load({**MINIMAL, "train": None}) == load(MINIMAL)


def test_snakemake_path_variables_are_accepted() -> None:
    assert load({**MINIMAL, "pathvars": {"results": "out"}})["pathvars"] == {"results": "out"}


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("train.learning_rate", 0),
        ("train.learning_rate", 1.5),
        ("train.learning_rate", float("nan")),
        ("train.num_epochs", 2.5),
        ("train.seed", "one"),
        ("train.lora.target_modules", []),
        ("eval.device", "gpu"),
        ("data.num_shards", 2_001),
        ("data.eval_fraction", 1),
        ("pack.tasks", {"speech": 0, "cloning": 0, "dialogue": 0, "dialogue_cloning": 0}),
        ("package.license", ""),
        ("manifest", ""),
        ("manifest", [1]),
        ("codec", None),
        ("codec_revision", 7),
        ("experiments", {}),
        ("train.frobnicate", 1),
    ],
)
def test_the_schema_and_the_models_refuse_the_same_values(dotted: str, value: Any) -> None:
    config = with_value(MINIMAL, dotted, value)
    assert dotted in refusal(config)
    with pytest.raises(ValidationError):
        Config.model_validate(config)


NO_TASK = {"speech": 0, "cloning": 0, "dialogue": 0, "dialogue_cloning": 0}
FORBIDDEN = {
    "fill_missing_text needs speech_models.asr": ("validate", {"fill_missing_text": True}),
    "filters.min_si_sdr_db needs speech_models.quality": (
        "validate",
        {"filters": {"min_si_sdr_db": 0.0}, "speech_models": {"asr": "a/b"}},
    ),
    "at least one task needs a weight above 0": ("pack.tasks", NO_TASK),
    "text or audio needs a weight above 0": ("train.loss_weights", {"text": 0, "audio": 0}),
    "a codebook needs a weight above 0": ("train.loss_weights", {"codebooks": [0, 0.0]}),
    "init olora and pissa cannot be combined with use_dora": (
        "experiments.e.lora",
        {"init": "pissa", "use_dora": True},
    ),
    "init orthogonal needs an even r": ("train.lora", {"init": "orthogonal", "r": 3}),
    "lora.init olora and pissa cannot be combined with dtype float64": (
        "train",
        {"dtype": "float64", "lora": {"init": "olora"}},
    ),
    "lora.init pissa cannot be combined with quantization": (
        "train",
        {"quantization": "4bit", "lora": {"init": "pissa"}},
    ),
}


@pytest.mark.parametrize(("rule", "part"), FORBIDDEN.items())
def test_a_forbidden_combination_is_refused_by_schema_and_models(
    rule: str, part: tuple[str, dict[str, Any]]
) -> None:
    dotted, values = part
    assert f"  {dotted}: {rule}\n" in refusal(with_value(MINIMAL, dotted, values))
    in_train = dotted.replace("experiments.e", "train")
    with pytest.raises(ValidationError, match=re.escape(rule)):
        Config.model_validate(with_value(MINIMAL, in_train, values))


@pytest.mark.parametrize(
    ("dotted", "values"),
    [
        ("validate", {"fill_missing_text": False, "filters": {"max_word_error_rate": None}}),
        ("validate", {"filters": {"min_stoi": 0}, "speech_models": {"quality": "q.pt"}}),
        ("pack.tasks", {"speech": 0, "cloning": 0, "dialogue": 0}),  # the default of the last is 1
        ("train.loss_weights", {"text": 0, "codebooks": [0, 0.5]}),
        ("train.lora", {"init": "pissa", "use_dora": False}),
        ("train.lora", {"init": "default", "use_dora": True, "use_rslora": True}),
        ("train.lora", {"init": "orthogonal"}),
        ("train.lora", {"r": 3}),
    ],
)
def test_an_allowed_combination_is_accepted_by_schema_and_models(
    dotted: str, values: dict[str, Any]
) -> None:
    config = with_value(MINIMAL, dotted, values)
    assert Config.model_validate(config).model_dump(by_alias=True) == load(config)


def test_an_override_that_conflicts_with_train_is_refused() -> None:
    config = with_value(MINIMAL, "train.lora.init", "pissa")
    both = {"a": {"lora": {"use_dora": True}}, "b": {"lora": {"r": 3}}, "c": {"dtype": "float64"}}
    lines = refusal(with_value(config, "experiments", both)).splitlines()
    assert lines[1].startswith("  experiments.a.lora: init olora and pissa")
    assert lines[2].startswith("  experiments.c: lora.init olora and pissa")
    assert len(lines) == 4


def test_an_override_that_is_valid_only_together_with_train_is_accepted() -> None:
    config = with_value(MINIMAL, "train.sample_steps", 2)
    load(with_value(config, "experiments", {"e": {"keep_best_by": "stop_rate"}}))
    without = {"e": {"keep_best_by": "stop_rate", "sample_steps": None}}
    assert "experiments.e: keep_best_by" in refusal(with_value(config, "experiments", without))


def test_validation_runs_speech_models_only_if_one_is_configured() -> None:
    assert not launching.runs_speech_models(load(MINIMAL))
    assert not SpeechModelConfig().is_on
    for model in ("asr", "quality", "speaker"):
        listening = load(with_value(MINIMAL, f"validate.speech_models.{model}", "some/model"))
        assert launching.runs_speech_models(listening)
        assert SpeechModelConfig(**listening["validate"]["speech_models"]).is_on


@pytest.mark.parametrize(("value", "shown"), [(float("inf"), "Infinity"), (True, "true")])
def test_only_a_finite_number_is_a_number(value: Any, shown: str) -> None:
    config = with_value(MINIMAL, "train.max_grad_norm", value)
    assert f"train.max_grad_norm: must be a finite number, not {shown}" in refusal(config)


@pytest.mark.parametrize(
    ("dotted", "value", "stages"),
    [
        ("train.learning_rate", 1e-5, {"estimate", "train"}),
        ("data.num_shards", 3, {"list_rows", "validate"}),
        ("data.split_seed", 3, {"validate"}),
        ("manifest", "other.jsonl", {"list_rows", "validate"}),
        ("validate.max_clip_seconds", 20, {"measure", "validate"}),
        ("validate.max_sample_rate_hz", 96_000, {"measure", "validate"}),
        ("validate.filters.min_sample_rate_hz", 16_000, {"validate", "clips_page"}),
        ("validate.max_rejected_fraction", 0.2, {"validate"}),  # nothing is decoded again
        ("tokenize.max_batch_seconds", 60, {"tokenize"}),
        ("codec", "other", {"models", "codec", "estimate", "tokenize", "package"}),
        ("pack.seed", 1, {"estimate", "pack"}),
        (
            "base_model",
            "other",
            {"models", "base_model", "estimate", "pack", "train", "eval", "package", "merge"},
        ),
        ("eval.rows_per_batch", 2, {"eval"}),
        ("package.license", "mit", {"package"}),
        ("package.dtype", "float32", {"merge"}),
        ("package.forms", ["merged"], {"package"}),  # whose card names them; it adds jobs
        ("report.title", "Voices", {"report"}),
        # It reaches train as an argument.
        ("experiments", {"a": {}, "b": {"seed": 1}}, {"estimate"}),
    ],
)
def test_a_setting_changes_the_config_of_its_stages_only(
    dotted: str, value: Any, stages: set[str]
) -> None:
    before, after = load(SHIPPED), load(with_value(SHIPPED, dotted, value))
    changed = {
        stage
        for stage in STAGES
        if config_check.stage_config_text(before, stage, SCHEMA)
        != config_check.stage_config_text(after, stage, SCHEMA)
    }
    assert changed == stages


def test_order_and_spelling_of_settings_do_not_change_a_stage_config() -> None:
    one = load({**MINIMAL, "train": {"seed": 1, "timeout_seconds": 60}})
    other = load({**MINIMAL, "train": {"timeout_seconds": "60.0", "seed": "1"}})
    assert config_check.stage_config_text(one, "train", SCHEMA) == config_check.stage_config_text(
        other, "train", SCHEMA
    )


def test_a_default_written_out_for_a_manifest_does_not_change_a_stage_config() -> None:
    texts = {
        config_check.stage_config_text(load({**MINIMAL, "manifest": [entry]}), "list_rows", SCHEMA)
        for entry in ({"path": "m.jsonl"}, {"path": "m.jsonl", "format": "auto", "speaker": None})
    }
    assert len(texts) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_accepts_its_own_config(stage: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stage}.json"
    path.write_text(config_check.stage_config_text(load(SHIPPED), stage, SCHEMA))
    loaded = load_stage(STAGES[stage], path)
    assert json.loads(path.read_text()) == loaded.model_dump(by_alias=True)


def test_a_stage_names_its_invalid_config_file_and_the_keys(tmp_path: Path) -> None:
    text = config_check.stage_config_text(load(SHIPPED), "train", SCHEMA)
    settings = json.loads(text)
    settings["train"] |= {"seed": "soon", "sede": 1}
    (tmp_path / "train.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as caught:
        load_stage(STAGES["train"], tmp_path / "train.json")
    assert has_line_with(str(caught.value), "train.json")
    assert has_line_with(str(caught.value), "train.seed")
    assert has_line_with(str(caught.value), "train.sede")


@pytest.mark.parametrize("values", [{}, {"train": 3}, [1], None], ids=str)
def test_overrides_of_settings_that_are_of_no_training_are_user_errors(
    tmp_path: Path, values: Any
) -> None:
    """Such as `--config results/config/eval.json`, by hand."""
    (tmp_path / "eval.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"eval\.json: the settings are refused"):
        load_stage(STAGES["train"], tmp_path / "eval.json", '{"seed": 1}')


@pytest.mark.parametrize("overrides", ["seed=1", "", 2_000 * "["], ids=["text", "none", "deep"])
def test_overrides_that_are_not_json_are_user_errors(tmp_path: Path, overrides: str) -> None:
    text = config_check.stage_config_text(load(MINIMAL), "train", SCHEMA)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match="overrides cannot be read"):
        load_stage(STAGES["train"], tmp_path / "train.json", overrides)


def test_a_stage_may_read_part_of_a_section() -> None:
    text = config_check.stage_config_text(load(SHIPPED), "list_rows", SCHEMA)
    assert json.loads(text) == {"manifest": SHIPPED["manifest"], "data": {"num_shards": 8}}


def test_every_setting_is_read_by_at_least_one_stage() -> None:
    read = {key for keys in SCHEMA["x-stages"].values() for key in keys}
    # The keys of these go to several stages, so that another eval.require evaluates nothing again.
    split = {"eval": "EvalConfig", "package": "ShippingConfig", "report": "ReportConfig"}
    keys = set(SCHEMA["properties"]) - set(split)
    for section, name in split.items():
        keys |= {f"{section}.{key}" for key in SCHEMA["$defs"][name]["properties"]}
    assert keys <= read


@pytest.mark.parametrize(
    "text", [None, "{", b"\xff", 2_000 * "["], ids=["none", "cut", "bytes", "deep"]
)
def test_an_unreadable_stage_config_is_named(tmp_path: Path, text: Any) -> None:
    path = tmp_path / "train.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"train\.json cannot be read"):
        load_stage(STAGES["train"], path)
