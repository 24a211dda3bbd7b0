"""How long Snakemake takes to plan, and to start the first jobs, by the number of shards.

    python bench/snakemake_latency.py --output results/bench/snakemake_latency.json

The rules are those of the workflow; each stage is replaced by a few lines that write empty files.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
STAGES = (
    "list_rows",
    "measure",
    "validate",
    "estimate",
    "clips_page",
    "pin_model",
    "tokenize_audio",
    "pack",
    "train",
    "evaluate",
    "accept",
    "package",
    "report",
    "higgs/v2/miniature",
)
# Makes the files that its options name; list_rows and validate fill a folder with shards.
STUB = """
import sys
from pathlib import Path
words = sys.argv[1:]
options = {word[2:]: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
folders = [options[name] for name in ("recordings-dir", "shards-dir") if name in options]
paths = [options[name] for name in ("rows", "measured", "clips", "rejected", "validation",
                                    "estimate", "page", "pinned", "codes") if name in options]
paths += [f"{options['output-dir']}/config.json"] if "output-dir" in options else []
paths += [f"{folder}/shard-{i:05d}.parquet" for folder in folders for i in range(NUM_SHARDS)]
for path in map(Path, paths):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
"""
JOB = re.compile(r"^[\d:]{8}  \[\d+/\d+\] (\w+)")


def make_checkout(folder: Path, num_shards: int) -> list[str]:
    """The workflow with stages that do nothing, and the command that runs it."""
    for name in ("Snakefile", "workflow", "profiles", "envs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "examples/demo").mkdir(parents=True)
    shutil.copy(ROOT / "examples/demo/settings.yaml", folder / "examples/demo")
    package = folder / "higgs_pipe"
    (package / "higgs/v2").mkdir(parents=True)
    for name in ("__init__", "errors"):
        shutil.copy(ROOT / "higgs_pipe" / f"{name}.py", package)
    shutil.copytree(ROOT / "higgs_pipe" / "planning", package / "planning")
    for name in STAGES:
        (package / f"{name}.py").write_text(f"NUM_SHARDS = {num_shards}\n{STUB}")
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config["manifest"] = "m.jsonl"
    config["data"]["num_shards"] = num_shards
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "m.jsonl").write_text('{"audio": "a.wav", "text": "A."}\n', encoding="utf-8")
    return [sys.executable, "-m", "snakemake", "--cores", "2"]


def dry_run_seconds(command: list[str], folder: Path) -> float:
    """How long planning everything takes."""
    start = time.perf_counter()
    subprocess.run([*command, "-n", "-q"], cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - start


def start_seconds(command: list[str], folder: Path, rules: tuple[str, ...]) -> dict[str, float]:
    """How long after the start the first job of each rule starts; the run is ended then."""
    start = time.perf_counter()
    found: dict[str, float] = {}
    with subprocess.Popen(
        [*command, "tokenize"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stderr is not None  # noqa: S101
        for line in run.stderr:
            if job := JOB.match(line):
                found.setdefault("first job", time.perf_counter() - start)
                found.setdefault(job[1], time.perf_counter() - start)
                if set(rules) <= set(found):
                    break
        os.killpg(run.pid, signal.SIGKILL)
    return found


def measure(num_shards: int) -> dict[str, Any]:
    """The figures for one number of shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = make_checkout(folder, num_shards)
        dry_run = dry_run_seconds(command, folder)
        started = start_seconds(command, folder, ("list_rows", "measure_shard"))
    return {
        "num_shards": num_shards,
        "dry_run_seconds": dry_run,
        "first_job_seconds": started["first job"],
        # From the start of the job that lists the rows to that of the first of the shards.
        "first_shard_after_listing_seconds": started["measure_shard"] - started["list_rows"],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num-shards", type=int, nargs="+", default=[10, 1_000, 2_000])
    parser.add_argument("--output", type=Path, default=Path("results/bench/snakemake_latency.json"))
    arguments = parser.parse_args()
    rows = []
    print(f"{'shards':>8}{'dry run':>12}{'first job':>12}{'first shard after listing':>28}")
    for num_shards in arguments.num_shards:
        row = measure(num_shards)
        rows.append(row)
        print(
            f"{num_shards:>8,}{row['dry_run_seconds']:>10.1f} s{row['first_job_seconds']:>10.1f} s"
            f"{row['first_shard_after_listing_seconds']:>26.1f} s",
            flush=True,
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
