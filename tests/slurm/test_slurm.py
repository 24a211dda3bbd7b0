"""The workflow on a real Slurm of two nodes, which this file starts on one machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, PackedCorpus, jobs_run, launch, marked_environment
from safetensors.torch import load_file

CLUSTER = Path(__file__).with_name("cluster.sh")
IS_POSSIBLE = os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged")))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_POSSIBLE, reason="needs root, Slurm and MUNGE"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two nodes with a fake GPU each; the environment in which Slurm's commands find them."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "up", folder], check=True)
    yield marked_environment(SLURM_CONF=str(folder / "etc/slurm.conf"))
    subprocess.run([CLUSTER, "down", folder], check=True)


SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
# With the profile, but asking Slurm more often than by default.
ON_SLURM = [
    *("--workflow-profile", str(ROOT / "profiles/slurm")),
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2"),
]


def start(folder: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SNAKEMAKE, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def jobs_of(environment: dict[str, str]) -> list[dict[str, str]]:
    """What Slurm knows of every job: its number, rule, nodes and GPUs."""
    text = subprocess.run(
        ["scontrol", "show", "job", "--oneliner"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in text.splitlines()
        if line.startswith("JobId=")
    ]


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a process has made a file; at most 10 minutes."""
    deadline = time.monotonic() + 600
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{folder / pattern} is not there"
        time.sleep(0.05)


SETTINGS = {
    "num_processes": 2,
    "num_machines": 2,
    "num_epochs": 60,
    "rows_per_step": 2,
    "save_steps": 20,
    "eval_steps": 1000,
    "learning_rate": 0.001,
    "sample_steps": None,
    "tracker": "none",
}


def test_a_training_killed_on_two_machines_ends_as_one_left_alone(
    slurm: dict[str, str], corpus: PackedCorpus, tmp_path: Path
) -> None:
    settings = {
        "manifest": str(corpus.directory / "manifest.jsonl"),
        "base_model": str(corpus.base),
        "codec": str(corpus.base / "audio_tokenizer"),
        "data": {"num_shards": 2},
        "pack": {"max_tokens": 512},
        "train": SETTINGS,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    clips = start(tmp_path, slurm, "--cores", "2", "results/data/validation.json")
    output = clips.communicate(timeout=300)[0]
    assert clips.returncode == 0, output
    running = start(tmp_path, slurm, "train", *ON_SLURM)
    folder = tmp_path / "results/experiments/default/train"
    wait_for(folder, "checkpoints/step-*", running)
    [killed] = [job for job in jobs_of(slurm) if "train_adapter" in job["Comment"]]
    subprocess.run(["scancel", killed["JobId"]], env=slurm, check=True)
    output = running.communicate(timeout=600)[0]
    assert running.returncode == 0, output
    assert "resuming after step" in (tmp_path / "logs/experiments/default/train.log").read_text()

    jobs = jobs_of(slurm)
    tokenized = [job for job in jobs if "tokenize_shard" in job["Comment"]]
    assert [job["TresPerJob"] for job in tokenized] == ["gres:gpu:1"] * 2
    assert {job["NodeList"] for job in tokenized} == {"n1", "n2"}
    trained = [job for job in jobs if "train_adapter" in job["Comment"]]
    assert [job["NodeList"] for job in trained] == ["n[1-2]"] * 2
    assert [job["TresPerNode"] for job in trained] == ["gres:gpu:1"] * 2
    assert jobs_run(output).count("train_adapter default") == 2
    first = tmp_path / ".snakemake/slurm_logs/rule_train_adapter/default" / f"{killed['JobId']}.log"
    assert "Traceback" not in first.read_text()

    alone = tmp_path / "alone"
    finished = launch(
        2,
        *("-m", "higgs_pipe.train", "--config", str(tmp_path / "results/config/train.json")),
        *("--overrides", "{}", "--output-dir", str(alone)),
        *("--train-rows", str(tmp_path / "results/packed/train.parquet")),
        *("--eval-rows", str(tmp_path / "results/packed/eval.parquet")),
        *("--adapter-dir", str(alone / "adapter"), "--compile-cache", str(alone / "compiled")),
        *("--log", str(alone / "train.log")),
    )
    assert finished.returncode == 0, finished.stderr
    expected = load_file(alone / "adapter/adapter_model.safetensors")
    found = load_file(folder / "adapter/adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert max(float((found[k] - expected[k]).abs().max()) for k in expected) < 1e-6
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == sorted(set(steps))
