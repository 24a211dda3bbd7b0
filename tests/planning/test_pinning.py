"""The hash by which a changed checkpoint is noticed, and the family of a base model."""

import json
import os
import shutil
from pathlib import Path

import pytest

from higgs_pipe.planning import pinning
from higgs_pipe.planning.families import family_of
from higgs_pipe.planning.forms import folder_of
from higgs_pipe.planning.model_types import V2, V3
from higgs_pipe.planning.pinning import checkpoint_hash, hash_of_files

FILES = ("model.safetensors", "pytorch_model.bin", "config.json", "chat_template.jinja")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in (*FILES, "README.md"):
        (folder / name).write_text(name)
        os.utime(folder / name, (1, 1))
    return folder


def test_the_hash_depends_on_names_and_contents_of_model_files_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache/hashes.json"
    first = checkpoint_hash(str(checkpoint), cache)
    files = [checkpoint / name for name in FILES]
    assert hash_of_files(files, cache) == hash_of_files(files[::-1], cache) == first
    copied = shutil.copytree(checkpoint, tmp_path / "moved")
    (copied / "README.md").write_text("another")
    assert checkpoint_hash(str(copied), cache) == first
    (copied / "config.json").touch()
    assert checkpoint_hash(str(copied), cache) == first
    found: set[str | None] = {first}
    for name in FILES:
        for text, modified_at in (("longer than before", 1), (name.upper(), 2)):
            (copied / name).write_text(text)
            os.utime(copied / name, (modified_at, modified_at))
            found.add(checkpoint_hash(str(copied), cache))
        shutil.copy2(checkpoint / name, copied / name)
    (copied / "config.json").rename(copied / "konfig.json")
    found.add(checkpoint_hash(str(copied), cache))
    assert len(found) == 1 + 2 * len(FILES) + 1
    assert checkpoint_hash("acme/model", cache) is None


def test_each_file_is_hashed_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def look(path: Path) -> str:
        hashed.append(path.parent.name)
        return "0"

    monkeypatch.setattr(pinning, "_sha256", look)
    other = shutil.copytree(checkpoint, tmp_path / "other")
    for folder in (checkpoint, other, checkpoint, other):
        checkpoint_hash(str(folder), tmp_path / "hashes.json")
    assert hashed == ["base"] * len(FILES) + ["other"] * len(FILES)


def test_the_family_of_a_base_is_that_of_its_demo_folder_or_name(tmp_path: Path) -> None:
    demo = {str(tmp_path / "tiny"): V2, str(tmp_path / "tiny-v3"): V3}
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.json").write_text(json.dumps({"model_type": "some_type"}))
    for name, revision, family in (
        (str(tmp_path / "tiny"), None, V2),
        (str(tmp_path / "tiny-v3"), None, V3),
        (str(tmp_path / "own"), None, "some_type"),
        ("bosonai/higgs-audio-v2-generation-3B-base", "main", V2),
        ("bosonai/higgs-tts-3-4b", None, V3),
        ("acme/voice", None, "acme/voice"),
        ("acme/voice", "v1", "acme/voice@v1"),
    ):
        assert family_of(name, revision, demo) == family


def test_each_form_of_an_adapter_has_its_own_folder() -> None:
    folders = [folder_of(form, "ada") for form in ("peft", "merged", "original")]
    assert folders == ["<results>/adapters/ada", "<results>/merged/ada", "<results>/original/ada"]
