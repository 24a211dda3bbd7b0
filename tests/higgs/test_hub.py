"""A Hub id instead of a directory: the same code, from the cache of the Hub's own client."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs import miniature
from higgs_pipe.higgs.pretrained import weight_fingerprint

COMMIT = "0123456789abcdef0123456789abcdef01234567"

LOAD = """
import torch
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.prompts import PromptRenderer
from higgs_pipe.higgs.pretrained import weight_fingerprint
from higgs_pipe.higgs.codec import load_codec
from higgs_pipe.higgs.model import load_base

for revision in (None, "main"):
    base = Pretrained("base_model", "acme/higgs", revision)
    tokens = PromptRenderer(base).tokens
    model = load_base(base, torch.float32)
    assert model.config.audio_token_id == tokens.audio
    codec, info = load_codec(Pretrained("codec", "acme/codec", revision), torch.device("cpu"))
    print(weight_fingerprint(base), info.fingerprint)
"""


def cached(home: Path, name: str, source: Path) -> None:
    """Lay a checkpoint into the cache as ``huggingface_hub`` does after a download."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(
        source, repo / "snapshots" / COMMIT, ignore=lambda *_: [miniature.AUDIO_TOKENIZER]
    )
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)


@pytest.mark.slow
def test_a_hub_id_loads_what_its_directory_would(tiny_base: Path, tmp_path: Path):
    codec_dir = tiny_base / miniature.AUDIO_TOKENIZER
    cached(tmp_path, "acme/higgs", tiny_base)
    cached(tmp_path, "acme/codec", codec_dir)
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", LOAD],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | offline,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    base, codec = (
        weight_fingerprint(Pretrained("base_model", str(directory)))
        for directory in (tiny_base, codec_dir)
    )
    expected = f"{base} {codec}"
    assert finished.stdout.splitlines() == [expected, expected]
