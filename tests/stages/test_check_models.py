"""Hub checkpoints are checked before anything is measured."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import python_path, write_stage_config
from higgs.test_hub import cached

from higgs_pipe import check_models
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.v2 import miniature


def check(folder: Path, base_model: str, codec: str, **settings: str) -> tuple[int, str]:
    """Run the stage; returns its exit code and its messages."""
    config = write_stage_config(folder / "models.json", base_model=base_model, codec=codec)
    words = ["--config", str(config), "--checked", str(folder / "checked.txt")]
    environment = {"HF_HOME": str(folder), "PYTHONPATH": python_path(), **settings}
    finished = subprocess.run(
        [sys.executable, "-m", "higgs_pipe.check_models", *words],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=folder,
    )
    return finished.returncode, finished.stderr


@pytest.mark.slow
def test_models_in_the_hub_cache_are_checked_offline(tiny_base: Path, tmp_path: Path) -> None:
    cached(tmp_path, "acme/higgs", tiny_base)
    cached(tmp_path, "acme/codec", tiny_base / miniature.AUDIO_TOKENIZER)
    code, _ = check(tmp_path, "acme/higgs", "acme/codec", HF_HUB_OFFLINE="1")
    assert code == 0
    assert len((tmp_path / "checked.txt").read_text().splitlines()) == 2
    code, said = check(tmp_path, "acme/codec", "acme/codec", HF_HUB_OFFLINE="1")
    assert code == 2
    assert "base_model 'acme/codec' is that of codec" in said


def test_local_folders_are_not_looked_up_on_the_hub(tiny_base: Path, tmp_path: Path) -> None:
    codec = tiny_base / miniature.AUDIO_TOKENIZER
    config = write_stage_config(
        tmp_path / "models.json", base_model=str(tiny_base), codec=str(codec)
    )
    check_models.run(config, tmp_path / "checked.txt")
    assert (tmp_path / "checked.txt").read_text() == ""


def test_each_model_is_listed_with_its_commit_and_every_fault_is_told(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"acme/higgs": tmp_path / "c0ffee", "acme/codec": tmp_path / "decade"}
    without_weights = shutil.ignore_patterns("*.safetensors")
    for name, source in (("acme/higgs", tiny_base), ("acme/codec", tiny_base / "audio_tokenizer")):
        shutil.copytree(source, folders[name], ignore=without_weights)
    monkeypatch.setattr(check_models, "small_files", lambda pretrained: folders[pretrained.name])
    models = {"base_model": "acme/higgs", "codec": "acme/codec"}
    config = write_stage_config(tmp_path / "models.json", **models)
    check_models.run(config, tmp_path / "checked.txt")
    assert (tmp_path / "checked.txt").read_text() == (
        "base_model: acme/higgs at commit c0ffee\ncodec: acme/codec at commit decade\n"
    )
    for folder in folders.values():
        (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        check_models.run(config, tmp_path / "checked.txt")
    for setting, name in models.items():
        assert f"{setting} {name!r} has a damaged model.safetensors.index.json" in str(caught.value)


@pytest.mark.slow
def test_an_unresponsive_hub_times_out_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Imports take seconds, and more on a busy machine: the shortest run is that of a refusal.
        begun = time.monotonic()
        check(tmp_path, "acme/higgs", "acme/codec", HF_HUB_OFFLINE="1")
        start_seconds = time.monotonic() - begun
        code, said = check(tmp_path, "acme/higgs", "acme/codec", HF_ENDPOINT=address)
        seconds = time.monotonic() - begun - start_seconds
    assert code == 2
    assert "base_model 'acme/higgs' " in said
    assert "hf download acme/higgs" in said
    assert "Traceback" not in said
    assert seconds < start_seconds + 15
