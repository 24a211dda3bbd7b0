"""The workflow on a real Slurm of two nodes, which this file starts on one machine."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, environment_with, jobs_run
from leftovers import unmarked_environment
from safetensors.torch import load_file
from trainings import PackedCorpus
from workflow.forked_snakemake import run_snakemake
from workflow.forked_stages import forking_python
from workflow.stub_checkout import (
    make_stub_checkout,
    snakemake,
    snakemake_command,
    words_of_snakemake,
)

import higgs_pipe.train

CLUSTER = Path(__file__).with_name("cluster.sh")
IS_INSTALLED = all(map(shutil.which, ("slurmctld", "slurmd", "munged")))
OF_A_CLUSTER = Path("/etc/slurm/slurm.conf")  # unless it is a link, which an earlier test left
HAS_NONE = OF_A_CLUSTER.is_symlink() or not OF_A_CLUSTER.exists()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not IS_INSTALLED, reason="needs root, Slurm, MUNGE"),
    pytest.mark.skipif(not HAS_NONE, reason="this machine is part of a cluster"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two nodes with a fake GPU each; the environment in which Slurm's commands find them."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "up", folder], env=unmarked_environment(), check=True)
    environment = environment_with(SLURM_CONF=str(folder / "etc/slurm.conf"))
    yield environment
    subprocess.run(["scancel", "--user=root"], env=environment, check=True)
    subprocess.run([CLUSTER, "down", folder], check=True)


# With the profile, but asking Slurm more often than by default.
ON_SLURM = [
    "--workflow-profile",
    str(ROOT / "profiles/slurm"),
    "--slurm-init-seconds-before-status-checks",
    "1",
    "--seconds-between-status-checks",
    "1",
]


def start(
    folder: Path, environment: dict[str, str], *words: str, checkout: Path = ROOT
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        snakemake_command(checkout, *words),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def jobs_of(environment: dict[str, str], folder: Path) -> list[dict[str, str]]:
    """What Slurm knows of the jobs of a folder: number, rule, nodes and GPUs."""
    text = subprocess.run(
        ["scontrol", "show", "job", "--oneliner"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = text.replace(f"WorkDir={folder} ", "WorkDir=this ").splitlines()
    jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return [job for job in jobs if job.get("WorkDir") == "this"]


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a process has made a file; at most 10 minutes."""
    deadline = time.monotonic() + 600
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{folder / pattern} is not there"
        time.sleep(0.05)


# Lasts until Slurm asks it to end, and then takes a while to save; goes on from what it saved.
TRAINING = """
import signal, sys, time
from pathlib import Path
words = sys.argv[1:]
options = {w[2:]: words[i + 1] for i, w in enumerate(words) if w.startswith("--")}
folder = Path(options["output-dir"])
folder.mkdir(parents=True, exist_ok=True)
if not (folder / "checkpoint").exists():
    caught = []
    signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    (folder / "running").write_text("")
    while not caught:
        time.sleep(0.05)
    time.sleep(3)
    (folder / "checkpoint").write_text("saved")
    sys.exit(128 + caught[0])
for name in ("metrics.jsonl", "preflight.json", "config.json", "run.json",
             "trainable_parameters.json"):
    (folder / name).write_text("resumed")
for name in ("adapter_model.safetensors", "adapter_config.json", "base_model.json"):
    (Path(options["adapter-dir"]) / name).write_text("resumed")
"""
TRAINED = Path("results/experiments/default/train")
ON_ONE_CPU = ["--set-threads", "train_adapter=1", "--config", "train={device: cpu}"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of stubs with all results up to packing; its training waits for a signal."""
    folder = tmp_path_factory.mktemp("packed") / "check out"
    checkout = make_stub_checkout(folder, has_launcher=True)
    run = snakemake(checkout, "--cores", "2", "pack", checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    (checkout / "higgs_pipe/train.py").write_text(TRAINING)
    return checkout


SETTINGS = {
    "num_processes": 2,
    "num_machines": 2,
    "num_epochs": 40,
    "rows_per_step": 2,
    "save_steps": 10,
    "eval_steps": 1000,
    "learning_rate": 0.001,
    "sample_steps": None,
    "tracker": "none",
}


@pytest.fixture(scope="module")
def judged(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that trains on two machines, with its clips in two shards."""
    folder = tmp_path_factory.mktemp("judged")
    settings = {
        "manifest": str(corpus.directory / "manifest.jsonl"),
        "base_model": str(corpus.base),
        "codec": str(corpus.base / "audio_tokenizer"),
        "data": {"num_shards": 2},
        "pack": {"max_tokens": 512},
        "train": SETTINGS,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_with_forks(folder, "results/data/validation.json")
    return folder


def run_with_forks(folder: Path, *words: str) -> None:
    """Run part of the workflow on this machine."""
    words = (*words_of_snakemake(ROOT, "--cores", "2"), *words)
    run = run_snakemake([*words], folder, python=str(forking_python()))
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_shard_is_a_job_with_its_own_gpu(
    slurm: dict[str, str], judged: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(judged, tmp_path / "copy")
    path = f"{forking_python().parent}:{os.environ['PATH']}"  # nobody ends these jobs
    running = start(folder, slurm | {"PATH": path}, "tokenize", *ON_SLURM)
    output = running.communicate(timeout=400)[0]
    assert running.returncode == 0, output
    tokenized = [job for job in jobs_of(slurm, folder) if "tokenize_shard" in job["Comment"]]
    assert [job["TresPerJob"] for job in tokenized] == ["gres:gpu:1"] * 2
    assert {job["NodeList"] for job in tokenized} == {"n1", "n2"}


def test_training_killed_on_two_machines_matches_an_uninterrupted_one(
    slurm: dict[str, str], judged: Path, tmp_path: Path
) -> None:
    project = shutil.copytree(judged, tmp_path / "copy")
    run_with_forks(project, "pack")
    running = start(project, slurm, "train", *ON_SLURM)
    folder = project / "results/experiments/default/train"
    wait_for(folder, "checkpoints/step-*", running)
    [killed] = [job for job in jobs_of(slurm, project) if "train_adapter" in job["Comment"]]
    subprocess.run(["scancel", killed["JobId"]], env=slurm, check=True)
    alone = train_alone(project, tmp_path / "alone")
    output = running.communicate(timeout=600)[0]
    assert running.returncode == 0, output
    assert "resuming after step" in (project / "logs/experiments/default/train.log").read_text()

    trained = [job for job in jobs_of(slurm, project) if "train_adapter" in job["Comment"]]
    assert [job["NodeList"] for job in trained] == ["n[1-2]"] * 2
    assert [job["TresPerNode"] for job in trained] == ["gres:gpu:1"] * 2
    assert jobs_run(output).count("train_adapter default") == 2
    first = project / ".snakemake/slurm_logs/rule_train_adapter/default" / f"{killed['JobId']}.log"
    assert "Traceback" not in first.read_text()

    expected = load_file(alone / "adapter/adapter_model.safetensors")
    found = load_file(folder / "adapter/adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert max(float((found[k] - expected[k]).abs().max()) for k in expected) < 1e-6
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == sorted(set(steps))


def train_alone(project: Path, output: Path) -> Path:
    """Train on the rows of a project in this process, which does the work of both machines."""
    config = project / "results/config/train.json"
    packed = project / "results/packed"
    higgs_pipe.train.run(config, packed / "train.parquet", packed / "eval.parquet", output)
    return output


def assert_it_saved_and_went_on(folder: Path, process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    assert (folder / TRAINED / "checkpoint").read_text() == "saved"
    assert (folder / TRAINED / "adapter/adapter_config.json").read_text() == "resumed"
    return output


def test_a_preempted_training_saves_and_resumes(
    slurm: dict[str, str], packed: Path, tmp_path: Path
) -> None:
    """A job of the better partition needs its room; Slurm starts it again."""
    checkout = shutil.copytree(packed, tmp_path / "check out")
    spare = ["--set-resources", "train_adapter:slurm_partition=spare", "train_adapter:mem_mb=90000"]
    running = start(checkout, slurm, "train", *ON_SLURM, *spare, *ON_ONE_CPU, checkout=checkout)
    wait_for(checkout / TRAINED, "running", running)
    urgent = ["sbatch", "--nodes=2", "--mem=90000", "--output=/dev/null", "--wrap", "sleep 1"]
    subprocess.run(urgent, env=slurm, check=True)
    assert_it_saved_and_went_on(checkout, running)
    [job] = jobs_of(slurm, checkout)
    assert job["Restarts"] == "1"


def test_a_training_at_its_time_limit_saves_and_resumes(
    slurm: dict[str, str], packed: Path, tmp_path: Path
) -> None:
    """Of a minute, the shortest that Slurm has; the clock of the job is put forward."""
    checkout = shutil.copytree(packed, tmp_path / "check out")
    limit = ["--set-resources", "train_adapter:runtime=1"]
    running = start(checkout, slurm, "train", *ON_SLURM, *limit, *ON_ONE_CPU, checkout=checkout)
    wait_for(checkout / TRAINED, "running", running)
    [job] = jobs_of(slurm, checkout)
    assert job["TimeLimit"] == "00:01:00"
    at_once = ["scontrol", "update", f"JobId={job['JobId']}", "EndTime=now+2seconds"]
    subprocess.run(at_once, env=slurm, check=True)
    output = assert_it_saved_and_went_on(checkout, running)
    assert jobs_run(output).count("train_adapter default") == 2
    jobs = jobs_of(slurm, checkout)
    assert [job["JobState"] for job in jobs] == ["TIMEOUT", "COMPLETED"]


def test_an_unresponsive_scheduler_ends_the_run_before_any_job(
    packed: Path, tmp_path: Path
) -> None:
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\n"
        "NodeName=n1\nPartitionName=main Nodes=n1\nMessageTimeout=2\n"
    )
    environment = environment_with(SLURM_CONF=str(tmp_path / "slurm.conf"))
    copy = shutil.copytree(packed, tmp_path / "check out")
    ended = start(copy, environment, *ON_SLURM, "--forceall", checkout=copy)
    output = ended.communicate(timeout=400)[0]
    assert ended.returncode == 2, output
    assert "Slurm does not answer: " in output
    assert jobs_run(output) == []
