"""What grows: a long training, and many rows through list_rows, validate and pack.

    PYTHONPATH=. python bench/soak.py --page docs/proof.md

Training: a miniature takes ``--num-steps`` optimizer steps, with held-out losses and checkpoints on
the way; resident memory, open files and threads are read every second, and the last quarter is set
beside the second. Rows: a manifest of ``--num-rows`` segments is listed, judged and packed, each
stage in a process of its own, at a tenth of the rows and at all of them. Recordings are not
decoded: the measures of one stand for all, and codes are random.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf
from pack import peak_bytes, write_corpus
from pages import put_table

from higgs_pipe import list_rows, measure, validate
from higgs_pipe.data.specs import MEASURED, RECORDINGS
from higgs_pipe.data.tables import read_table, shard_path, write_table
from higgs_pipe.planning.model_types import V2

SEGMENT_SECONDS = 2.0
SEGMENTS_PER_FILE = 1000
NUM_SHARDS = 8


class Held(NamedTuple):
    """What a process holds at a moment."""

    memory_mb: float
    num_files: int
    num_threads: int

    @classmethod
    def now(cls) -> "Held":
        """Read it from /proc."""
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        memory = int(status.split("VmRSS:")[1].split()[0]) / 1e3
        threads = int(status.split("Threads:")[1].split()[0])
        return cls(memory, len(list(Path("/proc/self/fd").iterdir())), threads)


def watched(run: Callable[[], None]) -> tuple[list[Held], float]:
    """Run something; return what the process held each second, and how long it took."""
    held: list[Held] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            held.append(Held.now())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        run()
    finally:
        is_over.set()
        watcher.join()
    return held, time.perf_counter() - started


def medians(held: list[Held]) -> Held:
    """Return the median of each figure."""
    memory, files, threads = (statistics.median(figures) for figures in zip(*held, strict=True))
    return Held(memory, round(files), round(threads))


def train_long(folder: Path, num_steps: int) -> list[str]:
    """Train, and return lines of Markdown."""
    from higgs_pipe import pack, train  # which import PyTorch
    from higgs_pipe.higgs.v2 import miniature

    base = folder / "tiny-higgs"
    miniature.build(base)
    num_shards = write_corpus(folder, 200, 1.0, 3.0)
    settings = {"base_model": str(base)}
    config = written(folder / "pack.json", settings | {"pack": {"max_tokens": 512}})
    rows = folder / "train.parquet", folder / "eval.parquet"
    pack.run(config, folder / "clips.parquet", folder, num_shards, *rows, folder / "packing.json")
    steps = {"max_steps": num_steps, "rows_per_step": 1, "eval_steps": 200, "save_steps": 100}
    training = {"device": "cpu", "learning_rate": 1e-4, **steps}
    config = written(folder / "train.json", settings | {"train": training})
    held, seconds = watched(lambda: train.run(config, *rows, folder / "train"))
    quarter = len(held) // 4
    early, late = medians(held[quarter : 2 * quarter]), medians(held[3 * quarter :])
    return [
        f"A training of {num_steps:,} steps of the miniature, {seconds / 60:.0f} minutes:",
        "",
        "| | second quarter | last quarter |",
        "|---|---|---|",
        f"| resident memory | {early.memory_mb:,.0f} MB | {late.memory_mb:,.0f} MB |",
        f"| open files | {early.num_files} | {late.num_files} |",
        f"| threads | {early.num_threads} | {late.num_threads} |",
    ]


def written(path: Path, content: dict[str, Any]) -> Path:
    """Write a stage's config."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_manifest(folder: Path, num_rows: int) -> None:
    """Write a manifest whose rows are segments of a few recordings, most of silence."""
    for number in range(-(-num_rows // SEGMENTS_PER_FILE)):
        seconds = SEGMENTS_PER_FILE * SEGMENT_SECONDS if number == 0 else SEGMENT_SECONDS
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * 8000))
        sf.write(folder / f"{number:05d}.flac", noise, 8000)
    with (folder / "m.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(num_rows):
            start = number % SEGMENTS_PER_FILE * SEGMENT_SECONDS
            row = {
                "id": f"clip-{number:08d}",
                "audio": f"{number // SEGMENTS_PER_FILE:05d}.flac",
                "start_seconds": start,
                "end_seconds": start + SEGMENT_SECONDS,
                "text": f"This is sentence number {number}, of ordinary length.",
                "speaker": f"speaker-{number % 10}",
            }
            stream.write(json.dumps(row) + "\n")


def pretend_to_measure(folder: Path) -> None:
    """Give every listed segment the measures of the first one."""
    known: dict[str, Any] = {}
    config = written(folder / "measure.json", {})
    for shard in range(NUM_SHARDS):
        recordings = read_table(shard_path(folder / "recordings", shard), RECORDINGS)[0].to_pylist()
        if not known:
            first = folder / "first.parquet"
            of_first = [r for r in recordings if r["audio_path"].endswith("00000.flac")][:1]
            write_table(first, RECORDINGS, of_first)
            measure.run(config, first, folder / "known.parquet")
            known = read_table(folder / "known.parquet", MEASURED)[0].to_pylist()[0]
        rows = [
            {**known, **row, "pcm_sha256": f"{shard:08x}{index:056x}"}
            for index, row in enumerate(recordings)
        ]
        write_table(shard_path(folder / "measured", shard), MEASURED, rows)


def run_stage(stage: str, folder: Path) -> None:
    """Run a stage in this process, and print seconds and peak memory as JSON."""
    config = {"manifest": str(folder / "m.jsonl"), "data": {"num_shards": NUM_SHARDS}}
    started = time.perf_counter()
    if stage == "list_rows":
        listed = written(folder / "list.json", config)
        list_rows.run(listed, folder / "rows.parquet", folder / "recordings")
    else:
        judged = written(folder / "validate.json", config)
        validate.run(
            judged,
            folder / "rows.parquet",
            folder / "measured",
            clips=folder / "clips.parquet",
            rejected=folder / "rejected.parquet",
            validation=folder / "validation.json",
            shards_dir=folder / "shards",
            families=[V2],
        )
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}))


def in_child(*words: str) -> dict[str, Any]:
    """Run a part of this file, or of pack.py, in a process of its own; return what it found."""
    finished = subprocess.run(
        [sys.executable, *words], check=True, stdout=subprocess.PIPE, env=os.environ
    )
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def stages_at(num_rows: int) -> dict[str, dict[str, Any]]:
    """Measure each stage on so many rows."""
    from higgs_pipe.higgs.v2 import miniature

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, num_rows)
        found = {"list_rows": in_child(__file__, "--stage", "list_rows", name)}
        pretend_to_measure(folder)
        found["validate"] = in_child(__file__, "--stage", "validate", name)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "tiny-higgs"
        miniature.build(base, hidden_size=64)
        num_shards = str(write_corpus(Path(name), num_rows, 1.0, 3.0))
        options = ("--in-child", "pack", name, num_shards, "--base-model", str(base))
        found["pack"] = in_child(str(Path(__file__).with_name("pack.py")), *options)
    return found


def grow(num_rows: int) -> list[str]:
    """Set a tenth of the rows beside all; return lines of Markdown."""
    few, many = stages_at(num_rows // 10), stages_at(num_rows)
    lines = [
        f"{num_rows:,} generated rows, and a tenth of them:",
        "",
        f"| stage | {num_rows // 10:,} rows | {num_rows:,} rows | rows/s | growth of the time |",
        "|---|---|---|---|---|",
    ]
    for stage, found in many.items():
        cells = [
            f"{each['seconds']:.1f} s, {each['peak_bytes'] / 1e6:,.0f} MB"
            for each in (few[stage], found)
        ]
        growth = found["seconds"] / few[stage]["seconds"]
        speed = num_rows / found["seconds"]
        lines.append(f"| {stage} | {cells[0]} | {cells[1]} | {speed:,.0f} | {growth:.1f}x |")
    return lines


def main() -> None:
    """Measure, print, and write the page's part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--num-steps", type=int, default=2_000)
    parser.add_argument("--num-rows", type=int, default=200_000)
    parser.add_argument("--page", type=Path, help="page whose part is replaced")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage[0], Path(options.stage[1]))
        return
    lines = [*grow(options.num_rows), ""]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        trained = train_long(Path(name), options.num_steps)
    print("\n".join(trained))
    if options.page:
        put_table(options.page, "soak", [*lines, *trained])


if __name__ == "__main__":
    main()
