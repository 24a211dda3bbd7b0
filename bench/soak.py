"""What grows: a long training, and many rows through each stage before it.

    PYTHONPATH=. python bench/soak.py --page docs/proof.md --output bench/soak.json

Training: a miniature takes ``--num-steps`` optimizer steps, with held-out losses and checkpoints on
the way; resident memory, open files and threads are read five times a second, and the last quarter
is set beside the second. Rows: each stage runs in a process of its own, at a tenth of the rows and
at all of them. list_rows, validate and pack take ``--num-rows`` segments: the measures of one stand
for all, and codes are random. measure and tokenize decode ``--num-clips`` FLAC files of a second,
and encode them by a tiny codec. ``--only`` measures some stages, and replaces their rows of the
page. Ends with 1 if the training grows.
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
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf
from memory import held_bytes, peak_bytes
from pack import write_corpus
from pages import machine_now, put_table

from higgs_pipe import list_rows, measure, validate
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.specs import MEASURED, RECORDINGS, SHARD_CLIPS
from higgs_pipe.data.tables import read_table, shard_path, write_table
from higgs_pipe.planning.model_types import V2

SEGMENT_SECONDS = 2.0
SEGMENTS_PER_FILE = 1000
NUM_SHARDS = 8
CLIP_SECONDS = 1.0
DISTINCT_CLIPS = 200  # the other files are links to these
SECONDS_BETWEEN_READINGS = 0.2
MIN_STEPS, MIN_ROWS, MIN_CLIPS = 400, 1000, 1000  # fewer tell nothing
MAX_GROWTH = 1.05  # of memory, from the second quarter to the last
MANY = 1_000_000


class Held(NamedTuple):
    """What a process holds at a moment."""

    memory_mb: float
    num_files: int
    num_threads: int

    @classmethod
    def now(cls) -> "Held":
        """Read it from /proc."""
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        threads = int(status.split("Threads:")[1].split()[0])
        return cls(held_bytes() / 1e6, len(list(Path("/proc/self/fd").iterdir())), threads)


def watched(run: Callable[[], None]) -> tuple[list[Held], float]:
    """Run something; return what the process held on the way, and how long it took."""
    held: list[Held] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(SECONDS_BETWEEN_READINGS):
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


class Quarters(NamedTuple):
    """A training: what its process held in the second quarter and in the last."""

    num_steps: int
    seconds: float
    early: Held
    late: Held

    @property
    def grows(self) -> bool:
        """Return whether the process held more at the end."""
        return (
            self.late.memory_mb > MAX_GROWTH * self.early.memory_mb
            or self.late.num_files > self.early.num_files
            or self.late.num_threads > self.early.num_threads
        )


def train_long(folder: Path, num_steps: int) -> Quarters:
    """Train."""
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
    early, late = held[quarter : 2 * quarter], held[3 * quarter :]
    return Quarters(num_steps, seconds, medians(early), medians(late))


def training_table(found: Quarters) -> list[str]:
    """Return lines of Markdown."""
    early, late = found.early, found.late
    return [
        f"A training of {found.num_steps:,} steps of the miniature, "
        f"{found.seconds / 60:.0f} minutes:",
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
        recordings = read_table(shard_path(folder / "recordings", shard), RECORDINGS).to_pylist()
        if not known:
            first = folder / "first.parquet"
            of_first = [r for r in recordings if r["audio_path"].endswith("00000.flac")][:1]
            write_table(first, RECORDINGS, of_first)
            measure.run(config, first, folder / "known.parquet")
            known = read_table(folder / "known.parquet", MEASURED).to_pylist()[0]
        rows = [
            {**known, **row, "pcm_sha256": f"{shard:08x}{index:056x}"}
            for index, row in enumerate(recordings)
        ]
        write_table(shard_path(folder / "measured", shard), MEASURED, rows)


def write_recordings(folder: Path, num_clips: int) -> None:
    """Write FLAC files of a second, their tables for measure and tokenize, and a tiny codec."""
    from higgs_pipe.higgs.v2 import miniature

    for number in range(num_clips):
        path, first = (folder / f"{n:06d}.flac" for n in (number, number % DISTINCT_CLIPS))
        if number < DISTINCT_CLIPS:
            noise = 0.1 * np.random.default_rng(number).standard_normal(round(CLIP_SECONDS * 24e3))
            sf.write(path, noise, 24_000)
        else:
            path.hardlink_to(first)
    hashes = [sha256_of_file(folder / f"{n:06d}.flac") for n in range(DISTINCT_CLIPS)]
    files = [
        {
            **dict.fromkeys(column.name for column in (*RECORDINGS.columns, *SHARD_CLIPS.columns)),
            "audio_path": str(folder / f"{number:06d}.flac"),
            "clip_id": f"clip-{number:06d}",
            "audio_sha256": hashes[number % DISTINCT_CLIPS],
            "duration_seconds": CLIP_SECONDS,
        }
        for number in range(num_clips)
    ]
    write_table(folder / "recordings.parquet", RECORDINGS, files)
    write_table(folder / "shard.parquet", SHARD_CLIPS, files)
    miniature.build(folder / "tiny-higgs")


def run_stage(stage: str, folder: Path) -> None:
    """Run a stage in this process, and print seconds and peak memory as JSON."""
    config = {"manifest": str(folder / "m.jsonl"), "data": {"num_shards": NUM_SHARDS}}
    codec = {"codec": str(folder / "tiny-higgs/audio_tokenizer"), "tokenize": {"device": "cpu"}}
    contents = {"list_rows": config, "measure": {}, "validate": config, "tokenize": codec}
    path = written(folder / f"{stage}.json", contents[stage])
    rows = folder / "rows.parquet"
    if stage == "tokenize":
        from higgs_pipe import tokenize_audio  # which imports PyTorch
    started = time.perf_counter()
    if stage == "list_rows":
        list_rows.run(path, rows, folder / "recordings")
    elif stage == "measure":
        measure.run(path, folder / "recordings.parquet", folder / "measured.parquet")
    elif stage == "tokenize":
        tokenize_audio.run(path, folder / "shard.parquet", folder / "codes.parquet")
    else:
        validate.run(
            path,
            rows,
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


class Cost(NamedTuple):
    """What a stage took for so many rows."""

    num_rows: int
    seconds: float
    peak_bytes: int


def costs_at(num_rows: int, num_clips: int, stages: Collection[str]) -> dict[str, Cost]:
    """Measure some stages on so many rows, or clips that are decoded."""
    from higgs_pipe.higgs.v2 import miniature

    costs: dict[str, Cost] = {}

    def run(stage: str, number: int, *words: str) -> Cost:
        found = in_child(*(words or (__file__, "--stage", stage, name)))
        return Cost(number, found["seconds"], found["peak_bytes"])

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not {"list_rows", "validate"}.isdisjoint(stages):
            write_manifest(folder, num_rows)
            costs["list_rows"] = run("list_rows", num_rows)
        if "validate" in stages:
            pretend_to_measure(folder)
            costs["validate"] = run("validate", num_rows)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "tiny-higgs"
        if "pack" in stages:
            miniature.build(base, hidden_size=64)
            num_shards = str(write_corpus(Path(name), num_rows, 1.0, 3.0))
            options = ("--in-child", "pack", name, num_shards, "--base-model", str(base))
            program = str(Path(__file__).with_name("pack.py"))
            costs["pack"] = run("pack", num_rows, program, *options)
    with tempfile.TemporaryDirectory() as name:
        if not {"measure", "tokenize"}.isdisjoint(stages):
            write_recordings(Path(name), num_clips)
        for stage in ("measure", "tokenize"):
            if stage in stages:
                costs[stage] = run(stage, num_clips)
    return {name: costs[name] for name in STAGES if name in stages}


AGAIN = "Measured again: "
STAGES = ("list_rows", "measure", "validate", "tokenize", "pack")


def growth_table(few: dict[str, Cost], many: dict[str, Cost]) -> list[str]:
    """Set a tenth of the rows beside all; return lines of Markdown."""
    lines = [
        "Generated rows, a tenth of them and all. The last column is the peak memory of one job if "
        "it grows on as it did.",
        "",
        "| stage | rows | a tenth | all | rows/s | growth of the time | bytes per row "
        f"| at {MANY:,} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage, cost in many.items():
        less = few[stage]
        per_row = (cost.peak_bytes - less.peak_bytes) / (cost.num_rows - less.num_rows)
        cells = [
            stage,
            f"{cost.num_rows:,}",
            *(f"{each.seconds:.1f} s, {each.peak_bytes / 1e6:,.0f} MB" for each in (less, cost)),
            f"{cost.num_rows / cost.seconds:,.0f}",
            f"{cost.seconds / less.seconds:.1f}x",
            f"{per_row:,.0f}",
            f"{(cost.peak_bytes + per_row * (MANY - cost.num_rows)) / 1e9:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def with_rows_replaced(page: Path, lines: list[str], about: str) -> list[str]:
    """Return the section of a page, where the rows of some stages are those of ``lines``."""
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    own = {stage: row for stage, row in rows.items() if stage in STAGES}
    section = page.read_text(encoding="utf-8").partition("<!-- soak -->\n")[2]
    section = section.partition("\n<!-- end of soak -->")[0]
    paragraphs = [text for text in section.split("\n\n") if not _is_note_on(own, text)]
    kept = "\n\n".join(paragraphs).splitlines()
    found = [own.get(f"{line}|".split("|")[1].strip(), line) for line in kept]
    return [found[0], "", f"{AGAIN}{', '.join(own)}: {about}", *found[1:]]


def _is_note_on(stages: Collection[str], paragraph: str) -> bool:
    """Return whether a paragraph says that some of these stages, and no others, were measured."""
    note = paragraph.strip()
    named = note.removeprefix(AGAIN).partition(":")[0].split(", ")
    return note.startswith(AGAIN) and set(named) <= set(stages)


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--num-steps", type=int, default=2_000)
    parser.add_argument("--num-rows", type=int, default=200_000)
    parser.add_argument("--num-clips", type=int, default=20_000)
    parser.add_argument("--page", type=Path, help="page whose part is replaced")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--only", nargs="+", choices=STAGES, help="stages; without a training")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage[0], Path(options.stage[1]))
        return 0
    for name, least in (("steps", MIN_STEPS), ("rows", MIN_ROWS), ("clips", MIN_CLIPS)):
        if getattr(options, f"num_{name}") < least:
            parser.error(f"--num-{name}: at least {least:,}, or nothing can be seen to grow")
    stages = options.only or STAGES
    few, many = (costs_at(options.num_rows // n, options.num_clips // n, stages) for n in (10, 1))
    lines = growth_table(few, many)
    print("\n".join(lines), flush=True)
    about = f"{machine_now()}, on which {os.getloadavg()[2]:.1f} processes ran at a time."
    if options.only:
        if options.page:
            put_table(options.page, "soak", with_rows_replaced(options.page, lines, about))
        return 0
    with tempfile.TemporaryDirectory() as name:
        trained = train_long(Path(name), options.num_steps)
    print("\n".join(training_table(trained)))
    if options.output:
        found = {stage: [cost._asdict() for cost in (few[stage], many[stage])] for stage in STAGES}
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.page:
        table = [about, "", *lines, "", *training_table(trained)]
        put_table(options.page, "soak", table)
    return int(trained.grows)


if __name__ == "__main__":
    sys.exit(main())
