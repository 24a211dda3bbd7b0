"""A run with ``--use-conda`` from an environment with only Snakemake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from trainings import PackedCorpus

from workflow import conda_stand_in

pytestmark = pytest.mark.slow

QUICK = {
    "train": {"num_epochs": 1, "sample_steps": None, "tracker": "none", "device": "cpu"},
    "eval": {"num_prompts": 2, "max_seconds": 1.0},
    "pack": {"max_tokens": 512},
    "data": {"num_shards": 1},
}


@pytest.fixture(scope="module")
def snakemake_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the locked Snakemake and what it depends on."""
    folder = tmp_path_factory.mktemp("snakemake") / "venv"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    locked = (ROOT / "requirements.in").read_text().splitlines()
    [snakemake] = [line for line in locked if line.startswith("snakemake==")]
    python = f"{folder}/bin/python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, snakemake], check=True)
    return folder / "bin"


def test_use_conda_without_conda_fails_before_any_job(
    snakemake_alone: Path, tmp_path: Path
) -> None:
    ended = subprocess.run(
        ["snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", "--use-conda"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{snakemake_alone}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "Is conda installed and accessible?" in ended.stderr
    assert not (tmp_path / "results").exists()


def test_a_package_is_built_from_an_environment_with_only_snakemake(
    snakemake_alone: Path, corpus: PackedCorpus, tmp_path: Path
) -> None:
    settings = {
        "manifest": str(corpus.directory / "manifest.jsonl"),
        "base_model": str(corpus.base),
        "codec": str(corpus.base / "audio_tokenizer"),
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | QUICK))
    conda = conda_stand_in.write(tmp_path / "conda")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PATH"] = f"{snakemake_alone}:{conda}:/usr/bin:/bin"
    imports = [f"{snakemake_alone}/python", "-c", "import torch"]
    assert subprocess.run(imports, check=False, capture_output=True).returncode != 0
    finished = subprocess.run(
        ["snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", "--use-conda"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert (folder / "results/adapters/default.zip").is_file()
    assert (folder / "results/report/index.html").is_file()
