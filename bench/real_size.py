"""The whole workflow with models of the published sizes and random weights, on one GPU.

    PYTHONPATH=. python bench/real_size.py results/real-size

It builds a base of the 3B model's shape and a codec of the real one's size, both in the published
format, then runs ``snakemake`` on the demo's recordings, as a user would: twelve steps of training,
and every form of the adapter. For each job it prints the time, the peak of memory and, on a machine
with a GPU, the peak of the GPU's memory. ``--tiny`` runs the same on a CPU with the miniature.
"""

import argparse
import csv
import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import tokenize_audio
import torch
from on_a_gpu import config_3b
from pages import put_table
from train_step import machine_name
from transformers import AutoConfig, GenerationConfig, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.higgs.v2 import miniature

ROOT = Path(__file__).parents[1]
# Names of what the published 3B model's config has otherwise than the miniature's.
SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "initializer_range"),
)
# Few steps and short speech: each job does all that it would do, but less often.
SETTINGS: dict[str, Any] = {
    "data": {"num_shards": 1, "eval_fraction": 0.15},
    "train": {
        "max_steps": 12,
        "rows_per_step": 2,
        "eval_steps": 6,
        "save_steps": 6,
        "sample_steps": 12,
        "num_samples": 1,
        "sampling": {"max_seconds": 4.0},
    },
    "eval": {"num_prompts": 4, "max_seconds": 4.0},
    # After so few steps the changes are small, and rounding them to bfloat16 would show.
    "package": {"forms": ["peft", "merged", "original"], "num_samples": 1, "dtype": "float32"},
}
POLL_SECONDS = 0.5


class Job(NamedTuple):
    """What a job of the workflow took.

    Attributes:
        name: Its benchmark file without ending: ``experiments/default/train``.
        seconds: From its start to its end.
        peak_mb: Peak resident memory of its processes, as Snakemake measures it.
        gpu_peak_mb: Peak memory in use on the GPU in that time; None without one.
    """

    name: str
    seconds: float
    peak_mb: float
    gpu_peak_mb: float | None


class Reading(NamedTuple):
    """The memory in use on the GPU at a time."""

    at: float  # seconds since 1970
    used_mb: float


def build_base(folder: Path, is_tiny: bool) -> None:
    """Build a base with its codec, random and in the published format."""
    if is_tiny:
        miniature.build(folder)
        return
    miniature.build(folder, hidden_size=64, num_layers=1, full_vocab=True)
    config = AutoConfig.from_pretrained(folder)
    published = config_3b()
    config.update({name: getattr(published, name) for name in SHAPE})
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenize_audio.build_codec(folder / miniature.AUDIO_TOKENIZER)


def run_workflow(folder: Path, base: Path) -> int:
    """Run ``snakemake`` in a folder and return its exit code."""
    models = {"base_model": str(base), "codec": str(base / miniature.AUDIO_TOKENIZER)}
    manifest = str(ROOT / "examples/demo/manifest.jsonl")
    settings = folder / "settings.json"
    settings.write_text(json.dumps({"manifest": manifest, **models, **SETTINGS}), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--directory", str(folder)]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(settings)]
    return subprocess.run(command, check=False).returncode


def gpu_used_mb() -> float | None:
    """Return the memory in use on the first GPU, of all processes; None without a GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return None
    asked = subprocess.run(command, check=False, capture_output=True, text=True)
    return float(asked.stdout.splitlines()[0]) if asked.returncode == 0 else None


@contextmanager
def watched_gpu() -> Iterator[list[Reading]]:
    """Collect readings of the GPU's memory while the body runs."""
    readings: list[Reading] = []
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(POLL_SECONDS):
            used_mb = gpu_used_mb()
            if used_mb is not None:
                readings.append(Reading(time.time(), used_mb))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield readings
    finally:
        has_ended.set()
        thread.join()


def jobs_of(benchmarks: Path, readings: Sequence[Reading]) -> list[Job]:
    """Return the finished jobs in the order in which they ended, from Snakemake's benchmarks."""
    jobs = []
    for path in sorted(benchmarks.rglob("*.tsv"), key=lambda path: path.stat().st_mtime):
        (row,) = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
        seconds, ended = float(row["s"]), path.stat().st_mtime
        used = [reading.used_mb for reading in readings if 0 <= ended - reading.at <= seconds]
        peak_mb = 0.0 if row["max_rss"] in ("-", "NA") else float(row["max_rss"])
        name = str(path.relative_to(benchmarks).with_suffix(""))
        jobs.append(Job(name, seconds, peak_mb, max(used, default=None)))
    return jobs


def table(jobs: Sequence[Job], machine: str) -> list[str]:
    """Return the jobs as lines of Markdown."""
    lines = [machine, "", "| job | seconds | memory | GPU memory |", "|---|---|---|---|"]
    for job in jobs:
        gpu = "" if job.gpu_peak_mb is None else f"{job.gpu_peak_mb / 1e3:.1f} GB"
        lines.append(f"| {job.name} | {job.seconds:.0f} | {job.peak_mb / 1e3:.1f} GB | {gpu} |")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the models and results; it is replaced")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with the miniature")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    base = options.folder / "base"
    # In a process of its own, which gives the GPU's memory back.
    builder = multiprocessing.get_context("spawn").Process(
        target=build_base, args=(base, options.tiny)
    )
    builder.start()
    builder.join()
    if builder.exitcode != 0:
        sys.exit(builder.exitcode)
    with watched_gpu() as readings:
        exit_code = run_workflow(options.folder, base)
    jobs = jobs_of(options.folder / "benchmarks", readings)
    lines = table(jobs, machine_name("cpu" if options.tiny else "cuda"))
    print("\n".join(lines))
    if exit_code == 0 and options.docs:
        put_table(options.docs, "real size table", lines)
    sys.exit(exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
