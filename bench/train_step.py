"""What a training step costs, against the native model and against the body alone.

    PYTHONPATH=. python bench/train_step.py --output results/bench/train_step.json
    PYTHONPATH=. python bench/train_step.py --device cuda --docs docs/performance.md

On a CPU, two small bodies over the same clips, LoRA r16 everywhere: (a) 512 x 8 layers with a
vocabulary of 6,840, where the heads weigh what they weigh in the 3B model; (b) 512 x 4 with the
real vocabulary of 128,256. The variants are

- ours: packed rows, heads where there are labels, the loss in chunks;
- native: the native model and its own loss over its own labels (every token and every code), on
  batches of 8 clips padded to the longest, in the order in which they come;
- native + SFT labels: the same with our labels, so that both learn the same thing;
- body: our rows through the body alone, forward and backward, without heads and loss.

A round is a step with every clip once. Times are medians over rounds that take the variants in
turn; memory is the peak resident set above the loaded model, each variant in a process of its own.

With ``--device cuda`` the body has the 3B model's shape and random weights in bfloat16, and a
micro-step of 8 rows is measured as it ships, with each part switched off, and against the native
model: positions and seconds of audio per second, shares of the card's own rate of matrix products
and of its data sheet's, host and device time, kernels and peak memory. Neither Snakemake nor
pyarrow is needed.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from memory import forget_peak, held_bytes, peak_bytes
from pages import processor_name, put_table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

if importlib.util.find_spec("pyarrow") is None:  # tables are imported below, and not used here
    for name in ("pyarrow", "pyarrow.compute", "pyarrow.parquet"):
        sys.modules[name] = mock.MagicMock(name=name)

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.data.packing.bins import best_fit_decreasing
from higgs_pipe.higgs.batch import PackedBatch, PackedRow, RowSize, collate
from higgs_pipe.higgs.codes import IGNORED, delay, target_labels
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.padding import Grid
from higgs_pipe.training.graphs import Graphs, MicroStep, difference_of_graphs, make_capture
from higgs_pipe.training.state import TrainingState

FRAME_RATE_HZ = 25
NUM_CODEBOOKS = 8
NUM_CODES = 1024
NATIVE_BATCH_SIZE = 8
TEXT_TOKENS_PER_SECOND = 3.5
NUM_PROMPT_TOKENS = 30
WIDTH_3B, LAYERS_3B = 3072, 28
SHAPES = {"a": (512, 8, 6_840), "b": (512, 4, 128_256)}  # hidden size, layers, vocabulary
VARIANTS = ("ours", "native", "native + SFT labels", "body")

Step = Callable[[], None]


class Clip(NamedTuple):
    """A sample: (S,) and (F, K)."""

    input_ids: Any
    labels: Any
    audio_input_ids: Any
    audio_labels: Any


def model_config(
    hidden_size: int, num_layers: int, vocab_size: int, head_dim: int = 64, num_key_heads: int = 2
) -> HiggsAudioV2Config:
    """The 3B model's proportions: an FFN of 8/3 of the width, a key head for several queries."""
    first_special = vocab_size - 16
    return HiggsAudioV2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 64 * 64,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // head_dim,
        num_key_value_heads=num_key_heads,
        head_dim=head_dim,
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=NUM_CODES + 2,
        audio_stream_bos_id=NUM_CODES,
        audio_stream_eos_id=NUM_CODES + 1,
        audio_token_id=first_special,
        audio_delay_token_id=first_special + 1,
        audio_bos_token_id=first_special + 2,
        bos_token_id=first_special + 3,
        eos_token_id=first_special + 4,
        pad_token_id=first_special + 5,
    )


def draw_clips(config: HiggsAudioV2Config, num_clips: int, seed: int = 0) -> list[Clip]:
    """Clips of 1 to 20 s, evenly spread, with random text and codes."""
    generator = np.random.default_rng(seed)
    audio_eos = config.pad_token_id + 1
    clips = []
    for seconds in generator.uniform(1, 20, num_clips):
        num_frames = round(seconds * FRAME_RATE_HZ)
        codes = generator.integers(0, NUM_CODES, (num_frames, NUM_CODEBOOKS), np.int16)
        frames = delay([codes], config.audio_stream_bos_id, config.audio_stream_eos_id)
        num_text = NUM_PROMPT_TOKENS + round(seconds * TEXT_TOKENS_PER_SECOND)
        text = generator.integers(0, config.audio_token_id, num_text)
        placeholders = np.full(len(frames), config.audio_token_id)
        placeholders[1 - NUM_CODEBOOKS :] = config.audio_delay_token_id
        ids = [text, [config.audio_bos_token_id], placeholders, [audio_eos, config.eos_token_id]]
        input_ids = np.concatenate(ids).astype(np.int32)
        labels = np.full_like(input_ids, IGNORED)
        supervised = [num_text, -2, -1]
        labels[supervised] = input_ids[supervised]
        clips.append(
            Clip(input_ids, labels, frames, target_labels([codes], config.audio_stream_eos_id))
        )
    return clips


def packed_batches(
    clips: Sequence[Clip], row_length: int, config: HiggsAudioV2Config
) -> list[PackedBatch]:
    """The clips in rows of at most ``row_length`` positions, a row a batch."""
    return [collate([row], config) for row in packed_rows(clips, row_length)]


def packed_rows(clips: Sequence[Clip], row_length: int) -> list[PackedRow]:
    """The clips in rows of at most ``row_length`` positions."""
    rows = []
    lengths = np.array([len(clip.input_ids) for clip in clips], np.int32)
    for chosen in best_fit_decreasing(lengths, row_length):
        parts = zip(*(clips[i] for i in chosen), strict=True)
        input_ids, labels, frames, frame_labels = (np.concatenate(part) for part in parts)
        ids = tuple(str(i) for i in chosen)
        rows.append(PackedRow(input_ids, labels, frames, frame_labels, ids, lengths[chosen]))
    return rows


def native_batches(
    clips: Sequence[Clip], config: HiggsAudioV2Config, sft_labels: bool
) -> list[dict[str, Tensor]]:
    """Batches of 8 clips padded to the longest, in the order in which they come."""
    batches = []
    for start in range(0, len(clips), NATIVE_BATCH_SIZE):
        chosen = clips[start : start + NATIVE_BATCH_SIZE]

        def padded(name: str, value: int, clips: Sequence[Clip] = chosen) -> Tensor:
            arrays = [torch.from_numpy(getattr(clip, name).astype(np.int64)) for clip in clips]
            return pad_sequence(arrays, batch_first=True, padding_value=value)

        input_ids = padded("input_ids", config.pad_token_id)
        frames = padded("audio_input_ids", IGNORED)
        is_frame = frames[..., 0] != IGNORED
        frames = frames.masked_fill(~is_frame[..., None], config.audio_stream_eos_id)
        is_token = input_ids != config.pad_token_id
        if sft_labels:
            labels, audio_labels = padded("labels", IGNORED), padded("audio_labels", IGNORED)
        else:  # every token but the placeholders, every code
            is_text = is_token & (input_ids != config.audio_token_id)
            labels = input_ids.masked_fill(~is_text, IGNORED)
            audio_labels = frames.masked_fill(frames >= NUM_CODES, IGNORED)
        batches.append(
            {
                "input_ids": input_ids,
                "attention_mask": is_token.long(),
                "audio_input_ids": frames,
                "audio_input_ids_mask": is_frame,
                "labels": labels,
                "audio_labels": audio_labels,
            }
        )
    return batches


def build_model(config: HiggsAudioV2Config, dropout: float) -> Any:
    """A random base with LoRA r16, ready to train, on the default device in the default type."""
    torch.manual_seed(0)
    base = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).requires_grad_(False)
    return add_lora(base, LoraSettings(r=16, dropout=dropout), seed=0).train()


def build_round(variant: str, shape: str, options: argparse.Namespace) -> Step:
    """A training step with each clip once."""
    config = model_config(*SHAPES[shape])
    clips = draw_clips(config, options.num_clips)
    adapted = build_model(config, options.dropout)
    if not variant.startswith("native"):
        packed = packed_batches(clips, options.row_length, config)
        return packed_round(DualLossModel(adapted), packed, with_loss=variant == "ours")
    padded = native_batches(clips, config, sft_labels=variant != "native")

    def backward(batch: dict[str, Tensor]) -> None:
        adapted(**batch, use_cache=False).loss.backward()

    return with_optimizer(adapted, backward, padded)


def packed_round(
    model: DualLossModel, batches: Sequence[PackedBatch], with_loss: bool = True
) -> Step:
    """Ours, or the body alone."""
    weights = [label_weights(batch.label_counts()).to(batch.input_ids.device) for batch in batches]

    def backward(item: tuple[PackedBatch, Tensor]) -> None:
        if with_loss:
            model(*item, predict=False)[0].objective.backward()
        else:
            hidden = model.backbone(item[0])
            torch.autograd.backward(hidden, torch.ones_like(hidden))

    return with_optimizer(model, backward, list(zip(batches, weights, strict=True)))


def with_optimizer(model: Any, backward: Callable[[Any], None], batches: Sequence[Any]) -> Step:
    """A round: forward, backward and AdamW for each batch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        for batch in batches:
            backward(batch)
            optimizer.step()
            optimizer.zero_grad()

    return step


def num_real_tokens(clips: Sequence[Clip]) -> int:
    """Tokens, padding left out."""
    return sum(len(clip.input_ids) for clip in clips)


def seconds_a_round(shape: str, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each variant, taken in turn."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rounds = {variant: build_round(variant, shape, options) for variant in VARIANTS}
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for repetition in range(options.repetitions + 1):
        for variant, step in rounds.items():
            started = clock()
            step()
            if repetition:  # the first warms up
                found[variant].append(clock() - started)
    return {variant: statistics.median(seconds) for variant, seconds in found.items()}


def peak_megabytes(variant: str, shape: str, options: argparse.Namespace) -> float:
    """Peak resident memory of a round above the model, in this process (Linux)."""
    step = build_round(variant, shape, options)
    gc.collect()
    forget_peak()
    before = held_bytes()
    step()
    return (peak_bytes() - before) / 1e6


def peak_megabytes_apart(variant: str, shape: str, arguments: Sequence[str]) -> float:
    """:func:`peak_megabytes` in a process of its own."""
    measured = subprocess.run(
        [sys.executable, __file__, *arguments, "--measure-memory", variant, shape],
        # Return freed blocks to the system, so that the resident set is what is in use.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(measured.stdout.splitlines()[-1])


def measure_on_cpu(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Both shapes, all variants."""
    result: dict[str, Any] = {}
    for shape in options.shapes:
        seconds = seconds_a_round(shape, options)
        memory = {v: peak_megabytes_apart(v, shape, arguments) for v in VARIANTS}
        tokens = num_real_tokens(draw_clips(model_config(*SHAPES[shape]), options.num_clips))
        result[shape] = {
            "tokens_per_second": {v: tokens / seconds[v] for v in VARIANTS},
            "peak_megabytes": memory,
            "speed_over_native": seconds["native"] / seconds["ours"],
            "speed_over_native_sft_labels": seconds["native + SFT labels"] / seconds["ours"],
            "memory_over_native": memory["ours"] / memory["native"],
            "time_over_body": seconds["ours"] / seconds["body"],
        }
    return result


def cpu_table(result: dict[str, Any], machine: str) -> list[str]:
    """The result as lines of Markdown."""
    lines = [
        machine,
        "",
        "| body | variant | real tokens/s | peak above the model | speed of ours over it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for shape, found in result.items():
        hidden_size, num_layers, vocab_size = SHAPES[shape]
        for variant in VARIANTS:
            speed = found["tokens_per_second"]
            lines.append(
                f"| ({shape}) {hidden_size} x {num_layers}, vocabulary {vocab_size:,} | {variant} "
                f"| {speed[variant]:,.0f} | {found['peak_megabytes'][variant]:,.0f} MB "
                f"| {speed['ours'] / speed[variant]:.2f} |"
            )
    return lines


class Variant(NamedTuple):
    """A way to take a micro-step: what differs from training as it ships."""

    name: str
    kind: str = "ours"  # or native, or body
    num_rows: int = 8  # of 2048 positions: what training plans on a large card
    is_compiled: bool = True
    dropout: float = LoraSettings().dropout
    is_recomputed: bool = False
    is_graphed: bool = False  # train.cuda_graphs


GPU_VARIANTS = (
    Variant("native, batches of 8 clips padded, our labels", kind="native", is_compiled=False),
    Variant("body alone", kind="body"),
    Variant("ours, as shipped"),
    Variant("not compiled", is_compiled=False),
    Variant("no LoRA dropout", dropout=0.0),
    Variant("every layer recomputed", is_recomputed=True),
    Variant("one CUDA graph", is_graphed=True),
    Variant("one row at a time", num_rows=1),
    Variant("one row at a time, one CUDA graph", num_rows=1, is_graphed=True),
    Variant("one row at a time, not compiled", num_rows=1, is_compiled=False),
    Variant(
        "one row at a time, not compiled, one CUDA graph",
        num_rows=1,
        is_compiled=False,
        is_graphed=True,
    ),
)
DATA_SHEET_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
ROW_LENGTH_ON_GPU = 2048


def measure_variants(
    options: argparse.Namespace,
    config: HiggsAudioV2Config,
    device: torch.device,
    variants: Sequence[Variant] = GPU_VARIANTS,
) -> list[dict[str, Any]]:
    """Measure forward and backward of a micro-step of each variant.

    On CUDA in bfloat16, with kernels, device time and peak memory; elsewhere these are null.
    """
    if device.type == "cuda":
        torch.set_default_dtype(torch.bfloat16)
    card_flops = matrix_product_flops() if device.type == "cuda" else None
    sheet = [f for name, f in DATA_SHEET_FLOPS.items() if name in machine_name(device.type)]
    clips = draw_clips(config, options.num_clips)
    found = []
    for variant in variants:
        with device:
            adapted = build_model(config, variant.dropout)
        work, num_positions, num_frames = micro_step(variant, adapted, clips, config, device)
        line: dict[str, Any] = {"variant": variant.name, "positions": num_positions}
        try:
            line |= timed_micro_step(work, device, options.repetitions)
        except torch.cuda.OutOfMemoryError:
            line["seconds"] = None
        if line["seconds"] is not None:
            line["positions_per_second"] = num_positions / line["seconds"]
            line["audio_seconds_per_second"] = num_frames / FRAME_RATE_HZ / line["seconds"]
            flops = line["positions_per_second"] * 4 * num_active_weights(config)
            line["share_of_card"] = flops / card_flops if card_flops else None
            line["share_of_data_sheet"] = flops / sheet[0] if card_flops and sheet else None
        found.append(line)
        del adapted, work
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def micro_step(
    variant: Variant,
    adapted: Any,
    clips: Sequence[Clip],
    config: HiggsAudioV2Config,
    device: torch.device,
) -> tuple[Step, int, int]:
    """Build a micro-step: (forward and backward, its positions, its codec frames)."""
    if variant.kind == "native":
        [padded] = native_batches(clips[:NATIVE_BATCH_SIZE], config, sft_labels=True)
        on_device = {name: tensor.to(device) for name, tensor in padded.items()}

        def native() -> None:
            adapted(**on_device, use_cache=False).loss.backward()
            adapted.zero_grad()

        chosen = clips[:NATIVE_BATCH_SIZE]
        return native, num_real_tokens(chosen), sum(len(c.audio_input_ids) for c in chosen)
    rows = packed_rows(clips, ROW_LENGTH_ON_GPU)[: variant.num_rows]
    # Dropout is drawn from seeds, as in training, without a generator.
    batch = collate(rows, config, dropout_seeds=range(len(rows))).to(device)
    num_positions, num_frames = batch.input_ids.shape[1], batch.audio_input_ids.shape[1]
    model = DualLossModel(adapted).train()
    model.recomputed_layers = model.num_layers if variant.is_recomputed else 0
    if variant.is_compiled:
        model.compile_layers()
    weights = label_weights(batch.label_counts())
    if variant.is_graphed:
        grid = Grid.of_rows([size_of(row) for row in rows], len(rows))
        batch = grid.collate(rows, config, dropout_seeds=range(len(rows))).to(device)
        return graphed_micro_step(model, batch, weights), num_positions, num_frames

    def ours() -> None:
        if variant.kind == "body":
            hidden = model.backbone(batch)
            torch.autograd.backward(hidden, torch.ones_like(hidden))
        else:
            model(batch, weights, predict=False)[0].objective.backward()
        model.zero_grad()

    return ours, num_positions, num_frames


def size_of(row: PackedRow) -> RowSize:
    """What the table of packed rows counts of a row."""
    return RowSize(
        num_positions=len(row.labels),
        num_samples=len(row.sample_lengths),
        longest_sample=int(row.sample_lengths.max()),
        num_text_labels=int((row.labels != IGNORED).sum()),
    )


def graphed_micro_step(model: DualLossModel, batch: PackedBatch, weights: Tensor) -> Step:
    """Build the micro-step of ``train.cuda_graphs``; on a CPU it is padded, and no graph."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    state = TrainingState(parameters, optimizer, schedule)

    def plain(batch: PackedBatch, weights: Tensor) -> Tensor:
        sums, _ = model(batch, weights, predict=False)
        state.add_gradients(sums.objective)
        loss: Tensor = sums.total().loss.double()
        return loss

    run: MicroStep = plain
    if weights.is_cuda:
        graphs = Graphs(plain, make_capture(), weights.device)
        if fault := difference_of_graphs(graphs, state, batch, weights):
            raise SystemExit(f"a CUDA graph is not what a plain micro-step is: {fault}")
        run = graphs

    def graphed() -> None:
        run(batch, weights)
        state.clear_gradients()

    return graphed


def timed_micro_step(work: Step, device: torch.device, repetitions: int) -> dict[str, Any]:
    """Median seconds; on CUDA also host and device seconds, kernels, and peak with the model.

    Host seconds run until the last kernel is queued.
    """
    is_cuda = device.type == "cuda"

    def wait() -> None:
        if is_cuda:
            torch.cuda.synchronize()

    for _ in range(2):  # compiles, and fills caches
        work()
    wait()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    whole, host = [], []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        host.append(time.perf_counter() - started)
        wait()
        whole.append(time.perf_counter() - started)
    found: dict[str, Any] = {"seconds": statistics.median(whole), "host_seconds": None}
    found |= {"device_seconds": None, "kernels": None, "peak_gigabytes": None}
    if is_cuda:
        found["host_seconds"] = statistics.median(host)
        found["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            wait()
        events: Any = profile.events()
        on_device = [event for event in events if "CUDA" in str(event.device_type)]
        found["kernels"] = len(on_device)
        found["device_seconds"] = sum(e.time_range.elapsed_us() for e in on_device) / 1e6
    return found


def num_active_weights(config: HiggsAudioV2Config) -> int:
    """Weights of matrix products that a token passes: one FFN of the two, and the audio head.

    Forward and the gradient of the activations take 2 operations each a weight; the base's own
    gradients are not computed, and what checkpointing computes again does not count.
    """
    attention = 2 * config.hidden_size * config.head_dim
    attention *= config.num_attention_heads + config.num_key_value_heads
    ffn = 3 * config.hidden_size * config.intermediate_size
    head = config.hidden_size * config.num_codebooks * config.codebook_size
    return int(config.num_hidden_layers * (attention + ffn) + head)


def matrix_product_flops(size: int = 8192, repetitions: int = 20) -> float:
    """Operations per second that this card reaches in a large product of bfloat16 matrices."""
    matrix = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        matrix @ matrix
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repetitions):
        matrix @ matrix
    torch.cuda.synchronize()
    return 2 * size**3 * repetitions / (time.perf_counter() - started)


def cuda_table(result: Sequence[dict[str, Any]], machine: str) -> list[str]:
    """The result as lines of Markdown; an empty cell was not measured."""
    lines = [
        machine,
        "",
        "| micro-step | positions | positions/s | audio s/s | of the card's rate "
        "| of the data sheet's | host | device | kernels | peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    formats = {
        "positions_per_second": "{:,.0f}",
        "audio_seconds_per_second": "{:,.0f}",
        "share_of_card": "{:.0%}",
        "share_of_data_sheet": "{:.0%}",
        "host_seconds": "{:.3f} s",
        "device_seconds": "{:.3f} s",
        "kernels": "{:,}",
        "peak_gigabytes": "{:.1f} GB",
    }
    for line in result:
        values = [(text, line.get(key)) for key, text in formats.items()]
        cells = ["" if value is None else text.format(value) for text, value in values]
        if line["seconds"] is None:
            cells[0] = "does not fit"
        lines.append(f"| {line['variant']} | {line['positions']:,} | {' | '.join(cells)} |")
    return lines


def machine_name(device: str) -> str:
    """What the measurement ran on, and when."""
    software = f"PyTorch {torch.__version__}, {date.today():%d %B %Y}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {software}"
    cores = f"{os.cpu_count()} cores, threads: {torch.get_num_threads()}"
    return f"{processor_name()}, {cores}, {software}"


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--num-clips", type=int, help="32, or 64 on CUDA to fill 8 rows")
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA, in all variants")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu on a machine that is shared"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.num_clips = options.num_clips or (64 if options.device == "cuda" else 32)
    if options.measure_memory:
        variant, shape = options.measure_memory
        print(peak_megabytes(variant, shape, options))
        return
    machine = machine_name(options.device)
    result: Any
    if options.device == "cuda":
        config = model_config(WIDTH_3B, LAYERS_3B, 128_256, head_dim=128, num_key_heads=8)
        result = measure_variants(options, config, torch.device("cuda"))
        lines = cuda_table(result, machine)
    else:
        result = measure_on_cpu(options, arguments)
        lines = cpu_table(result, machine)
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "dropout": options.dropout, "result": result}
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.docs:
        put_table(options.docs, f"{options.device} table", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
