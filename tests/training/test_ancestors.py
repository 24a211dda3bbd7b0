"""Training that starts from an earlier adapter: from exactly its weights, or an error message."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, Seen, edit_result, has_line_with, write_stage_config
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus, launch, train, training_of

import higgs_pipe.train
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.lora import adapter_state
from higgs_pipe.planning.ancestors import (
    FILES,
    ancestor_files,
    ancestor_hash,
    ancestor_option,
    check_ancestors,
    check_lora_settings,
)
from higgs_pipe.training.checkpoints import Checkpoints
from higgs_pipe.training.results import RunInfo
from higgs_pipe.training.training import Training

RATE = 5e-3
SETTINGS: dict[str, Any] = {
    "learning_rate": RATE,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "max_steps": 3,
    "lora": {"r": 4, "alpha": 8, "train_in_full": ["audio_head"]},
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def ancestor(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of three steps."""
    output = tmp_path_factory.mktemp("first") / "train"
    train(corpus, output, **SETTINGS)
    return output / "adapter"


def weights(adapter_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter_dir / WEIGHTS)


def held_out(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def training_from(corpus: PackedCorpus, adapter_dir: Path, **settings: Any) -> Training:
    """A run before its first step."""
    given = {"dtype": "auto", **SETTINGS, **settings}
    return training_of(corpus, **given, init_adapter=str(adapter_dir))


def test_training_starts_from_the_weights_of_the_earlier_adapter(
    corpus: PackedCorpus, ancestor: Path
) -> None:
    training = training_from(corpus, ancestor, seed=7)
    found = adapter_state(training.accelerator.unwrap_model(training.model).model)
    expected = weights(ancestor)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_first_step_moves_each_weight_by_at_most_the_learning_rate(
    corpus: PackedCorpus, ancestor: Path, tmp_path: Path
) -> None:
    """The first step of Adam does this; a fresh adapter would be farther away."""
    train(corpus, tmp_path, **SETTINGS | {"max_steps": 1, "init_adapter": str(ancestor)})
    before, after = weights(ancestor), weights(tmp_path / "adapter")
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert 0.9 * RATE < max(moved.values()) < 1.001 * RATE
    assert held_out(tmp_path)[0] == pytest.approx(held_out(ancestor.parent)[-1], rel=1e-6)


def test_the_preflight_names_the_earlier_adapter_instead_of_the_base(
    corpus: PackedCorpus, ancestor: Path, tmp_path: Path
) -> None:
    for start, settings in (("base", {}), ("earlier adapter", {"init_adapter": str(ancestor)})):
        train(corpus, tmp_path / start, **SETTINGS | settings | {"max_steps": 1})
        checks = json.loads((tmp_path / start / "preflight.json").read_text())["checks"]
        found = {check["name"]: check["found"] for check in checks}
        assert f"the {start}'s loss on held-out codes" in found["audio offset"]
        assert found["shuffled text"].startswith(f"the {start}'s audio loss")


def test_run_json_names_the_earlier_adapter(
    corpus: PackedCorpus, ancestor: Path, tmp_path: Path
) -> None:
    packaged = Path(shutil.copytree(ancestor, tmp_path / "ada"))
    (packaged / "provenance.json").write_text('{"name": "Ada the first"}')
    train(corpus, tmp_path / "train", **SETTINGS | {"init_adapter": str(packaged)})
    found = RunInfo.read(tmp_path / "train/run.json").ancestor
    assert found is not None
    assert found.name == "Ada the first"
    assert training_from(corpus, ancestor).ancestor == found.model_copy(
        update={"name": ancestor.parents[1].name}
    )


@pytest.mark.slow
@pytest.mark.usefixtures("processes_as_forks")
def test_two_processes_also_start_from_the_earlier_adapter(
    corpus: PackedCorpus, ancestor: Path, tmp_path: Path
) -> None:
    settings = {"device": "cpu", "tracker": "none", **SETTINGS, "init_adapter": str(ancestor)}
    config = write_stage_config(
        tmp_path / "train.json", base_model=str(corpus.base), train=settings | {"max_steps": 1}
    )
    case = {
        "config": str(config),
        "train_rows": str(corpus.train_rows),
        "eval_rows": str(corpus.eval_rows),
        "output_dir": str(tmp_path / "two"),
    }
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    script = str(ROOT / "tests/launched/train_cases.py")
    finished = launch(2, script, str(tmp_path / "cases.json"))
    assert finished.returncode == 0, finished.stderr
    train(corpus, tmp_path / "one", **settings | {"max_steps": 1})
    assert held_out(tmp_path / "two") == pytest.approx(held_out(tmp_path / "one"), rel=1e-4)


def other_weights(adapter_dir: Path, copy: Path) -> Path:
    """The same adapter with one number changed."""
    shutil.copytree(adapter_dir, copy)
    changed = weights(copy)
    changed[min(changed)] = changed[min(changed)] + 1.0
    save_file(changed, copy / WEIGHTS)
    edit_result(copy / BASE_FILE)
    return copy


def test_a_checkpoint_based_on_another_earlier_adapter_is_never_resumed(
    corpus: PackedCorpus, ancestor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: Path, identity: Any, __: int) -> Any:
        raise Seen(identity)

    monkeypatch.setattr(higgs_pipe.train, "Checkpoints", look)

    def checkpoints(adapter_dir: Path) -> Checkpoints:
        given = SETTINGS | {"init_adapter": str(adapter_dir), "preflight": False}
        with pytest.raises(Seen) as seen:
            train(corpus, tmp_path / "run", **given)
        [identity] = seen.value.args
        return Checkpoints(tmp_path / "checkpoints", identity, total_limit=2)

    checkpoints(ancestor).save(1, {"step": 1})
    moved = Path(shutil.copytree(ancestor, tmp_path / "moved"))
    assert checkpoints(moved).load_latest() == {"step": 1}
    assert checkpoints(other_weights(ancestor, tmp_path / "other")).load_latest() is None


@pytest.mark.parametrize(
    ("lora", "tokens"),
    [
        ({"r": 2}, ("r: 4", "r: 2")),
        ({"alpha": 16}, ("alpha: 8", "alpha: 16")),
        ({"use_rslora": True}, ("use_rslora: false", "use_rslora: true")),
        ({"use_dora": True}, ("use_dora: false", "use_dora: true")),
        ({"target_modules": "attention"}, ("mlp", "only there")),
        ({"train_in_full": []}, ("audio_lm_head", "only there")),
        (
            {"train_in_full": ["audio_head", "audio_embeddings"]},
            ("embed_audio_tokens", "only here"),
        ),
    ],
    ids=str,
)
def test_lora_settings_that_differ_from_the_earlier_adapter_are_user_errors(
    corpus: PackedCorpus, ancestor: Path, lora: dict[str, Any], tokens: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        training_from(corpus, ancestor, lora=SETTINGS["lora"] | lora)
    assert has_line_with(str(error.value), *tokens)


def test_a_zipped_adapter_must_be_unpacked_first(tmp_path: Path) -> None:
    (tmp_path / "ada.zip").touch()
    for name, advice in (("ada.zip", "unpack the ZIP"), ("absent", "name the folder")):
        with pytest.raises(UserError, match=f"{name} has no adapter_model.*; {advice}"):
            check_lora_settings(tmp_path / name, {})


@pytest.mark.parametrize(("folder", "num_files"), [("a/b", 3), ("a/{b", 0), ("a}/b", 0)])
def test_an_earlier_adapter_is_a_rule_input_unless_its_path_has_braces(
    folder: str, num_files: int
) -> None:
    config = {"train": {"init_adapter": None}, "experiments": {"a": {"init_adapter": folder}}}
    files = ancestor_files(config, "a")
    assert len(files) == num_files
    assert all(Path(file).parent == Path(folder) for file in files)


def test_an_earlier_adapter_replaced_by_an_older_file_has_another_hash(tmp_path: Path) -> None:
    """Snakemake would not notice: the file is older than the result."""
    folder = tmp_path / "ada"
    folder.mkdir()
    for name in (*FILES, "README.md"):
        (folder / name).write_text("first")
    results = tmp_path / "results"
    config: dict[str, Any] = {"train": {"init_adapter": str(folder)}}
    config |= {"experiments": {"one": {}, "two": {"init_adapter": None}}}

    def found(experiment: str = "one") -> str | None:
        return ancestor_hash(config, experiment, results, tmp_path / "hashes.json")

    first = found()
    assert found("two") is None
    (folder / "README.md").write_text("other")
    (folder / FILES[0]).touch()
    assert found() == first is not None
    (folder / FILES[0]).write_text("other")
    os.utime(folder / FILES[0], (0, 0))
    assert found() != first
    trained = results / "experiments/one/train/adapter"
    shutil.copytree(folder, trained)
    config["experiments"]["two"]["init_adapter"] = str(trained)
    assert found("two") is None  # of the same run, so not known before it


def test_an_adapter_trained_on_another_base_is_refused(
    corpus: PackedCorpus, ancestor: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(ancestor, tmp_path / "adapter"))
    edit_result(copy / BASE_FILE, fingerprint="f" * 64)
    with pytest.raises(UserError, match=r"init_adapter .*adapter was trained on other.*ffffffff"):
        training_from(corpus, copy)


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def cut_and_hashed_anew(folder: Path) -> None:
    cut(folder)
    edit_result(folder / BASE_FILE)


def of_more_digits(folder: Path) -> None:
    """In float64, with values that float32 cannot represent."""
    state = {name: tensor.double() + 1e-12 for name, tensor in weights(folder).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    edit_result(folder / BASE_FILE)


def empty(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def remove(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        (cut, (WEIGHTS, "damaged")),
        (cut_and_hashed_anew, ("train.init_adapter", WEIGHTS, "damaged")),
        (of_more_digits, ("train.init_adapter", "do not survive in this dtype")),
        (empty, ("config.json", "damaged")),
        (remove, ("has no", WEIGHTS)),
    ],
)
def test_a_damaged_adapter_is_a_user_error(
    corpus: PackedCorpus,
    ancestor: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    tokens: tuple[str, ...],
) -> None:
    copy = Path(shutil.copytree(ancestor, tmp_path / "adapter"))
    change(copy)
    with pytest.raises(UserError) as error:
        training_from(corpus, copy)
    assert has_line_with(str(error.value), *tokens)


def config_of(experiments: dict[str, Any], lora: dict[str, Any]) -> dict[str, Any]:
    return {"train": {"init_adapter": None, "lora": lora}, "experiments": experiments}


def refusal(config: dict[str, Any], results: Path) -> str:
    with pytest.raises(UserError) as error:
        check_ancestors(config, results)
    return str(error.value)


LORA = {"r": 4, "alpha": 8, "use_rslora": False, "use_dora": False}


def test_planning_finds_missing_and_incompatible_earlier_adapters(
    ancestor: Path, tmp_path: Path
) -> None:
    experiments = {
        "fits": {"init_adapter": str(ancestor)},
        "wider": {"init_adapter": str(ancestor), "lora": {"r": 8}},
        "gone": {"init_adapter": str(tmp_path / "gone")},
        "fresh": {},
    }
    printed = refusal(config_of(experiments, LORA), tmp_path)
    assert has_line_with(printed, "wider:", "r: 4", "r: 8")
    assert has_line_with(printed, "gone:", "has no")
    assert len(printed.splitlines()) == 3


def test_the_folder_of_the_earlier_adapter_is_shell_quoted_for_eval() -> None:
    config = config_of({"heir": {"init_adapter": "my 'own' voice"}, "fresh": {}}, LORA)
    words = shlex.split(ancestor_option(config, "heir"))
    assert words == ["--ancestor-dir", "my 'own' voice"]
    assert ancestor_option(config, "fresh") == ""


def test_an_experiment_may_start_from_another_but_not_from_itself(
    tmp_path: Path,
) -> None:
    first = {"init_adapter": str(tmp_path / "experiments/first/train/adapter")}
    check_ancestors(config_of({"first": {}, "second": first}, LORA), tmp_path)
    with pytest.raises(UserError):  # on object storage, training cannot look at it
        check_ancestors(config_of({"first": {}, "second": first}, LORA), tmp_path, True)
    package = {"init_adapter": str(tmp_path / "adapters/first")}
    for own in (first, package):
        printed = refusal(config_of({"first": own}, LORA), tmp_path)
        assert has_line_with(printed, "first:", "its own result")
