"""What tokenization costs, against the processor's own path and against the bare codec.

    PYTHONPATH=. python bench/tokenize_audio.py --output results/bench/tokenize_audio.json
    PYTHONPATH=. python bench/tokenize_audio.py --device cuda

The codec has the real one's size (24 kHz, hop 960, 8 codebooks, HuBERT base, 200 M parameters) and
random weights that make codes depend on the audio, or is the checkpoint that ``--codec`` names. The
clips are FLAC files of 5 to 20 s. Variants:

- stage: what the stage does between loading the codec and writing the table;
- processor: ``HiggsAudioV2Processor`` on one decoded clip at a time, as its users call it;
- codec: ``codec.encode`` on the stage's own batches, decoded beforehand.

On a CPU every variant has one thread, times are medians over rounds that take the variants in
turn, and memory is the peak resident set above the loaded codec, each variant in a process of its
own. Two jobs at once are compared with one.

With ``--device cuda`` it prints audio seconds a second and peak memory for each number type and
batch size, and how many codes agree with float32, codebook by codebook.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from memory import forget_peak, held_bytes, peak_bytes
from transformers import (
    DacConfig,
    DacFeatureExtractor,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerConfig,
    HiggsAudioV2TokenizerModel,
    HubertConfig,
)

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.audio import decode
from higgs_pipe.data.files import write_json
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.data.spool import Spool
from higgs_pipe.higgs.codec import encode, load_codec
from higgs_pipe.higgs.miniature_codec import calibrate_codebooks
from higgs_pipe.higgs.v2.miniature import CHAT_TEMPLATE, build_tokenizer
from higgs_pipe.tokenize_audio import (
    batch_seconds,
    decode_ahead,
    encode_clips,
    equal_length_batches,
)
from higgs_pipe.training.card import card_of

SAMPLE_RATE_HZ = 24_000
HOP_LENGTH = 960
RATIOS = [8, 5, 4, 2, 3]  # their product is the hop
GPU_BATCH_SECONDS = (20.0, 60.0, 120.0, 240.0)
VARIANTS = ("stage", "processor", "codec")

Clip = dict[str, Any]


def build_codec(directory: Path) -> None:
    """A random codec of the published one's size."""
    torch.manual_seed(0)
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2],
        acoustic_model_config=DacConfig(
            encoder_hidden_size=64,
            decoder_hidden_size=1024,
            hidden_size=256,
            downsampling_ratios=RATIOS,
            upsampling_ratios=RATIOS,
        ),
        semantic_model_config=HubertConfig(mask_time_prob=0.0),
    )
    codec = HiggsAudioV2TokenizerModel(config).eval()
    calibrate_codebooks(codec, seed=0)
    codec.save_pretrained(directory)


def write_clips(directory: Path, options: argparse.Namespace) -> list[Clip]:
    """FLAC files of random lengths in whole frames: swelling tones in noise."""
    random = np.random.default_rng(0)
    clips = []
    for i in range(options.num_clips):
        seconds = options.max_clip_seconds
        if i > 0:  # the first is the longest, for the peak of memory
            seconds = random.uniform(options.min_clip_seconds, options.max_clip_seconds)
        num_samples = round(seconds * SAMPLE_RATE_HZ / HOP_LENGTH) * HOP_LENGTH
        phase = np.cumsum(2 * np.pi * random.uniform(80, 400, num_samples) / SAMPLE_RATE_HZ)
        samples = 0.2 * np.sin(phase) + 0.05 * random.normal(size=num_samples)
        path = directory / f"clip-{i:03d}.flac"
        sf.write(path, samples.clip(-1, 1), SAMPLE_RATE_HZ)
        clips.append(
            {
                "clip_id": path.stem,
                "audio_path": str(path),
                "start_seconds": None,
                "end_seconds": None,
                "channel": None,
                "audio_sha256": sha256_of_file(path),
                "duration_seconds": num_samples / SAMPLE_RATE_HZ,
            }
        )
    return clips


def variant_on_cpu(name: str, codec: str, clips: list[Clip]) -> Callable[[], dict[str, Any]]:
    """A function that encodes all clips once and returns their codes (T, K) by id."""
    torch.set_num_threads(1)
    if name == "processor":
        processor = HiggsAudioV2Processor(
            feature_extractor=DacFeatureExtractor(sampling_rate=SAMPLE_RATE_HZ, hop_length=1),
            tokenizer=build_tokenizer(),
            audio_tokenizer=_resident(HiggsAudioV2TokenizerModel.from_pretrained(codec)),
            chat_template=CHAT_TEMPLATE,
        )
        return lambda: {clip["clip_id"]: _through_processor(processor, clip) for clip in clips}
    model, info = load_codec(Pretrained("codec", codec), torch.device("cpu"))
    _resident(model)
    if name == "stage":
        rows = partial(rows_of_stage, clips, model, info, 0.0, num_threads=1)
        return lambda: {row["clip_id"]: row["codes"] for row in rows()}
    batches = list(
        equal_length_batches(decode_ahead(clips, info, float("inf"), num_threads=1), info, 0.0)
    )
    waveforms = [
        ([clip["clip_id"] for clip, _ in batch], torch.stack([waveform for _, waveform in batch]))
        for batch in batches
    ]
    return lambda: {
        clip_id: codes
        for clip_ids, stacked in waveforms
        for clip_id, codes in zip(clip_ids, encode(model, stacked, info), strict=True)
    }


def _resident(model: torch.nn.Module) -> torch.nn.Module:
    """The model, its weights read: they are mapped from their file, and count as loaded."""
    for weight in model.parameters():
        weight.sum()
    return model


def _through_processor(processor: HiggsAudioV2Processor, clip: Clip) -> Any:
    samples = decode(Path(clip["audio_path"])).samples.mean(axis=1)
    inputs = processor(
        text="<|AUDIO_OUT|>", audio=samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    )
    frames = inputs["audio_input_ids"][0]  # (T + 2 + K - 1, K), delayed
    num_codebooks = frames.shape[1]
    num_frames = len(frames) - 2 - (num_codebooks - 1)
    return np.stack(
        [frames[1 + k : 1 + k + num_frames, k].numpy() for k in range(num_codebooks)], axis=1
    )  # (T, K)


def timed(encode_all: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    encode_all()
    return time.perf_counter() - start


def cpu_timed(encode_all: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, and seconds of CPU, which neighbours on the machine change less."""
    start = time.process_time()
    seconds = timed(encode_all)
    return seconds, time.process_time() - start


def compare_on_cpu(codec: str, clips: list[Clip], num_rounds: int) -> dict[str, Any]:
    """Speed of the variants in turn, and whether they give the same codes."""
    variants = {name: variant_on_cpu(name, codec, clips) for name in VARIANTS}
    codes = {name: encode_all() for name, encode_all in variants.items()}  # and a warm-up
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(num_rounds):
        for name, encode_all in variants.items():
            wall, cpu = cpu_timed(encode_all)
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
    audio_seconds = sum(clip["duration_seconds"] for clip in clips)
    return {
        "audio_seconds_per_second": {
            name: audio_seconds / statistics.median(times) for name, times in seconds.items()
        },
        "speed_stage_to_processor": median_ratio(seconds["processor"], seconds["stage"]),
        "cpu_speed_stage_to_processor": median_ratio(
            cpu_seconds["processor"], cpu_seconds["stage"]
        ),
        "decoded_seconds_per_cpu_second": decoding_speed(codec, clips),
        "time_stage_to_codec": median_ratio(seconds["stage"], seconds["codec"]),
        "cpu_time_stage_to_codec": median_ratio(cpu_seconds["stage"], cpu_seconds["codec"]),
        "num_codes": sum(c.size for c in codes["stage"].values()),
        "num_codes_unlike_processor": sum(
            int((codes["stage"][i] != codes["processor"][i]).sum()) for i in codes["stage"]
        ),
    }


def decoding_speed(codec: str, clips: list[Clip]) -> float:
    """Seconds of audio that a core reads, decodes, hashes and resamples in a second."""
    _, info = load_codec(Pretrained("codec", codec), torch.device("cpu"))

    def decode_all() -> None:
        for _ in decode_ahead(clips, info, float("inf"), num_threads=1):
            pass

    decode_all()
    _, cpu_seconds = cpu_timed(decode_all)
    return float(sum(clip["duration_seconds"] for clip in clips) / cpu_seconds)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of one variant's figure over the other's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_bytes_above_model(name: str, codec: str, clips: list[Clip]) -> int:
    """Of one variant, in a process of its own."""
    job = start_job(name, codec, clips)
    (report,) = run_jobs([job])
    finish_jobs([job])
    return int(report["peak_bytes"])


def scaling(codec: str, clips: list[Clip], num_rounds: int) -> float:
    """How much more two jobs of one thread each do in the time of one."""
    jobs = [start_job("stage", codec, clips) for _ in range(2)]
    ratios: list[float] = []
    for _ in range(num_rounds):
        alone = run_jobs(jobs[:1])[0]["seconds"]
        together = max(report["seconds"] for report in run_jobs(jobs))
        ratios.append(2 * alone / together)
    finish_jobs(jobs)
    return statistics.median(ratios)


def start_job(name: str, codec: str, clips: list[Clip]) -> "subprocess.Popen[str]":
    """A process that has loaded the codec and waits for a line before it encodes."""
    request = json.dumps({"name": name, "codec": codec, "clips": clips})
    command = [sys.executable, __file__, "--job", request]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _line(job)
    return job


def run_jobs(jobs: Sequence["subprocess.Popen[str]"]) -> list[dict[str, Any]]:
    """Let these encode their clips once, at the same time."""
    for job in jobs:
        print("go", file=job.stdin, flush=True)
    return [json.loads(_line(job)) for job in jobs]


def finish_jobs(jobs: Sequence["subprocess.Popen[str]"]) -> None:
    """End jobs by ending their input."""
    for job in jobs:
        job.communicate()


def _line(job: "subprocess.Popen[str]") -> str:
    return next(job.stdout or iter([]))


def serve(request: dict[str, Any]) -> None:
    """The other end of :func:`start_job`."""
    encode_all = variant_on_cpu(request["name"], request["codec"], request["clips"])
    print("ready", flush=True)
    for _ in sys.stdin:
        forget_peak()
        held_before = held_bytes()
        seconds = timed(encode_all)
        report = {"seconds": seconds, "peak_bytes": peak_bytes() - held_before}
        print(json.dumps(report), flush=True)


def compare_on_gpu(
    codec: str, clips: list[Clip], num_rounds: int, device: torch.device
) -> dict[str, Any]:
    """Speed and memory by number type and batch, of the stage, and the codes that agree.

    ``same_codes`` is the share of the stage's codes, float32 in the batches that memory allows,
    that equal those of encoding one by one. ``first_pass`` is the speed of the stage before the
    codec has seen the lengths of these clips, ``stage`` its speed after that. Memory is null on a
    CPU.
    """
    is_cuda = device.type == "cuda"
    model, info = load_codec(Pretrained("codec", codec), device)
    # As many clips of one length as the largest batch takes.
    longest = max(GPU_BATCH_SECONDS) if is_cuda else 2 * clips[0]["duration_seconds"]
    num_clips = int(longest / clips[0]["duration_seconds"])
    equal = [clips[0] | {"clip_id": f"{i:03d}"} for i in range(max(1, num_clips))]
    waveforms = torch.stack([w for _, w in decode_ahead(equal, info, float("inf"), 4)])
    audio_seconds = waveforms.numel() / info.sample_rate_hz
    measured = []
    for dtype in ("float32", "bfloat16"):
        for batch in GPU_BATCH_SECONDS if is_cuda else GPU_BATCH_SECONDS[:1]:
            size = max(1, int(batch / clips[0]["duration_seconds"]))
            batches, dtype_info = torch.split(waveforms, size), replace(info, dtype=dtype)

            def encode_all(batches: Any = batches, info: Any = dtype_info) -> None:
                for waveforms in batches:
                    encode(model, waveforms, info)

            peak_bytes = peak_bytes_of(encode_all, device)
            times = [timed(encode_all) for _ in range(num_rounds)]
            measured.append(
                {
                    "dtype": dtype,
                    "batch_seconds": batch,
                    "audio_seconds_per_second": audio_seconds / statistics.median(times),
                    "peak_bytes": peak_bytes,
                }
            )

    def codes(dtype: str, max_batch_seconds: float, chosen: list[Clip]) -> Any:
        rows = rows_of_stage(
            chosen, model, replace(info, dtype=dtype), max_batch_seconds, os.cpu_count() or 1
        )
        return np.concatenate([row["codes"] for row in rows])

    allowed = batch_seconds(card_of(device))
    batched = [*equal, *clips]  # batches as large as memory allows, and clips of all lengths
    first, seconds = (timed(lambda: codes("float32", allowed, batched)) for _ in range(2))
    num_seconds = sum(clip["duration_seconds"] for clip in batched)
    one_by_one = codes("float32", 0, batched)
    return {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "measured": measured,
        "batch_seconds": allowed,
        # Seconds of audio per second, files decoded meanwhile.
        "first_pass": num_seconds / first,
        "stage": num_seconds / seconds,
        "same_codes": float((codes("float32", allowed, batched) == one_by_one).mean()),
        "share_of_bfloat16_codes_equal_to_float32": (
            (codes("float32", 0, clips) == codes("bfloat16", 0, clips)).mean(axis=0).tolist()
        ),
    }


def rows_of_stage(
    clips: list[Clip], model: Any, info: CodecInfo, max_batch_seconds: float, num_threads: int
) -> list[dict[str, Any]]:
    """The rows that the stage would write."""
    with Spool(Path(tempfile.gettempdir()), np.int16) as spool:
        encoded = encode_clips(clips, model, info, max_batch_seconds, num_threads, spool)
        return [clip.row(spool, info.num_codebooks) for clip in encoded]


def peak_bytes_of(work: Callable[[], Any], device: torch.device) -> int | None:
    """Memory that ``work`` takes at most above what is in use; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Print the ratios and write them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--codec", help="a checkpoint; without it, a random one of the real size")
    parser.add_argument("--num-clips", type=int, default=6)
    parser.add_argument("--min-clip-seconds", type=float, default=5.0)
    parser.add_argument("--max-clip-seconds", type=float, default=20.0)
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("results/bench/tokenize_audio.json"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        serve(json.loads(options.job))
        return
    with tempfile.TemporaryDirectory() as work_dir:
        clips = write_clips(Path(work_dir), options)
        codec = options.codec or work_dir
        if options.codec is None:
            build_codec(Path(codec))
        if options.device == "cuda":
            results = compare_on_gpu(codec, clips, options.num_rounds, torch.device("cuda"))
        else:
            peaks = {name: peak_bytes_above_model(name, codec, clips) for name in VARIANTS}
            results = {
                **compare_on_cpu(codec, clips, options.num_rounds),
                "peak_bytes_above_codec": peaks,
                "memory_stage_to_processor": peaks["stage"] / peaks["processor"],
                "speed_of_two_jobs_to_one": scaling(codec, clips, options.num_rounds),
            }
    results |= {
        "codec": options.codec or "random weights, the real size",
        "clip_seconds": [clip["duration_seconds"] for clip in clips],
        "machine": f"{platform.machine()}, {platform.platform()}",
        "torch": torch.__version__,
    }
    for key, value in results.items():
        print(f"{key:<42} {value:.3f}" if isinstance(value, float) else f"{key:<42} {value}")
    write_json(options.output, results)


if __name__ == "__main__":
    main()
