"""Stage 1b: decode the recordings of one shard, once, and measure them."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from higgs_pipe.cli import main
from higgs_pipe.config.settings import MeasureConfig, SpeechModelConfig
from higgs_pipe.config.stages import MeasureStage, load_stage
from higgs_pipe.data.audio import (
    AudioError,
    AudioFile,
    AudioMissingError,
    SegmentOutsideError,
    open_audio,
)
from higgs_pipe.data.channels import (
    channel_to_take,
    loss_of_mean_db,
    lost_share,
    separate_share,
    to_mono,
)
from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.quality import (
    MAX_PEAK,
    SILENT_PEAK,
    clipping_fraction,
    measure_audio,
    peak,
)
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import MEASURED, RECORDINGS
from higgs_pipe.data.tables import read_table, write_table
from higgs_pipe.data.units import number
from higgs_pipe.progress import activity

if TYPE_CHECKING:
    from higgs_pipe.listening.speech_models import SpeechModels

logger = logging.getLogger("higgs_pipe")

# Values of MEASURED by the names of their columns.
Measures = dict[str, Any]


def run(config: Path, recordings: Path, measured: Path, num_threads: int = 1) -> None:
    """Decode and measure the recordings of one shard.

    Equal inputs give equal bytes, whatever ``num_threads`` is.

    Args:
        config: ``results/config/measure.json``.
        recordings: The shard's recordings and segments, from list_rows.
        measured: Table to write: the measures of each recording, or its fault.
        num_threads: Files decoded at once; each thread holds the samples of one segment.

    Raises:
        UserError: The table of recordings is missing or of another version, or a speech model
            cannot be loaded.
    """
    limits = load_stage(MeasureStage, config).validate_
    rows = read_table(recordings, RECORDINGS).to_pylist()
    files = [list(of_file) for _, of_file in groupby(rows, key=lambda row: row["audio_path"])]
    measured_rows: list[dict[str, Any]] = []
    with (
        _speech_models(limits.speech_models) as models,
        ThreadPoolExecutor(num_threads) as executor,
        activity(f"{measured.stem}: measuring", len(files), "files") as measuring,
    ):
        spread = executor.map if num_threads > 1 else map  # one thread would only be waited for
        results = spread(lambda recordings: _measure_file(recordings, limits, models), files)
        for of_file in results:
            measured_rows += of_file
            measuring.advance()
    write_table(measured, MEASURED, measured_rows)
    num_faulty = sum(row["reason"] is not None for row in measured_rows)
    seconds = sum(row["duration_seconds"] or 0 for row in measured_rows)
    logger.info(
        "%s: measured %d files, %.0f s of audio; faults: %d",
        measured.stem,
        len(files),
        seconds,
        num_faulty,
    )


@contextmanager
def _speech_models(settings: SpeechModelConfig) -> Iterator["SpeechModels | None"]:
    """Yield the speech models that are on, on this process's device; None if all are off."""
    if not settings.is_on:
        yield None
        return
    # Only now: PyTorch takes seconds to import.
    from higgs_pipe.higgs.devices import claim_device
    from higgs_pipe.listening.speech_models import SpeechModels

    with claim_device(settings.device) as device:
        logger.info("speech models on %s", device)
        yield SpeechModels(settings, device)


def _measure_file(
    recordings: Sequence[Mapping[str, Any]], limits: MeasureConfig, models: "SpeechModels | None"
) -> list[dict[str, Any]]:
    """Return rows of MEASURED for spans of one file; its header and hash are read once.

    Args:
        recordings: Rows of RECORDINGS.
        limits: The settings.
        models: The speech models, if any are on.
    """
    path = Path(recordings[0]["audio_path"])
    try:
        with open_audio(path) as file:
            found = [_measure(Span.of(row), file, limits, models) for row in recordings]
        if any(fault is None for fault, _ in found):
            audio_sha256 = sha256_of_file(path)
            found = [
                (fault, measures if fault else measures | {"audio_sha256": audio_sha256})
                for fault, measures in found
            ]
    except AudioMissingError as error:
        found = [(Fault(Reason.AUDIO_MISSING, str(error)), {})] * len(recordings)
    except AudioError as error:
        found = [(Fault(Reason.AUDIO_UNREADABLE, str(error)), {})] * len(recordings)
    unknown = dict.fromkeys(column.name for column in MEASURED.columns)
    return [
        {
            **unknown,
            **recording,
            "reason": fault.reason.value if fault else None,
            "fact": fault.fact if fault else None,
            **measures,
        }
        for recording, (fault, measures) in zip(recordings, found, strict=True)
    ]


def _measure(
    span: Span, file: AudioFile, limits: MeasureConfig, models: "SpeechModels | None"
) -> tuple[Fault | None, Measures]:
    """Return the fault of a span, or its measures; ``audio_sha256`` is left to the caller."""
    path, header = file.path, file.header
    measures: Measures = {}
    if header.sample_rate_hz > limits.max_sample_rate_hz:
        fact = f"{path} has {header.sample_rate_hz:,} Hz, more than {limits.max_sample_rate_hz:,}"
        return Fault(Reason.HIGH_SAMPLE_RATE, fact), measures
    try:
        first, end = header.segment(span.start_seconds, span.end_seconds)
        # The header decides: an hour-long file is never decoded.
        seconds = measures["duration_seconds"] = (end - first) / header.sample_rate_hz
        if seconds > limits.max_clip_seconds:
            fact = f"lasts {seconds:.3f} s, more than {limits.max_clip_seconds:g} s"
            return Fault(Reason.TOO_LONG, f"{span.name} {fact}"), measures
        audio = file.decode(span.start_seconds, span.end_seconds)
    except SegmentOutsideError as error:
        return Fault(Reason.SEGMENT_OUTSIDE, str(error)), measures
    except AudioError as error:
        return Fault(Reason.AUDIO_UNREADABLE, str(error)), measures
    highest = peak(audio.samples)
    if not math.isfinite(highest):
        num_bad = audio.samples.size - int(np.isfinite(audio.samples).sum())
        fact = f"{path} holds {num_bad:,} samples that are NaN or infinite"
        return Fault(Reason.AUDIO_NON_FINITE, fact), measures
    if highest > MAX_PEAK:
        fact = f"{path} has a peak of {number(highest)} times full scale, above {MAX_PEAK:g}"
        return Fault(Reason.AUDIO_OUT_OF_RANGE, fact), measures
    channel = channel_to_take(audio.samples)
    if channel is not None and limits.cancelling_channels == "reject":
        loss_db = loss_of_mean_db(audio.samples)
        share = lost_share(audio.samples)
        fact = (
            f"the mean of the channels of {path} is {loss_db:.0f} dB quieter than they are; "
            f"{share:.0%} of their power is in parts that cancel"
        )
        return Fault(Reason.CHANNELS_CANCEL, fact), measures
    mono = to_mono(audio.samples, channel)  # (num_samples, 1), what the codec gets
    mono_peak = highest if mono is audio.samples else peak(mono)
    if mono_peak < SILENT_PEAK:
        fact = f"{path} is silent: its peak is {mono_peak:.1e} of full scale"
        return Fault(Reason.SILENT, f"{fact}, below {SILENT_PEAK:.0e}"), measures
    return None, {
        "duration_seconds": audio.duration_seconds,
        "sample_rate_hz": audio.sample_rate_hz,
        "num_channels": audio.samples.shape[1],
        "encoding": header.encoding,
        "channel": channel,
        "separate_share": separate_share(audio.samples),
        **vars(measure_audio(mono, audio.sample_rate_hz, mono_peak)),
        # A channel that is clipped is so in their mean, too.
        "peak": highest,
        "clipping_fraction": clipping_fraction(audio.samples, highest),
        "pcm_sha256": audio.pcm_sha256,
        **(vars(models.measure(mono, audio.sample_rate_hz)) if models else {}),
    }


if __name__ == "__main__":
    main(run)
