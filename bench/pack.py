"""Packing: samples a second against the native processor, growth, memory and fill.

The corpus is synthetic: texts of ordinary length, random codes, ten speakers, half the samples
cloning. The processor renders, expands and labels one conversation after the other and writes
nothing. Against it stand the stage's samples up to the same point and packed ("built"), and the
whole stage from the tables of clips and codes to the written rows. These take turns; told are
medians. Each size runs in a process of its own, for its time and its peak memory.

    python bench/pack.py --output results/bench/pack.json
    python bench/pack.py --sizes 10000 100000 1000000 --output results/bench/pack.json
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from memory import peak_bytes

FRAME_RATE_HZ, HOP_LENGTH, NUM_CODEBOOKS = 25, 960, 8
CLIPS_PER_SHARD = 50_000
TEXT = "This is sentence number {}, and it says something of ordinary length."


def write_corpus(directory: Path, num_clips: int, min_seconds: float, max_seconds: float) -> int:
    """The tables of clips and codes of ``num_clips`` clips; returns the number of shards."""
    from higgs_pipe.data.arrow import to_arrow
    from higgs_pipe.data.specs import CLIPS, CodecInfo, codes_spec
    from higgs_pipe.data.tables import table_writer

    rng = np.random.default_rng(0)
    info = CodecInfo(
        "random", None, "0", NUM_CODEBOOKS, 1024, FRAME_RATE_HZ, 24_000, HOP_LENGTH, "float32"
    )
    spec = codes_spec(NUM_CODEBOOKS)
    starts = range(0, num_clips, CLIPS_PER_SHARD)
    with table_writer(directory / "clips.parquet", CLIPS) as clips:
        for shard, start in enumerate(starts):
            numbers = range(start, min(start + CLIPS_PER_SHARD, num_clips))
            clips.write_table(to_arrow(CLIPS, [clip(n) for n in numbers], clips.schema))
            path = directory / f"shard-{shard:05d}.parquet"
            with table_writer(path, spec, info.as_metadata()) as codes:
                for part in np.array_split(np.arange(numbers.start, numbers.stop), 50):
                    num_frames = rng.uniform(min_seconds, max_seconds, len(part)) * FRAME_RATE_HZ
                    rows = [
                        {
                            "clip_id": f"clip-{n:08d}",
                            "codes": rng.integers(0, 1024, (int(t), NUM_CODEBOOKS), np.int16),
                            "num_frames": int(t),
                            "audio_sha256": "0" * 64,
                        }
                        for n, t in zip(part, num_frames, strict=True)
                    ]
                    codes.write_table(to_arrow(spec, rows, codes.schema))
    return len(starts)


def clip(number: int) -> dict[str, Any]:
    """A row of the table of clips; every fiftieth is held out."""
    from higgs_pipe.data.specs import CLIPS

    row: dict[str, Any] = dict.fromkeys(column.name for column in CLIPS.columns if column.nullable)
    required = [column for column in CLIPS.columns if not column.nullable]
    row |= {c.name: "" if pa.types.is_string(c.type) else 0 for c in required}
    return row | {
        "clip_id": f"clip-{number:08d}",
        "audio_path": f"recordings/{number:08d}.wav",
        "manifest": "manifest.jsonl",
        "line": number + 1,
        "text": TEXT.format(number),
        "speaker": f"speaker-{number % 10}",
        "language": "en",
        "scene": None if number % 4 else "Audio is recorded from a quiet room.",
        "split": "train" if number % 50 else "eval",
        "audio_sha256": f"{number:064x}",
        "pcm_sha256": f"{number:064x}",
    }


def pack(directory: Path, base_model: str, num_shards: int) -> dict[str, Any]:
    """Run the stage in this process, which does nothing else."""
    from higgs_pipe import pack as stage
    from higgs_pipe.config.stages import Pretrained
    from higgs_pipe.higgs.v2.renderer import ChatRenderer

    config = directory / "pack.json"
    config.write_text(json.dumps({"base_model": base_model, "pack": {"max_tokens": 2048}}))
    # What is loaded once is not part of the time.
    ChatRenderer(Pretrained("base_model", base_model))
    before = peak_bytes()
    start, cpu_start = time.perf_counter(), time.process_time()
    rows, packing = directory / "rows", directory / "rows" / "packing.json"
    clips = directory / "clips.parquet"
    train_rows, eval_rows = rows / "train.parquet", rows / "eval.parquet"
    gc.freeze()  # as the command line does
    stage.run(config, clips, directory, num_shards, train_rows, eval_rows, packing)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    summary = json.loads(packing.read_text())
    counts = [summary[split] for split in ("train", "eval")]
    return {
        "num_samples": sum(part["num_samples"] for part in counts),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "num_rows": sum(part["num_rows"] for part in counts),
        "fill": summary["train"]["fill"],
    }


def build(directory: Path, base_model: str, num_shards: int) -> dict[str, Any]:
    """As :func:`pack`, to the rows as Arrow tables: nothing is encoded and written."""
    from higgs_pipe.config.settings import PackConfig
    from higgs_pipe.config.stages import Pretrained
    from higgs_pipe.data.packing.clips import Clips
    from higgs_pipe.data.packing.codes_store import CodesStore
    from higgs_pipe.data.spool import Spool
    from higgs_pipe.higgs.packer import Packer
    from higgs_pipe.higgs.v2.renderer import ChatRenderer

    renderer = ChatRenderer(Pretrained("base_model", base_model))
    gc.freeze()  # as the command line does
    start, cpu_start = time.perf_counter(), time.process_time()
    clips = Clips.read(directory / "clips.parquet")
    shards = [directory / f"shard-{shard:05d}.parquet" for shard in range(num_shards)]
    num_samples = 0
    with CodesStore(shards, clips.ids, directory) as codes, Spool(directory, np.int32) as spool:
        packer = Packer(clips, codes, renderer, PackConfig())
        packer.plan("train", spool)
        for group in packer.row_groups(spool):
            num_samples += len(pc.list_flatten(group.column("sample_lengths")))
    return {
        "num_samples": num_samples,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
    }


def measured(
    what: str, base_model: str, num_clips: int, min_seconds: float, max_seconds: float
) -> dict[str, Any]:
    """:func:`pack` or :func:`build` on a corpus of its own, in a fresh process."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        num_shards = write_corpus(Path(name), num_clips, min_seconds, max_seconds)
        command = [sys.executable, __file__, "--in-child", what, name, str(num_shards)]
        options = ["--base-model", base_model]
        finished = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return found


def native(
    base_model: str, num_samples: int, min_seconds: float, max_seconds: float, free_codec: bool
) -> dict[str, Any]:
    """The processor's own path, conversation by conversation, half of them cloning.

    With ``free_codec`` the codec's work is replaced by codes that are there already.
    """
    import torch
    from transformers import HiggsAudioV2Processor

    processor = HiggsAudioV2Processor.from_pretrained(base_model)
    rng = np.random.default_rng(1)

    def codes_of(input_values: Any, **_: Any) -> SimpleNamespace:
        num_frames = input_values.shape[-1] // HOP_LENGTH
        return SimpleNamespace(audio_codes=ready[:, :, :num_frames])

    ready = torch.from_numpy(rng.integers(0, 1024, (1, NUM_CODEBOOKS, 1000)))
    if free_codec:
        processor.audio_tokenizer.encode = codes_of
    conversations = [
        native_conversation(number, rng, min_seconds, max_seconds) for number in range(num_samples)
    ]

    def process(messages: list[dict[str, Any]]) -> None:
        processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "output_labels": True},
        )

    with torch.inference_mode():
        process(conversations[0])  # what happens once is no part of the time
        start, cpu_start = time.perf_counter(), time.process_time()
        for messages in conversations:
            process(messages)
    return {
        "num_samples": num_samples,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
    }


def native_conversation(
    number: int, rng: np.random.Generator, min_seconds: float, max_seconds: float
) -> list[dict[str, Any]]:
    """The messages of a sample, with waveforms."""

    def turns(text_number: int) -> list[dict[str, Any]]:
        num_samples = HOP_LENGTH * int(rng.uniform(min_seconds, max_seconds) * FRAME_RATE_HZ)
        waveform = rng.normal(0, 0.1, num_samples).astype(np.float32)
        return [
            {"role": "user", "content": [{"type": "text", "text": TEXT.format(text_number)}]},
            {"role": "assistant", "content": [{"type": "audio", "audio": waveform}]},
        ]

    prompt = [{"type": "text", "text": "Generate audio following instruction."}]
    scene = [{"type": "text", "text": "Audio is recorded from a quiet room."}]
    messages = [{"role": "system", "content": prompt}]
    if number % 4 == 0:
        messages.append({"role": "scene", "content": scene})
    if number % 2:
        messages += turns(number + 1)
    return messages + turns(number)


def main() -> None:
    """Measure, print and write what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--base-model", help="a checkpoint; without it a miniature is built")
    parser.add_argument("--num-samples", type=int, default=50_000, help="of 1 to 20 seconds")
    parser.add_argument("--num-native-samples", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--in-child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_child:
        what, directory, num_shards = options.in_child
        run = {"pack": pack, "build": build}[what]
        print(json.dumps(run(Path(directory), options.base_model, int(num_shards))))
        return
    with tempfile.TemporaryDirectory() as name:
        base_model = options.base_model
        if base_model is None:
            from higgs_pipe.higgs.v2 import miniature

            base_model = f"{name}/tiny-higgs"
            miniature.build(Path(base_model), hidden_size=64)
        results = measure(base_model, options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def measure(base_model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures, printed as they come."""
    speech = {"min_seconds": 1.0, "max_seconds": 20.0}
    num_native = options.num_native_samples
    runs: dict[str, list[dict[str, Any]]] = {
        "processor with its codec": [native(base_model, num_native, **speech, free_codec=False)]
    }
    for _ in range(options.repetitions):
        for name, found in (
            (
                "processor with a free codec",
                native(base_model, num_native, **speech, free_codec=True),
            ),
            ("built", measured("build", base_model, options.num_samples, **speech)),
            ("stage", measured("pack", base_model, options.num_samples, **speech)),
        ):
            runs.setdefault(name, []).append(found)
    medians = {name: median_run(repeated) for name, repeated in runs.items()}
    for name, run in medians.items():
        print(f"{name}: {pace(run)}")
    print(f"clips of 1 to 20 s, fill {medians['stage']['fill']:.2%}")
    ratios = {
        f"{ours} over {name}": ratio(medians[ours], medians[name])["seconds"]
        for ours in ("built", "stage")
        for name in medians
        if name.startswith("processor")
    }
    for name, times in ratios.items():
        print(f"{name}: {times:.1f}x")
    short = {"min_seconds": 1.0, "max_seconds": 3.0}
    growth = [measured("pack", base_model, size, **short) for size in options.sizes]
    for found in growth:
        growth_ratio = 1 / ratio(found, growth[0])["cpu_seconds"]
        print(
            f"{found['num_samples']:,} clips of 1 to 3 s: {found['seconds']:.1f} s, {pace(found)}, "
            f"{growth_ratio:.2f}x the processor time a sample of the first, "
            f"peak {found['peak_bytes'] / 1e6:,.0f} MB "
            f"({found['peak_bytes_before'] / 1e6:,.0f} MB before), fill {found['fill']:.2%}"
        )
    return {
        "medians": medians,
        "runs": runs,
        "ratios": ratios,
        "growth": growth,
    }


def median_run(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of median pace."""
    return sorted(runs, key=lambda run: run["seconds"] / run["num_samples"])[len(runs) // 2]


def pace(found: dict[str, Any]) -> str:
    """Samples a second, and processor time a sample."""
    per_second = found["num_samples"] / found["seconds"]
    return (
        f"{per_second:,.0f} samples/s ({1e6 * found['cpu_seconds'] / found['num_samples']:,.0f} us)"
    )


def ratio(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How many times as many samples we make in a second, and in a second of processor time."""
    return {
        key: (other[key] / other["num_samples"]) / (ours[key] / ours["num_samples"])
        for key in ("seconds", "cpu_seconds")
    }


if __name__ == "__main__":
    main()
