"""Every benchmark, small, as one table of ratios beside their goals: ``make bench``.

    PYTHONPATH=. python bench/all.py --output bench/results.json --page docs/proof.md \
        --performance docs/performance.md

Each benchmark runs in a process of its own with one thread, in rounds that take the variants in
turn; a ratio is the median over the rounds, its noise half of their range. Ends with 1 if a ratio
misses its goal by more than its noise. Rows of a GPU are added where there is one. ``--only NAME``
runs one benchmark. ``--performance`` names the page that shows the ratios of training.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from pages import processor_name, put_table
from rows import Row, in_turn, ratios

NUM_ROUNDS = 3
PACKAGES = ("torch", "transformers", "peft", "pyarrow", "soundfile", "snakemake")


def training_rows() -> list[Row]:
    """A training step over the native model's and over the body alone."""
    from train_step import build_round

    options = Namespace(num_clips=8, row_length=2048, dropout=0.0)
    found = []
    for shape, goal in (("a", 2.0), ("b", 6.0)):
        variants = ["ours", "native", *(["body"] if shape == "a" else [])]
        steps = {v: build_round(v, shape, options) for v in variants}
        seconds = in_turn(steps, NUM_ROUNDS)
        speed = ratios(seconds["native"], seconds["ours"])
        found.append(Row(f"training, body ({shape}): speed over the native model", speed, goal))
        if shape == "a":
            share = ratios(seconds["ours"], seconds["body"])
            found.append(Row("training, body (a): time over the body alone", share, 1.2, False))
    return found


def family_rows() -> list[Row]:
    """A step of Higgs TTS 3 over that of v2, and over a plain trainer's."""
    from families import rounds_of

    seconds, _ = rounds_of(num_clips=8, row_length=1024, num_rounds=NUM_ROUNDS)
    return [
        Row("Higgs TTS 3: speed over v2", ratios(seconds["v2, ours"], seconds["v3, ours"]), 0.8),
        Row(
            "Higgs TTS 3: speed over a padding trainer",
            ratios(seconds["v3, padded"], seconds["v3, ours"]),
            1.5,
        ),
    ]


def measuring_rows() -> list[Row]:
    """Measuring recordings over a loop that only decodes them."""
    from validate import FORMATS, Stage, decode_only, write_corpus

    found = []
    with tempfile.TemporaryDirectory() as name:
        for ending, goal in FORMATS.items():
            paths = write_corpus(Path(name), ending, 40)
            stage = Stage(Path(name), ending, paths)
            variants: dict[str, Callable[[], object]] = {
                "ours": stage.run,
                "loop": partial(decode_only, paths),
            }
            seconds = in_turn(variants, NUM_ROUNDS)
            speed = ratios(seconds["loop"], seconds["ours"])
            found.append(Row(f"measuring {ending}: speed over decoding alone", speed, goal))
    return found


def tokenizing_rows() -> list[Row]:
    """Encoding over the processor's own path, and over the bare codec."""
    from tokenize_audio import VARIANTS, build_codec, variant_on_cpu, write_clips

    with tempfile.TemporaryDirectory() as name:
        lengths = {"min_clip_seconds": 2.0, "max_clip_seconds": 4.0}
        clips = write_clips(Path(name), Namespace(num_clips=2, **lengths))
        build_codec(Path(name))
        seconds = in_turn({v: variant_on_cpu(v, name, clips) for v in VARIANTS}, NUM_ROUNDS)
    return [
        Row(
            "encoding: speed over the processor",
            ratios(seconds["processor"], seconds["stage"]),
            1.0,
        ),
        Row(
            "encoding: time over the bare codec",
            ratios(seconds["stage"], seconds["codec"]),
            1.1,
            at_least=False,
        ),
    ]


def packing_rows() -> list[Row]:
    """Packing over the native processor, its growth, and how full its rows are."""
    from pack import measured, native, ratio

    from higgs_pipe.higgs.v2 import miniature

    speech = {"min_seconds": 1.0, "max_seconds": 20.0}
    with tempfile.TemporaryDirectory() as name:
        base = f"{name}/tiny-higgs"
        miniature.build(Path(base), hidden_size=64)
        speed, growth, fill = [], [], []
        for _ in range(NUM_ROUNDS):
            processor = native(base, 400, **speech, free_codec=True)
            stage = measured("pack", base, 20_000, **speech)
            small, large = (
                measured("pack", base, size, min_seconds=1.0, max_seconds=3.0)
                for size in (2_000, 20_000)
            )
            speed.append(ratio(stage, processor)["cpu_seconds"])
            growth.append(1 / ratio(large, small)["cpu_seconds"])
            fill.append(stage["fill"])
    return [
        Row("packing: speed over the native processor", speed, 8.0),
        Row("packing: time per sample at ten times the samples", growth, 1.2, at_least=False),
        Row("packing: share of the rows that is filled", fill, 0.97),
    ]


def planning_rows() -> list[Row]:
    """Planning of the workflow: what a shard costs among twice as many; Snakemake's start apart."""
    from snakemake_latency import dry_run_seconds, make_checkout

    def cpu_seconds(num_shards: int) -> float:
        with tempfile.TemporaryDirectory() as name:
            command = make_checkout(Path(name), num_shards)
            before = children_seconds()
            dry_run_seconds(command, Path(name))
            return children_seconds() - before

    def per_shard(start: float, num_shards: int) -> float:
        return (cpu_seconds(num_shards) - start) / num_shards

    rounds = [
        (per_shard(start, 2_000), per_shard(start, 1_000))
        for start in (cpu_seconds(1) for _ in range(NUM_ROUNDS))
    ]
    growth = [many / few for many, few in rounds]
    return [Row("planning: time per shard, 2,000 over 1,000", growth, 1.3, at_least=False)]


def gpu_rows() -> list[Row]:
    """A micro-step of the 3B model's shape on a GPU; none without one."""
    import torch

    if not torch.cuda.is_available():
        return []
    from train_step import GPU_VARIANTS, LAYERS_3B, WIDTH_3B, measure_variants, model_config

    config = model_config(WIDTH_3B, LAYERS_3B, 128_256, head_dim=128, num_key_heads=8)
    names = ("native, batches of 8 clips padded, our labels", "ours, as shipped", "body alone")
    variants = [variant for variant in GPU_VARIANTS if variant.name in names]
    options = Namespace(num_clips=128, repetitions=5)
    rounds = [
        {
            line["variant"]: line["positions_per_second"]
            for line in measure_variants(options, config, torch.device("cuda"), variants)
        }
        for _ in range(2)
    ]
    native, ours, body = ([each[name] for each in rounds] for name in names)
    return [
        Row("GPU, 3B: speed over the native model", ratios(ours, native), 4.0),
        Row("GPU, 3B: time over the body alone", ratios(body, ours), 1.2, at_least=False),
    ]


BENCHES: dict[str, Callable[[], list[Row]]] = {
    "training": training_rows,
    "families": family_rows,
    "measuring": measuring_rows,
    "tokenizing": tokenizing_rows,
    "packing": packing_rows,
    "planning": planning_rows,
    "gpu": gpu_rows,
}

# Shown by docs/performance.md too.
OF_TRAINING = ("training", "families", "gpu")


def rows_apart(name: str) -> tuple[list[Row], float]:
    """Run one benchmark in a process of its own; return its rows and its processor minutes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--rows-of", name]
    before = children_seconds()
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    rows = [Row(**row) for row in json.loads(finished.stdout.splitlines()[-1])]
    return rows, (children_seconds() - before) / 60


def children_seconds() -> float:
    """Return the processor time of the processes that this one started and that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table_of(found: Sequence[Row]) -> list[str]:
    """Return the rows as lines of Markdown."""
    lines = ["| ratio | median | noise | goal | |", "|---|---|---|---|---|"]
    for row in found:
        goal = f"{'at least' if row.at_least else 'at most'} {row.goal:g}"
        judged = "**missed**" if row.is_missed else "reached"
        lines.append(f"| {row.name} | {row.value:.2f} | {row.noise:.2f} | {goal} | {judged} |")
    return lines


def machine() -> dict[str, Any]:
    """Describe machine and software."""
    return {
        "date": str(date.today()),
        "processor": processor_name(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def main() -> int:
    """Run, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    parser.add_argument("--performance", type=Path, help="page that shows those of training")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--rows-of", choices=BENCHES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows_of:
        print(json.dumps([asdict(row) for row in BENCHES[options.rows_of]()]))
        return 0
    started = time.perf_counter()
    by_bench: dict[str, list[Row]] = {}
    cpu_minutes: dict[str, float] = {}
    for name in options.only:
        by_bench[name], cpu_minutes[name] = rows_apart(name)
        print("\n".join(table_of(by_bench[name])[2:]), flush=True)
    found = [row for rows in by_bench.values() for row in rows]
    about = machine()
    minutes = (time.perf_counter() - started) / 60
    place = (
        f"{about['date']}, {about['processor']}, {about['num_cores']} cores, PyTorch "
        f"{about['packages']['torch']}"
    )
    sentence = (
        f"{place}: {len(found)} ratios in {minutes:.0f} minutes, "
        f"{sum(cpu_minutes.values()):.0f} of them of one processor."
    )
    print(sentence)
    if options.output:
        rows_as_json = [
            {**asdict(row), "value": row.value, "noise": row.noise, "is_missed": row.is_missed}
            for row in found
        ]
        spent = {name: round(spent, 2) for name, spent in cpu_minutes.items()}
        content = {**about, "minutes": minutes, "cpu_minutes": spent, "rows": rows_as_json}
        options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.page:
        put_table(options.page, "bench", [sentence, "", *table_of(found)])
    if options.performance:
        shown = [row for name in OF_TRAINING for row in by_bench.get(name, [])]
        put_table(options.performance, "ratios", [f"{place}.", "", *table_of(shown)])
    return int(any(row.is_missed for row in found))


if __name__ == "__main__":
    sys.exit(main())
