"""What only a GPU can answer about speed, in 15 minutes: rows of the goals in docs/performance.md.

    PYTHONPATH=. python bench/on_a_gpu.py results/gpu --docs docs/performance.md

Sections run one after the other, the most important first, each in a process of its own with a time
limit. A section leaves ``NAME.json`` and ``NAME.log`` in the folder; one that fails or takes too
long leaves the others alone. With ``--only``, some of them run, and the table is made of all
results in the folder. Snakemake and pyarrow are needed by ``tokenize`` and ``tests`` alone.

The trainings take the code of the ``train`` stage, from the plan to the optimizer, over a body of
the 3B model's shape with random weights; rows lie in memory. ``--tiny`` runs the same on a CPU with
a body of two layers, to prove before renting a GPU that nothing fails.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from pages import put_table
from train_step import (
    FRAME_RATE_HZ,
    GPU_VARIANTS,
    LAYERS_3B,
    ROW_LENGTH_ON_GPU,
    WIDTH_3B,
    build_model,
    cuda_table,
    draw_clips,
    machine_name,
    measure_variants,
    model_config,
    packed_rows,
    size_of,
)

from higgs_pipe.config.settings import LoraSettings, TrainConfig
from higgs_pipe.higgs.batch import PackedRow, RowSize
from higgs_pipe.higgs.compilation_costs import COLD_SECONDS, WARM_SECONDS
from higgs_pipe.higgs.memory import GIB
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.higgs.v2 import miniature
from higgs_pipe.training import planner
from higgs_pipe.training.card import CudaCard
from higgs_pipe.training.forecast import CONTEXT_BYTES, KINDS, forecast
from higgs_pipe.training.optimizer import make_optimizer, make_schedule
from higgs_pipe.training.plan import PADDING_SHARE, micro_step_seconds
from higgs_pipe.training.processes import make_accelerator
from higgs_pipe.training.state import TrainingState
from higgs_pipe.training.step import Stepper
from higgs_pipe.training.step_inputs import StepInputs
from higgs_pipe.training.telemetry import Telemetry, peak_memory_bytes

ROOT = Path(__file__).parents[1]
LONG_RUN = 2_000  # steps that the run would have, so that ``auto`` finds that compiling pays
NUM_STEPS, NUM_WARM_UP = 8, 2  # taken, and of them not measured
NUM_STEPS_OF_GRAPHS, NUM_WARM_UP_OF_GRAPHS = 24, 16  # until every shape has its graph
NOT_MEASURED = "not measured"
SPEED = ("positions_per_second", "{:,.0f}")
MEMORY = ("mb_per_position", "{:.2f}")
ENCODED, ENCODED_FIRST = ("stage", "{:,.0f}"), ("first_pass", "{:,.0f}")

Result = dict[str, Any]


class DrawnRows(list[PackedRow]):
    """Packed rows in memory, in the place of the table."""

    def row_lengths(self) -> list[int]:
        """Positions of each row."""
        return [len(row.labels) for row in self]

    def sizes(self) -> list[RowSize]:
        """What bounds the shape of a micro-batch."""
        return [size_of(row) for row in self]


class SmallerCard(CudaCard):
    """A GPU of which only so many bytes are used, as if it had no more."""

    def __init__(self, device: torch.device, num_bytes: float) -> None:
        super().__init__(device)
        self.num_bytes = num_bytes
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))

    def available_bytes(self) -> float:
        """Return the bytes that are left of them."""
        used = torch.cuda.memory_allocated(self.device) + CONTEXT_BYTES
        return min(super().available_bytes(), self.num_bytes - used)


class Section(NamedTuple):
    """A part of the measurement."""

    limit_seconds: float
    measure: Callable[[bool], Result]  # tiny or not


def train(is_tiny: bool, memory_gb: int | None = None, **settings: Any) -> Result:
    """Plan a training and take some steps: its plan, speed and memory."""
    started = time.perf_counter()
    device = torch.device("cpu" if is_tiny else "cuda")
    if memory_gb is not None and not is_tiny:
        card = SmallerCard(device, memory_gb * GIB)
        mock.patch.object(planner, "card_of", return_value=card).start()
    chosen = TrainConfig(device=device.type, tracker="none", max_steps=LONG_RUN, **settings)
    config = tiny_config() if is_tiny else config_3b()
    rows: Any = DrawnRows(packed_rows(draw_clips(config, 4 if is_tiny else 512), ROW_LENGTH_ON_GPU))
    torch.set_default_dtype(torch.float32 if is_tiny else torch.bfloat16)
    with device:
        adapted = build_model(config, LoraSettings().dropout)
    torch.set_default_dtype(torch.float32)
    model = DualLossModel(adapted, chosen.max_logits_mb, recomputed_layers=0).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accelerator = make_accelerator(chosen, Path(tempfile.gettempdir()))
    inputs = StepInputs(rows, model.shape, chosen, accelerator)
    optimizer = make_optimizer(trained, chosen, device)
    state = TrainingState(trained, optimizer, make_schedule(optimizer, chosen, LONG_RUN))
    run = planner.Planner(model, chosen, inputs, state, accelerator)
    telemetry = Telemetry(device, ROW_LENGTH_ON_GPU, FRAME_RATE_HZ)
    stepper = Stepper(model, inputs, run, state, chosen, accelerator, telemetry)
    base_bytes = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    planned_at = time.perf_counter()
    plans: list[Result] = []
    run.plan(lambda step, plan, told: plans.append({"step": step, **plan, "told": told}))
    planning_seconds = time.perf_counter() - planned_at
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    num_steps, num_warm_up = (2, 1) if is_tiny else (NUM_STEPS, NUM_WARM_UP)
    if run.graphs is not None:
        num_steps, num_warm_up = NUM_STEPS_OF_GRAPHS, NUM_WARM_UP_OF_GRAPHS
    lines: list[Result] = []
    with closing(inputs.after(0)) as steps:
        for number in range(1, num_steps + 1):
            with telemetry.step():
                with telemetry.phase("data"):
                    step_input = next(steps)
                stepper.step(step_input)
            if number == 1:
                first_step_seconds = time.perf_counter() - planned_at
            if number in (num_warm_up, num_steps):
                lines.append(telemetry.line())
        peak_bytes = peak_memory_bytes(device)
        shares = device_shares(lambda: stepper.step(next(steps))) if device.type == "cuda" else {}
    positions = plans[-1]["rows_per_micro_batch"] * ROW_LENGTH_ON_GPU
    return {
        "plans": plans,
        "positions_per_second": lines[-1]["tokens_per_second"],
        "audio_seconds_per_second": lines[-1]["audio_seconds_per_second"],
        "data_seconds": lines[-1]["data_seconds"],
        "num_graphs": 0 if run.graphs is None else len(run.graphs.graphs),
        "device_shares": shares,
        "peak_gb": peak_bytes / 1e9,
        "mb_per_position": (peak_bytes - base_bytes) / positions / 1e6,
        "planning_seconds": planning_seconds,  # compiling, probe and check of graphs
        "first_step_seconds": first_step_seconds,  # from the loaded model
        "seconds": time.perf_counter() - started,
    }


def device_shares(step: Callable[[], Any]) -> dict[str, float]:
    """Shares of a step's time on the GPU; the kernels that take longest go into the log."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    seconds: dict[str, float] = {}
    number: Counter[str] = Counter()
    for event in profile.events() or ():
        if "CUDA" in str(event.device_type):
            number[event.name] += 1
            elapsed = event.time_range.elapsed_us() / 1e6
            seconds[event.name] = seconds.get(event.name, 0.0) + elapsed
    whole = sum(seconds.values())
    for name in sorted(seconds, key=seconds.__getitem__, reverse=True)[:40]:
        print(
            f"{seconds[name] / whole:6.1%} {seconds[name]:7.4f} s {number[name]:5} x {name[:150]}"
        )

    shares = dict.fromkeys(("products", "attention", "other"), 0.0)
    for name, elapsed in seconds.items():
        shares[part_of_step(name)] += elapsed / whole
    return shares


def part_of_step(kernel: str) -> str:
    """What a kernel computes, by its name; those of attention name cutlass, too."""
    kernel = kernel.lower()
    if "flash" in kernel or "fmha" in kernel:
        return "attention"
    if any(mark in kernel for mark in ("gemm", "nvjet", "cutlass", "splitk")):
        return "products"
    return "other"


def variants(is_tiny: bool, *names: str) -> Result:
    """Micro-steps with each part switched off: those with these names, or all."""
    chosen = [v for v in GPU_VARIANTS if not names or v.name in names]
    if is_tiny:  # a compiler takes minutes there
        chosen = [variant._replace(is_compiled=False) for variant in chosen]
    config = tiny_config() if is_tiny else config_3b()
    options = argparse.Namespace(num_clips=4 if is_tiny else 64, repetitions=1 if is_tiny else 5)
    device = torch.device("cpu" if is_tiny else "cuda")
    found = measure_variants(options, config, device, chosen)
    by_name = {line["variant"]: line["positions_per_second"] for line in found if line["seconds"]}
    return {"lines": found, "positions_per_second": by_name}


def tests(is_tiny: bool) -> Result:
    """The tests that need a GPU; tiny, only how many there are."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    command += ["-k", "cuda", *(["--collect-only"] if is_tiny else ["-n", "6"])]
    names = ("higgs", "training", "stages/test_stages_on_cuda.py")
    paths = [ROOT / "tests" / name for name in names]
    finished = subprocess.run(
        [*command, *map(str, paths)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    lines = (finished.stderr + finished.stdout).strip().splitlines()
    print("\n".join(lines))
    return {"summary": lines[-1], "exit_code": finished.returncode}


def tokenizing(is_tiny: bool) -> Result:
    """Speed of the codec by dtype and batch, of the stage, and the codes that agree."""
    import tokenize_audio  # which needs pyarrow

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = argparse.Namespace(
            num_clips=4 if is_tiny else 64,
            min_clip_seconds=1.0 if is_tiny else 5.0,
            max_clip_seconds=1.2 if is_tiny else 20.0,
        )
        clips = tokenize_audio.write_clips(folder, options)
        if is_tiny:
            miniature.build(folder / "base", hidden_size=64, num_layers=1)
            codec = folder / "base" / miniature.AUDIO_TOKENIZER
        else:
            codec = folder / "codec"
            tokenize_audio.build_codec(codec)
        device = torch.device("cpu" if is_tiny else "cuda")
        return tokenize_audio.compare_on_gpu(str(codec), clips, 1 if is_tiny else 3, device)


NATIVE, NOT_COMPILED = "native, batches of 8 clips padded, our labels", "not compiled"
SECTIONS = {
    "shipped": Section(200, train),
    "tests": Section(200, tests),
    "warm": Section(100, train),  # the same in another process, which finds the compiled code
    "one_row_graphs": Section(
        120, lambda is_tiny: train(is_tiny, rows_per_micro_batch=1, cuda_graphs=True)
    ),
    "in_24_gb": Section(100, lambda is_tiny: train(is_tiny, memory_gb=24)),
    "tokenize": Section(120, tokenizing),
    "native": Section(90, lambda is_tiny: variants(is_tiny, NATIVE, NOT_COMPILED)),
    "one_row": Section(
        120, lambda is_tiny: train(is_tiny, rows_per_micro_batch=1, cuda_graphs=False)
    ),
    "graphs": Section(120, lambda is_tiny: train(is_tiny, cuda_graphs=True)),
    "variants": Section(300, variants),
}


def config_3b() -> Any:
    """The 3B model's shape."""
    return model_config(WIDTH_3B, LAYERS_3B, 128_256, head_dim=128, num_key_heads=8)


def tiny_config() -> Any:
    """A shape for a CPU."""
    return model_config(128, 2, 600)


def run_sections(folder: Path, names: Sequence[str], is_tiny: bool, minutes: float) -> None:
    """Run sections in processes of their own; write what each one found."""
    started = time.monotonic()
    # A section finds the code that the ones before it compiled.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder.absolute() / "compiled")}
    for name in names:
        left = 60 * minutes - (time.monotonic() - started)
        limit = min(SECTIONS[name].limit_seconds, left)
        if name == "shipped":  # nothing is compiled yet
            shutil.rmtree(folder / "compiled", ignore_errors=True)
        if limit < 10:
            print(f"{name}: no time left", flush=True)
            continue
        command = [sys.executable, __file__, str(folder), "--section", name]
        command += ["--tiny"] if is_tiny else []
        result = folder / f"{name}.json"
        result.unlink(missing_ok=True)
        code = run_within(limit, command, folder / f"{name}.log", environment)
        if code == 0:
            print(f"{name}: {result.read_text(encoding='utf-8')}", flush=True)
        elif code is None:
            print(f"{name}: not finished within {limit:.0f} s", flush=True)
        else:
            lines = (folder / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()
            print(f"{name}: failed: {lines[-1] if lines else ''}", flush=True)


def run_within(
    seconds: float, command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> int | None:
    """Run a program; return its exit code, or None if it took longer. Nothing of it stays."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # with the processes that it starts
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def computed() -> dict[str, str]:
    """What the formulas of ``snakemake validate`` expect on an H100, by section."""
    config, settings = config_3b(), TrainConfig()
    num_trained = count_parameters(config, settings).trainable
    formulas = {c: memory_formula(config, settings, num_trained, c) for c in (False, True)}
    h100 = next(kind for kind in KINDS if "H100" in kind.name)

    def of_card(memory_gb: int) -> float:
        card = replace(h100, memory_gb=memory_gb)
        return forecast(card, formulas, settings, ROW_LENGTH_ON_GPU, 10**9).positions_per_second

    def of_one_row(is_graphed: bool) -> float:
        padding = PADDING_SHARE if is_graphed else 0
        num_positions = ROW_LENGTH_ON_GPU * (1 + padding)
        seconds = micro_step_seconds(
            formulas[True], num_positions, 0, is_compiled=True, is_graphed=is_graphed
        )
        return ROW_LENGTH_ON_GPU / seconds

    speeds = {
        "shipped": of_card(h100.memory_gb),
        "in_24_gb": of_card(24),
        "one_row": of_one_row(is_graphed=False),
        "one_row_graphs": of_one_row(is_graphed=True),
    }
    return {name: f"{speed:,.0f}" for name, speed in speeds.items()} | {
        "memory": f"{formulas[True].activations(1, 0) / 1e6:.2f}",
        "cold": f"{COLD_SECONDS:.0f} s",
        "warm": f"{WARM_SECONDS:.0f} s",
    }


def goals_table(found: dict[str, Result], machine: str) -> list[str]:
    """The goals, what the formulas expect and what was measured, as lines of Markdown."""

    def cell(name: str, key: str, form: str) -> str:
        value = found.get(name, {}).get(key)
        return NOT_MEASURED if value is None else form.format(value)

    over_native = NOT_MEASURED
    if "shipped" in found and "native" in found:
        speed = found["native"]["positions_per_second"][NATIVE]
        over_native = f"{found['shipped']['positions_per_second'] / speed:.1f}"
    expected = computed()
    first = ("first_step_seconds", "{:.0f} s")
    rows = [
        ("as shipped, nothing set: positions/s", "40,000", "shipped", cell("shipped", *SPEED)),
        ("rows of 2,048, one at a time", "28,000", "one_row", cell("one_row", *SPEED)),
        ("the same as CUDA graphs", "28,000", "one_row_graphs", cell("one_row_graphs", *SPEED)),
        ("as shipped, as CUDA graphs", "", "", cell("graphs", *SPEED)),
        ("in 24 GB", "30,000", "in_24_gb", cell("in_24_gb", *SPEED)),
        ("MB a position above the base", "1.1", "memory", cell("shipped", *MEMORY)),
        ("times the speed of native, padded", "7", "", over_native),
        ("first step, nothing compiled yet", "", "cold", cell("shipped", *first)),
        ("first step, compiled code at hand", "15 s", "warm", cell("warm", *first)),
        ("tokenize, lengths seen before: audio s/s", "700", "", cell("tokenize", *ENCODED)),
        ("tokenize, every length new: audio s/s", "", "", cell("tokenize", *ENCODED_FIRST)),
        ("codes of encoding one by one", "99.9 %", "", cell("tokenize", "same_codes", "{:.2%}")),
        ("tests on a GPU", "", "", cell("tests", "summary", "{}")),
    ]
    lines = [machine, ""] if machine else []
    lines += ["| | goal | computed | measured |", "|---|---|---|---|"]
    return lines + [
        f"| {what} | {goal} | {expected.get(name, '')} | {value} |"
        for what, goal, name, value in rows
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure what is asked for, and print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="for results and logs")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=15, help="for all sections together")
    parser.add_argument("--docs", type=Path, help="page whose tables are replaced")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with a small body")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tiny and options.docs:
        parser.error("--tiny measures nothing that belongs in --docs")
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.section:
        result = SECTIONS[options.section].measure(options.tiny)
        text = json.dumps(result | {"machine": machine_name("cpu" if options.tiny else "cuda")})
        (options.folder / f"{options.section}.json").write_text(text, encoding="utf-8")
        return
    run_sections(options.folder, options.only, options.tiny, options.minutes)
    paths = {name: options.folder / f"{name}.json" for name in SECTIONS}
    found = {n: json.loads(path.read_text()) for n, path in paths.items() if path.is_file()}
    machines = sorted({result["machine"] for result in found.values()})
    lines = goals_table(found, "; ".join(machines))
    print("\n".join(lines))
    if options.docs:
        put_table(options.docs, "goals table", lines)
        if "variants" in found:
            table = cuda_table(found["variants"]["lines"], found["variants"]["machine"])
            put_table(options.docs, "cuda table", table)


if __name__ == "__main__":
    main(sys.argv[1:])
