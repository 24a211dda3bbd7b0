"""Hub ids instead of folders: loaded from the cache of the Hub client by the same code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import python_path

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.pretrained import weight_fingerprint
from higgs_pipe.higgs.v2 import miniature

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOVED = "89abcdef0123456789abcdef0123456789abcdef"

LOAD = """
import torch
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.v2.renderer import ChatRenderer
from higgs_pipe.higgs.pretrained import weight_fingerprint
from higgs_pipe.higgs.codec import load_codec
from higgs_pipe.higgs.model import load_base

for revision in (None, "main"):
    base = Pretrained("base_model", "acme/higgs", revision)
    tokens = ChatRenderer(base).tokens
    model = load_base(base, torch.float32)
    assert model.config.audio_token_id == tokens.audio
    codec, info = load_codec(Pretrained("codec", "acme/codec", revision), torch.device("cpu"))
    print(weight_fingerprint(base), info.fingerprint)
"""

PIN = """
import sys
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.pretrained import PinnedModel

pinned = PinnedModel.of(Pretrained("codec", "acme/codec", None))
refs, moved = sys.argv[1:]
with open(refs, "w") as stream:
    stream.write(moved)
pinned.check_unchanged()
print(pinned.revision, pinned.pretrained.revision)
print(PinnedModel.of(Pretrained("codec", "acme/codec", None)).revision)
"""

MERGED = """
import torch
from pathlib import Path
from transformers import AutoProcessor
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.v2.forms import write_merged_files

base, codec = Pretrained("base_model", "acme/higgs"), Pretrained("codec", "acme/codec")
folder = Path("merged")
folder.mkdir()
write_merged_files(folder, base, codec, torch.bfloat16)
print(AutoProcessor.from_pretrained(folder.rename("moved")).audio_tokenizer.name_or_path)
"""


def cached(home: Path, name: str, source: Path) -> None:
    """Lay a checkpoint into the cache as ``huggingface_hub`` does after a download."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(
        source, repo / "snapshots" / COMMIT, ignore=lambda *_: [miniature.AUDIO_TOKENIZER]
    )
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)


def offline(home: Path, program: str, *words: str) -> list[str]:
    """Run a program that can reach only the Hub cache; return what it prints."""
    return run_program(home, program, *words, settings={"HF_HUB_OFFLINE": "1"})


def run_program(home: Path, program: str, *words: str, settings: dict[str, str]) -> list[str]:
    """Run a program with a cache of the Hub; returns what it prints."""
    settings = {"HF_HOME": str(home), "PYTHONPATH": python_path(), **settings}
    finished = subprocess.run(
        [sys.executable, "-c", program, *words],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | settings,
        cwd=home,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


@pytest.mark.slow
def test_a_pinned_hub_id_stays_at_its_commit_when_the_branch_moves(
    tiny_base: Path, tmp_path: Path
) -> None:
    cached(tmp_path, "acme/codec", tiny_base / miniature.AUDIO_TOKENIZER)
    repo = tmp_path / "hub/models--acme--codec"
    shutil.copytree(repo / "snapshots" / COMMIT, repo / "snapshots" / MOVED)
    (repo / "snapshots" / MOVED / "model.safetensors").write_bytes(b"others")
    printed = offline(tmp_path, PIN, str(repo / "refs/main"), MOVED)
    assert printed == [f"{COMMIT} {COMMIT}", MOVED]


@pytest.mark.slow
def test_a_hub_id_loads_the_same_as_its_local_directory(tiny_base: Path, tmp_path: Path) -> None:
    codec_dir = tiny_base / miniature.AUDIO_TOKENIZER
    cached(tmp_path, "acme/higgs", tiny_base)
    cached(tmp_path, "acme/codec", codec_dir)
    base, codec = (
        weight_fingerprint(Pretrained("base_model", str(directory)))
        for directory in (tiny_base, codec_dir)
    )
    expected = f"{base} {codec}"
    assert offline(tmp_path, LOAD) == [expected, expected]


UNREACHABLE = """
import time
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.v2.renderer import ChatRenderer

begun = time.monotonic()
ChatRenderer(Pretrained("base_model", "acme/higgs"))
print(time.monotonic() - begun)
"""


@pytest.mark.slow
def test_cached_models_load_quickly_without_a_network(tiny_base: Path, tmp_path: Path) -> None:
    """Transformers alone asks the Hub five times for each file: two minutes for a tokenizer."""
    cached(tmp_path, "acme/higgs", tiny_base)
    nobody = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    (seconds,) = run_program(tmp_path, UNREACHABLE, settings=nobody)
    assert float(seconds) < 20


@pytest.mark.slow
def test_a_merged_checkpoint_refers_to_its_codec_on_the_hub(
    tiny_base: Path, tmp_path: Path
) -> None:
    cached(tmp_path, "acme/higgs", tiny_base)
    cached(tmp_path, "acme/codec", tiny_base / miniature.AUDIO_TOKENIZER)
    assert offline(tmp_path, MERGED) == ["acme/codec"]
