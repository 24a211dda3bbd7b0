"""What corpora of 100 to 1,000,000 hours would take: jobs, files, time, bytes and money.

    python bench/scale.py docs/scaling.md

A simulation: the costs of ``unit_costs.toml`` times the size of the corpus. Nothing of it was run.
Without the path the tables are printed.
"""

import math
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pages import put_table

UNIT_COSTS = Path(__file__).with_name("unit_costs.toml")
HOURS = (100, 1_000, 10_000, 100_000, 1_000_000)
MIN_SHARDS, MAX_SHARDS = 8, 2_000
# Cores and GPUs of the assumed machines, by the hours of speech from which on they are used.
MACHINES = {0: (16, 1), 10_000: (128, 8), 1_000_000: (1_024, 64)}
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Prediction:
    """What a corpus would take."""

    hours: float
    num_shards: int
    num_jobs: int
    num_files: int
    snakemake_seconds: float
    core_hours: float
    gpu_hours: float
    elapsed_hours: float  # on MACHINES
    judging_bytes: float  # of memory
    recorded_bytes: float
    written_bytes: float
    dollars: float


def unit_costs() -> dict[str, float]:
    """Read the costs by their names."""
    table = tomllib.loads(UNIT_COSTS.read_text(encoding="utf-8"))
    return {name: float(cost["value"]) for name, cost in table.items()}


def predict(hours: float, costs: dict[str, float]) -> Prediction:
    """Predict what a corpus of so many hours of speech takes, with one experiment."""
    seconds = hours * SECONDS_PER_HOUR
    num_rows = seconds / costs["clip_seconds"]
    wanted = math.ceil(hours / costs["hours_per_shard"])
    num_shards = min(max(wanted, MIN_SHARDS), MAX_SHARDS)
    num_jobs = round(costs["jobs_apart"]) + 2 * num_shards
    plan = (
        costs["planning_start"]
        + costs["planning"] * num_shards
        + costs["planning_pairs"] * num_shards**2
    )
    snakemake_seconds = costs["plans"] * plan + costs["scheduling"] * num_jobs

    # Jobs of which one runs at a time, jobs that all cores share, and those of the GPUs.
    alone = num_rows * (costs["listing"] + costs["judging"] + costs["packing"])
    shared = seconds * costs["measuring"] + num_jobs * costs["starting"]
    num_positions = seconds * costs["positions"] * costs["epochs"]
    on_gpus = seconds * costs["encoding"] + num_positions * costs["training"]
    num_cores, num_gpus = MACHINES[max(least for least in MACHINES if least <= hours)]
    elapsed = snakemake_seconds + alone + shared / num_cores + on_gpus / num_gpus
    core_hours = (snakemake_seconds + alone + shared) / SECONDS_PER_HOUR
    gpu_hours = on_gpus / SECONDS_PER_HOUR
    return Prediction(
        hours=hours,
        num_shards=num_shards,
        num_jobs=num_jobs,
        num_files=round(costs["files_apart"] + costs["files_per_shard"] * num_shards),
        snakemake_seconds=snakemake_seconds,
        core_hours=core_hours,
        gpu_hours=gpu_hours,
        elapsed_hours=elapsed / SECONDS_PER_HOUR,
        judging_bytes=num_rows * costs["judging_memory"],
        recorded_bytes=seconds * costs["recording_bytes"],
        written_bytes=seconds * (costs["codes_bytes"] + costs["packed_bytes"])
        + num_rows * costs["row_bytes"]
        + costs["run_bytes"],
        dollars=core_hours * costs["core_price"] + gpu_hours * costs["gpu_price"],
    )


def prediction_table(costs: dict[str, float]) -> list[str]:
    """Return a line of Markdown per number of hours."""
    lines = [
        "| speech | shards | jobs | files | Snakemake | core hours | GPU hours "
        "| elapsed, cores + GPUs | judging | recordings | written | cost |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for hours in HOURS:
        found = predict(hours, costs)
        num_cores, num_gpus = MACHINES[max(least for least in MACHINES if least <= hours)]
        cells = [
            f"{hours:,} h",
            f"{found.num_shards:,}",
            f"{found.num_jobs:,}",
            f"{found.num_files:,}",
            f"{found.snakemake_seconds / 60:.1f} min",
            f"{found.core_hours:,.1f}",
            f"{found.gpu_hours:,.1f}",
            f"{found.elapsed_hours:,.1f} h, {num_cores:,} + {num_gpus}",
            f"{found.judging_bytes / 1e9:,.1f} GB of memory",
            f"{found.recorded_bytes / 1e9:,.0f} GB",
            f"{found.written_bytes / 1e9:,.1f} GB",
            f"${found.dollars:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def assumption_table() -> list[str]:
    """Return a line of Markdown per cost, with where it is from."""
    table = tomllib.loads(UNIT_COSTS.read_text(encoding="utf-8"))
    lines = ["| cost | value | unit | from |", "|---|---:|---|---|"]
    for name, cost in table.items():
        lines.append(f"| {name} | {cost['value']:.10g} | {cost['unit']} | {cost['source']} |")
    return lines


def main() -> None:
    """Print both tables, or write them into a page."""
    lines = [*prediction_table(unit_costs()), "", "What it multiplies:", "", *assumption_table()]
    if len(sys.argv) > 1:
        put_table(Path(sys.argv[1]), "scale", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
