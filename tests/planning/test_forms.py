"""What each form makes, and what is refused before anything runs."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.family import FAMILIES
from higgs_pipe.planning import forms
from higgs_pipe.planning.model_types import BUNDLED_CODECS, V2, V3

BOTH = dict.fromkeys("ab", V2)  # experiments


def config_of(base: Path | str, *chosen: str, **package: Any) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "base_model_revision": None,
        "codec": "none",
        "codec_revision": None,
        "package": {"forms": list(chosen), "dtype": "bfloat16", **package},
        "push": {"forms": ["peft"]},
        "experiments": {"a": {}, "b": {}},
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of 1,000 weights, which take 2,000 bytes in bfloat16."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {"w": torch.zeros(30, 30), "v": torch.zeros(100)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=num_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_each_form_of_each_experiment_is_made_once() -> None:
    assert forms.outputs(config_of("x", "merged", "peft", "merged"), BOTH) == [
        "<results>/merged/a",
        "<results>/merged/b",
        "<results>/adapters/a.zip",
        "<results>/adapters/b.zip",
    ]


def test_disk_space_is_needed_for_every_checkpoint_not_yet_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(base, "peft", "merged", "original")
    results = tmp_path / "results"
    with_free(monkeypatch, 4 * 2000)
    forms.check(config, results, BOTH)
    with_free(monkeypatch, 4 * 2000 - 1)
    with pytest.raises(UserError, match=r"4 full checkpoints .merged, original. take 0\.0 GB"):
        forms.check(config, results, BOTH)
    monkeypatch.setattr(forms, "num_weights", lambda _: 3 * 10**9)
    with pytest.raises(UserError, match=r"take 24\.0 GB, but .* has 0\.0 GB free"):
        forms.check(config, results, BOTH)
    monkeypatch.undo()
    with_free(monkeypatch, 4 * 2000 - 1)
    (results / "merged/b").mkdir(parents=True)
    forms.check(config, results, BOTH)
    with pytest.raises(UserError, match="3 full"):
        forms.check(config_of(base, "merged", "original", dtype="float32"), results, BOTH)
    forms.check(config_of(base, "peft"), results, BOTH)


def test_disk_space_covers_every_shard_and_the_codec_of_the_merged_form(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"x": torch.zeros(500)}, base / "more.safetensors")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--codec"
    for folder in ("refs", "snapshots/0123abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/v1").write_text("0123abc")
    for name, num_bytes in (("a", 300), ("b", 400)):
        file = repository / f"snapshots/0123abc/{name}.safetensors"
        file.write_bytes(bytes(num_bytes))
    config = config_of(base, "merged", "original") | {"experiments": {"a": {}}}
    config |= {"codec": "some/codec", "codec_revision": "v1"}
    with_free(monkeypatch, 2 * 3000 + 700)
    forms.check(config, tmp_path, BOTH)
    with_free(monkeypatch, 2 * 3000 + 699)
    with pytest.raises(UserError, match="2 full checkpoints"):
        forms.check(config, tmp_path, BOTH)


def test_disk_space_is_checked_where_the_results_are(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    usage = shutil.disk_usage("/")

    def look(place: Path) -> Any:
        asked.append(place)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", look)
    for results in (tmp_path / "not yet" / "results", base):
        forms.check(config_of(base, "merged"), results, BOTH)
    assert asked == [tmp_path, base]


def test_only_a_form_that_is_built_can_be_pushed(base: Path, tmp_path: Path) -> None:
    config = config_of(base, "merged")
    forms.check(config | {"push": {"forms": ["peft", "merged"]}}, tmp_path, BOTH)
    with pytest.raises(UserError, match=r"push.forms: original .*package.forms .merged."):
        forms.check(config | {"push": {"forms": ["original", "merged"]}}, tmp_path, BOTH)


def test_a_quantized_base_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(UserError, match=r"package.forms: original .*quantized"):
        forms.check(config_of(base, "original"), tmp_path, BOTH)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"\xff", gzip.compress(b"{}")[:-4]],
    ids=["cut off", "list", "not text", "gzip cut off"],
)
def test_a_damaged_config_in_the_hub_cache_is_named(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = shutil.copytree(base, tmp_path / "models--some--base/snapshots/0123abc")
    (snapshot / "config.json").write_bytes(content)
    config = config_of("some/base", "merged") | {"base_model_revision": "0123abc"}
    with pytest.raises(UserError, match=r"snapshots/0123abc/config\.json "):
        forms.check(config, tmp_path, BOTH)


def test_a_base_without_safetensors_files_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"package.forms: merged need .*safetensors"):
        forms.check(config_of(base, "merged"), tmp_path, BOTH)


def test_a_hub_base_is_looked_up_in_the_cache(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--some--base"
    shutil.copytree(base, repository / "snapshots/0123abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abc")
    found = repository / "snapshots/0123abc"
    assert forms.checkpoint_folder("some/base", None) == found
    assert forms.checkpoint_folder("some/base", "0123abc") == found
    assert forms.checkpoint_folder("some/base", "other") is None
    assert forms.checkpoint_folder("some/other", None) is None
    assert forms.num_weights(found / "model.safetensors") == 1000
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert forms.checkpoint_folder("some/base", None) == found
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert forms.checkpoint_folder("some/base", None) is None
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/huggingface").symlink_to(tmp_path)
    in_home = tmp_path / ".cache/huggingface/hub/models--some--base/snapshots/0123abc"
    assert forms.checkpoint_folder("some/base", None) == in_home


def test_disk_space_covers_a_hub_base_at_its_own_revision(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(base, tmp_path / "models--some--base/snapshots/0123abc")
    config = config_of(Path("some/base"), "merged") | {"base_model_revision": "0123abc"}
    with_free(monkeypatch, 2 * 2000 - 1)
    with pytest.raises(UserError, match="2 full checkpoints"):
        forms.check(config, tmp_path, BOTH)


def test_a_form_is_built_only_for_experiments_whose_family_has_it() -> None:
    config = config_of("x", "original", "merged")
    config["push"] = {"forms": ["original"], "repo": "ada/{experiment}"}
    mixed = {"a": V2, "b": V3}
    made = ["<results>/original/a", "<results>/merged/a", "<results>/merged/b"]
    assert forms.outputs(config, mixed) == made
    assert forms.pushed(config, mixed) == ["<results>/pushed/original/a.json"]
    [line] = forms.left_out(config, mixed)
    assert "original is a form of Higgs Audio v2 and not made for b" in line
    assert forms.left_out(config, BOTH) == forms.left_out(config_of("x", "merged"), mixed) == []


@pytest.mark.parametrize("repo", [None, "ada/voice"])
def test_experiments_without_a_repository_each_are_refused_while_planning(repo: str | None) -> None:
    """Not after hours of training."""
    config = config_of("x", "peft") | {"push": {"forms": ["peft"], "repo": repo}}
    with pytest.raises(UserError, match=r"push\.repo "):
        forms.pushed(config, BOTH)
    assert len(forms.outputs(config, BOTH)) == 2  # which push nothing


def test_a_form_no_family_in_use_has_is_refused_without_the_base(
    tmp_path: Path,
) -> None:
    both = dict.fromkeys("ab", V3)
    forms.check(config_of("x", "merged"), tmp_path, both)
    with pytest.raises(UserError, match="original is a form of Higgs Audio v2"):
        forms.check(config_of("x", "merged", "original"), tmp_path, both)
    forms.check(config_of("x", "original"), tmp_path, both | {"a": "acme/base"})  # not known yet


def test_a_bundled_codec_takes_extra_space_only_in_v2_checkpoints(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bases of 1,000 values, merged; 100 of the second's are the codec of both."""
    bundle = shutil.copytree(base, tmp_path / "bundle")
    (bundle / "config.json").write_text(json.dumps({"model_type": V3}))
    prefix = BUNDLED_CODECS[V3]
    weights = {f"{prefix}w": torch.zeros(100), f"not.{prefix}w": torch.zeros(900)}
    save_file(weights, bundle / "model.safetensors")
    beside = {"b": {"base_model": str(bundle)}, "a": {}}
    config = config_of(base, "merged") | {"codec": str(bundle), "experiments": beside}
    with_free(monkeypatch, 2 * 2000 + 400)
    forms.check(config, tmp_path, {"a": V2, "b": V3})
    with_free(monkeypatch, 2 * 2000 + 399)
    with pytest.raises(UserError, match="2 full checkpoints"):
        forms.check(config, tmp_path, {"a": V2, "b": V3})


def test_the_impossible_forms_are_exactly_those_no_family_has() -> None:
    every = {(f.model_type, form) for f in FAMILIES for form in forms.FULL_FORMS}
    made = {(family.model_type, form) for family in FAMILIES for form in family.forms}
    assert set(forms.IMPOSSIBLE) == every - made
