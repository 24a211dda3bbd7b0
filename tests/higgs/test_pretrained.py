"""Pinning: a checkpoint is identified by its weights, whatever its path and name."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import write_stage_config
from httpx2 import Request, Response
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from trainings import PackedCorpus

from higgs_pipe import pin_model
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import pretrained
from higgs_pipe.higgs.loading_errors import not_loaded
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.higgs.pretrained import PinnedModel, weight_fingerprint
from higgs_pipe.higgs.v2.renderer import ChatRenderer
from higgs_pipe.planning.pinning import checkpoint_hash


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a file of each kind that a checkpoint has; nothing loads it."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model-2.safetensors").write_bytes(b"two")
    (folder / "model-1.safetensors").write_bytes(b"one")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("About")
    return folder


def pinned(folder: Path) -> PinnedModel:
    return PinnedModel.of(Pretrained("base_model", str(folder)))


def test_the_fingerprint_is_the_hash_of_the_weight_file_hashes(base: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256(text).hexdigest()}  model-{number}.safetensors\n"
        for number, text in ((1, b"one"), (2, b"two"))
    )
    assert pinned(base).fingerprint == hashlib.sha256(lines.encode()).hexdigest()
    assert pinned(base).fingerprint == weight_fingerprint(Pretrained("codec", str(base)))


def test_only_weights_and_config_change_the_pin_of_a_folder(base: Path) -> None:
    before = pinned(base)
    os.utime(base / "model-1.safetensors", ns=(1, 1))
    (base / "README.md").write_text("Other")
    assert pinned(base) == before
    (base / "config.json").write_text('{"a": 1}')
    assert pinned(base).fingerprint == before.fingerprint
    assert pinned(base).config_fingerprint != before.config_fingerprint
    before.check_unchanged()
    (base / "model-1.safetensors").write_bytes(b"0ne")
    with pytest.raises(UserError, match=r"base_model '.*base'.*--forcerun pin_model"):
        before.check_unchanged()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "t.model", "merges.txt"])
def test_every_file_that_affects_prompts_changes_the_config_fingerprint(
    base: Path, name: str
) -> None:
    before = pinned(base)
    (base / name).write_text("{}")
    assert pinned(base).fingerprint == before.fingerprint
    assert pinned(base).config_fingerprint != before.config_fingerprint


def test_the_commit_of_a_requested_hub_revision_is_pinned(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, asked = "0123abcd" * 5, []
    folder = base.rename(base.with_name(commit))

    def download(name: str, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    monkeypatch.setattr(pretrained, "snapshot_download", download)
    found = PinnedModel.of(Pretrained("base_model", "ada/base", "v2"))
    assert set(asked) == {("ada/base", "v2")}
    assert (found.name, found.revision) == ("ada/base", commit)
    assert found.pretrained == Pretrained("base_model", "ada/base", commit)


def test_a_folder_without_weights_is_named(base: Path) -> None:
    for path in base.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"base: no weight file"):
        pinned(base)


def test_an_adapter_given_as_a_base_is_refused(base: Path) -> None:
    (base / "config.json").rename(base / "adapter_config.json")
    with pytest.raises(UserError, match=r"base_model '.*base' is an adapter"):
        pinned(base)


@pytest.mark.parametrize("name", ["/no/such/folder", "./base", "a/b/c", "org/my model"])
def test_a_missing_path_is_reported_as_missing_and_not_as_a_malformed_id(name: str) -> None:
    for use in (PinnedModel.of, ChatRenderer):
        with pytest.raises(UserError) as caught:
            use(Pretrained("base_model", name))
        assert f"base_model {name!r} " in str(caught.value)
        assert "no such folder" in str(caught.value)
        assert "Repo id" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        (GatedRepoError, "accept its licence"),
        (RevisionNotFoundError, "no revision 'v2'"),
        (RepositoryNotFoundError, "the Hub has no such model"),
        (HfHubHTTPError, "Hub does not provide it: 503"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(kind: type[HfHubHTTPError], token: str) -> None:
    wrapped = OSError("wrapped: 503")  # as Transformers does
    wrapped.__cause__ = kind("503", response=Response(503, request=Request("GET", "http://hub")))
    told = str(not_loaded(Pretrained("base_model", "org/base", "v2"), wrapped)).replace(
        "wrapped: ", ""
    )
    assert told.startswith("base_model 'org/base' cannot be loaded: ")
    assert token in told


def test_pin_model_writes_a_pin_that_can_be_read_back(base: Path, tmp_path: Path) -> None:
    config = write_stage_config(tmp_path / "codec.json", codec=str(base))
    pin_model.run(config, "codec", tmp_path / "models/codec.json")
    found = PinnedModel.read(tmp_path / "models/codec.json")
    assert (found.setting, found.name, found.revision) == ("codec", str(base), None)
    assert found.fingerprint == pinned(base).fingerprint


def test_packed_rows_record_their_base_and_refuse_another(
    corpus: PackedCorpus, tiny_base: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    moved = PackedCorpus(corpus.directory, copy)
    moved.pack(tmp_path / "packed", max_tokens=512)
    rows, configured = tmp_path / "packed/eval.parquet", Pretrained("base_model", str(copy))
    assert base_of_rows(rows, configured) == pinned(copy)
    with pytest.raises(UserError, match=r"eval.parquet .*'org/other'.*--forcerun pack_rows"):
        base_of_rows(rows, Pretrained("base_model", "org/other"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"base_model .*--forcerun pin_model"):
        base_of_rows(rows, configured)
    with pytest.raises(UserError, match=r"--forcerun pack_rows"):
        base_of_rows(corpus.clips, configured)


def test_planning_hashes_a_file_only_when_it_changes(base: Path, tmp_path: Path) -> None:
    cache, weights = tmp_path / "results" / "hashes.json", base / "model-1.safetensors"
    found = checkpoint_hash(str(base), cache)
    times = weights.stat()
    weights.write_bytes(b"0ne")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it were the same file
    assert checkpoint_hash(str(base), cache) == found
    os.utime(weights, ns=(1, 1))
    assert checkpoint_hash(str(base), cache) != found
    weights.write_bytes(b"one")
    assert checkpoint_hash(str(base), cache) == found  # touched, with equal bytes
    (base / "README.md").write_text("Other")
    assert checkpoint_hash(str(base), cache) == found
    assert checkpoint_hash("org/model", cache) is None
    cache.write_text("{")  # damaged
    assert checkpoint_hash(str(base), cache) == found
    (tmp_path / "file").touch()  # of which no folder can be made
    assert checkpoint_hash(str(base), tmp_path / "file/hashes.json") == found
    assert len(str(found)) == 16


def test_hashes_of_two_checkpoints_are_cached_separately(tmp_path: Path) -> None:
    cache, found = tmp_path / "hashes.json", []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        os.utime(tmp_path / name / "model.safetensors", ns=(1, 1))
        found.append(checkpoint_hash(str(tmp_path / name), cache))
    assert len(set(found)) == len(json.loads(cache.read_text())) == 2


def test_every_file_that_affects_results_changes_the_checkpoint_hash(tmp_path: Path) -> None:
    weights = ("model.safetensors", "pytorch_model.bin")
    names = (*weights, "config.json", "chat_template.jinja", "tokenizer.model", "merges.txt")
    for name in names:
        (tmp_path / name).write_text("1")
    found = {checkpoint_hash(str(tmp_path), tmp_path / "cache")}
    for name in names:
        (tmp_path / name).write_text("22")
        found.add(checkpoint_hash(str(tmp_path), tmp_path / "cache"))
    assert len(found) == 1 + len(names)


def test_pinning_a_setting_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    config = write_stage_config(tmp_path / "codec.json", codec="c")
    with pytest.raises(UserError, match="'judge'"):
        pin_model.run(config, "judge", tmp_path / "models/judge.json")
    assert not (tmp_path / "models").exists()
