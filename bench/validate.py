"""Validation: decoding, measuring and hashing recordings, against a loop that only decodes.

    PYTHONPATH=. python bench/validate.py --output results/bench/validate.json
    PYTHONPATH=. python bench/validate.py --num-clips 20 --num-rounds 1

The recordings are speech-like, 3 to 15 s at 24 kHz in 16 bits, as WAV, FLAC and OGG. Ours is the
whole stage ``measure`` with one thread, from a shard's list of recordings to its table of measures
and two SHA-256 for each; the loop is ``soundfile.read`` and computes nothing. Variants take turns,
times are medians over the rounds. Processor time stands beside the clock's: on a busy machine it
is the one to believe. Then two processes with half of the files each are compared with one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile as sf

from higgs_pipe import measure
from higgs_pipe.data.files import write_json
from higgs_pipe.data.specs import MEASURED, RECORDINGS
from higgs_pipe.data.tables import read_table, write_table

RATE_HZ = 24_000
# The least ratio to aim at. Decoding 346 s of FLAC takes 0.117 s of an AMD EPYC. What comes on top
# is the same for each format: 0.022 s from 16 bits to float32, 0.016 s for two hashes, 0.011 s for
# the measures, 0.004 s to open it and to look for a cut end. That leaves 0.71 at best, and about
# 0.6 beside other work, which shares caches and memory: the goal is for such a machine.
FORMATS = {"wav": 0.25, "flac": 0.55, "ogg": 0.7}
MIN_SPEEDUP = 1.8

Samples = npt.NDArray[np.float32]


def speech_like(seconds: float, rng: np.random.Generator) -> Samples:
    """Voiced syllables with formants, hissing ones, and pauses with a little noise."""
    num_samples = round(seconds * RATE_HZ)
    times = np.arange(num_samples) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.4 * times)) / RATE_HZ
    voiced = sum(np.sin(k * phase) / (1 + abs(k - 4)) for k in range(1, 25))
    hiss = np.diff(rng.standard_normal(num_samples + 1))
    syllable = np.clip(np.sin(2 * np.pi * 4 * times + rng.uniform(0, 6)), 0, 1)
    phrase = np.sin(2 * np.pi * 0.3 * times + rng.uniform(0, 6)) > -0.7
    is_hiss = np.sin(2 * np.pi * 1.3 * times) > 0.8
    speech = syllable * phrase * np.where(is_hiss, 0.3 * hiss, voiced)
    samples = 0.08 * speech + 3e-4 * rng.standard_normal(num_samples)
    return np.clip(samples, -1, 1).astype(np.float32)


def write_corpus(folder: Path, ending: str, num_clips: int) -> list[Path]:
    """Recordings of one format, the same sound in each."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{ending}-{n:04d}.{ending}" for n in range(num_clips)]
    for path in paths:
        sf.write(path, speech_like(rng.uniform(3, 15), rng), RATE_HZ)
    return paths


class Stage:
    """The stage on some recordings."""

    def __init__(self, folder: Path, name: str, paths: Sequence[Path]) -> None:
        self.config = folder / "measure.json"
        self.config.write_text("{}", encoding="utf-8")
        self.recordings = folder / f"{name}.parquet"
        self.measured = folder / f"{name}.measured.parquet"
        whole = dict.fromkeys(column.name for column in RECORDINGS.columns)
        rows = [{**whole, "audio_path": str(path)} for path in paths]
        write_table(self.recordings, RECORDINGS, rows)

    def run(self) -> None:
        """Measure the recordings."""
        measure.run(self.config, self.recordings, self.measured, num_threads=1)

    def check(self) -> None:
        """That every recording was measured."""
        reasons = read_table(self.measured, MEASURED).column("reason")
        if reasons.null_count != len(reasons):
            raise SystemExit(f"{self.measured}: not every recording is sound")


def decode_only(paths: Sequence[Path]) -> None:
    """The loop that computes nothing."""
    for path in paths:
        sf.read(path)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def compare(stage: Stage, paths: Sequence[Path], num_rounds: int) -> dict[str, Any]:
    """The stage against the loop, taking turns."""
    variants: dict[str, Callable[[], None]] = {
        "stage": stage.run,
        "decode_only": lambda: decode_only(paths),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for run in variants.values():
        run()  # the files are in memory, the modules warm
    stage.check()
    for _ in range(num_rounds):
        for name, run in variants.items():
            times[name].append(timed(run))
    median = {
        name: [statistics.median(of_kind) for of_kind in zip(*rounds, strict=True)]
        for name, rounds in times.items()
    }
    return {
        "stage_files_per_second": len(paths) / median["stage"][0],
        "decode_only_files_per_second": len(paths) / median["decode_only"][0],
        "ratio": median["decode_only"][0] / median["stage"][0],
        "ratio_of_processor_time": median["decode_only"][1] / median["stage"][1],
    }


def job(stage: Stage, ready: Any, spans: Any) -> None:
    """A process of its own: warm up, wait for the others, run."""
    stage.run()
    ready.wait()
    start = time.monotonic()
    stage.run()
    spans.put((start, time.monotonic()))


def seconds_of_jobs(stages: Sequence[Stage]) -> float:
    """From the first start to the last end of stages run at once, a process each."""
    context = multiprocessing.get_context("spawn")
    ready, spans = context.Barrier(len(stages)), context.Queue()
    processes = [context.Process(target=job, args=(stage, ready, spans)) for stage in stages]
    for process in processes:
        process.start()
    found: list[tuple[float, float]] = [spans.get() for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in found) - min(start for start, _ in found)


def speedup(folder: Path, paths: Sequence[Path], num_rounds: int) -> float:
    """How much sooner two processes are done than one."""
    one = [Stage(folder, "one", paths)]
    two = [Stage(folder, f"half-{half}", paths[half::2]) for half in range(2)]
    rounds = [(seconds_of_jobs(one), seconds_of_jobs(two)) for _ in range(num_rounds)]
    of_one, of_two = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return float(of_one / of_two)


def main() -> None:
    """Print the ratios, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-clips", type=int, default=200, help="recordings of each format")
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    results: dict[str, Any] = {"num_clips": options.num_clips, "num_rounds": options.num_rounds}
    heading = ("files/s", "ours", "decode only", "ratio", "of processor time", "two jobs")
    print("".join(f"{word:>18}" for word in heading))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ending, min_ratio in FORMATS.items():
            paths = write_corpus(folder, ending, options.num_clips)
            found = compare(Stage(folder, ending, paths), paths, options.num_rounds)
            found["speedup_of_two_jobs"] = speedup(folder, paths, options.num_rounds)
            found |= {"min_ratio": min_ratio, "min_speedup": MIN_SPEEDUP}
            results[ending] = found
            values = [
                f"{found['stage_files_per_second']:.0f}",
                f"{found['decode_only_files_per_second']:.0f}",
                f"{found['ratio']:.2f} (>= {min_ratio})",
                f"{found['ratio_of_processor_time']:.2f}",
                f"{found['speedup_of_two_jobs']:.2f} (>= {MIN_SPEEDUP})",
            ]
            print("".join(f"{value:>18}" for value in (ending, *values)), flush=True)
    if options.output is not None:
        write_json(options.output, results)
    else:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
