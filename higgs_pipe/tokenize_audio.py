"""Stage 2: encode the recordings of one shard to codec codes.

Batches hold clips of exactly equal length, because padding inside a batch would change the codes.
So the codes equal those of encoding clips one by one. Meanwhile, threads decode the files of the
next batches, a bounded time ahead.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe.cli import main
from higgs_pipe.config.stages import TokenizeStage, load_stage
from higgs_pipe.data.audio import AudioError, decode
from higgs_pipe.data.channels import to_mono
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.specs import SHARD_CLIPS, CodecInfo, codes_spec
from higgs_pipe.data.spool import Spool
from higgs_pipe.data.table_rows import TableRows
from higgs_pipe.data.tables import read_table, table_writer, write_groups
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec import encode, load_codec, to_codec_input
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.devices import claim_device
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.progress import activity
from higgs_pipe.training.card import Card, card_of, free_memory

logger = logging.getLogger("higgs_pipe")

# A row of SHARD_CLIPS, a row of a table of codes, and a clip with its waveform (T * hop_length,).
ShardClip: TypeAlias = Mapping[str, Any]
CodesRow: TypeAlias = dict[str, Any]
DecodedClip: TypeAlias = tuple[ShardClip, torch.Tensor]

MAX_BATCH_SECONDS_ON_GPU = 240.0  # longer ones were not measured
BYTES_PER_SECOND = 45e6  # of audio: 0.9 GB for 20 s in float32
USABLE_SHARE = 0.8
LOOK_AHEAD_SECONDS = 120.0  # 12 MB at 24 kHz
CLIPS_PER_GROUP = 500  # of rows, which Parquet's writer holds: 40 MB for clips of 10 s


class EncodedClip(NamedTuple):
    """A clip and the place of its codes in the spool."""

    clip: ShardClip
    start: int
    num_frames: int

    def row(self, spool: Spool, num_codebooks: int) -> CodesRow:
        """Return the row of a table of codes."""
        codes = spool.read(self.start, self.num_frames * num_codebooks)
        return {
            "clip_id": self.clip["clip_id"],
            "codes": codes.reshape(self.num_frames, num_codebooks),
            "num_frames": self.num_frames,
            "audio_sha256": self.clip["audio_sha256"],
        }


def run(
    config: Path,
    shard_clips: Path,
    codes: Path,
    num_threads: int = 1,
    pinned_codec: Path | None = None,
) -> None:
    """Encode the clips of one shard.

    Equal inputs give equal bytes for all ``num_threads`` and batch sizes.

    Args:
        config: ``results/config/tokenize.json``.
        shard_clips: The shard's clips, from validate.
        codes: Table of codes to write.
        num_threads: CPU threads: for the codec on a CPU; for decoding files if it runs on a GPU.
        pinned_codec: ``models/codec.json``; without it, this stage pins the codec.

    Raises:
        UserError: A file changed or vanished since validate, or the codec cannot be loaded or
            changed since it was pinned.
    """
    stage = load_stage(TokenizeStage, config)
    settings = stage.tokenize
    clips = TableRows(read_table(shard_clips, SHARD_CLIPS))
    codes.parent.mkdir(parents=True, exist_ok=True)
    with Spool(codes.parent, np.int16) as spool, claim_device(settings.device) as device:
        on_gpu = device.type == "cuda"
        torch.set_num_threads(1 if on_gpu else num_threads)
        pinned = (
            PinnedModel.read(pinned_codec)
            if pinned_codec
            else PinnedModel.of(stage.pretrained_codec)
        )
        model, info = load_codec(pinned.pretrained, device, settings.dtype)
        if info.fingerprint != pinned.fingerprint:
            raise pinned.changed()
        max_batch_seconds = settings.max_batch_seconds
        if max_batch_seconds is None:
            max_batch_seconds = batch_seconds(card_of(device))
        num_threads = num_threads if on_gpu else 1
        encoded = encode_clips(clips, model, info, max_batch_seconds, num_threads, spool)
        spec = codes_spec(info.num_codebooks)
        with table_writer(codes, spec, info.as_metadata()) as writer:
            rows = (clip.row(spool, info.num_codebooks) for clip in encoded)
            write_groups(writer, spec, rows, CLIPS_PER_GROUP)
    logger.info(
        "%s: %d clips, %.0f s of audio, encoded on %s in %s",
        codes.stem,
        len(clips),
        sum(clip.num_frames for clip in encoded) / info.frame_rate_hz,
        device,
        info.dtype,
    )


def encode_clips(
    clips: Collection[ShardClip],
    model: HiggsAudioV2TokenizerModel,
    info: CodecInfo,
    max_batch_seconds: float,
    num_decoding_threads: int,
    spool: Spool,
) -> list[EncodedClip]:
    """Encode clips; return them sorted by clip_id, their codes in the spool.

    Memory holds one batch and the look-ahead, but neither the audio nor the codes of the shard.

    Args:
        clips: Rows of SHARD_CLIPS.
        model: The codec.
        info: The identity of the codec.
        max_batch_seconds: Audio per batch; a longer clip is a batch of its own, so 0 encodes
            one by one.
        num_decoding_threads: Files decoded at the same time, while the codec runs.
        spool: Holds the codes until they are read, as int16.

    Raises:
        UserError: A file changed or vanished since validate, or a clip does not fit in memory.
    """
    # The longest first: if memory does not suffice, that shows at once.
    order = sorted(clips, key=lambda clip: (-clip["duration_seconds"], clip["clip_id"]))
    look_ahead_seconds = max(LOOK_AHEAD_SECONDS, max_batch_seconds)
    decoded = decode_ahead(order, info, look_ahead_seconds, num_decoding_threads)
    encoded: list[EncodedClip] = []
    with activity("encoding", len(clips), "clips") as encoding:
        for batch in equal_length_batches(decoded, info, max_batch_seconds):
            waveforms = torch.stack([waveform for _, waveform in batch])  # (B, T * hop_length)
            all_codes = encode_in_memory(model, waveforms, info)
            for (clip, _), codes in zip(batch, all_codes, strict=True):
                encoded.append(EncodedClip(clip, spool.append(codes), len(codes)))
            encoding.advance(len(batch))
    return sorted(encoded, key=lambda found: str(found.clip["clip_id"]))


def batch_seconds(card: Card | None) -> float:
    """Return the seconds of audio per batch that memory allows; 0 on a CPU, one clip at a time."""
    if card is None:
        return 0.0
    return min(MAX_BATCH_SECONDS_ON_GPU, USABLE_SHARE * card.available_bytes() / BYTES_PER_SECOND)


def encode_in_memory(
    model: HiggsAudioV2TokenizerModel, waveforms: torch.Tensor, info: CodecInfo
) -> list[Codes]:
    """Encode waveforms of equal length, in halves if memory does not suffice for all at once.

    Args:
        model: The codec.
        waveforms: (B, T * hop_length).
        info: Its identity.

    Raises:
        UserError: Memory does not suffice for a single clip.
    """
    try:
        return encode(model, waveforms, info)
    except torch.OutOfMemoryError:
        num_clips, seconds = len(waveforms), waveforms.shape[1] / info.sample_rate_hz
    if num_clips == 1:
        raise UserError(
            f"GPU memory does not suffice to encode a clip of {seconds:.0f} s. Set "
            "tokenize.device: cpu or a lower validate.max_clip_seconds, or stop other programs "
            "that use memory on this GPU."
        )
    logger.warning("GPU memory ran out at %d clips of %.0f s; halving them", num_clips, seconds)
    free_memory(model.device)
    halves = torch.tensor_split(waveforms, 2)
    return [codes for half in halves for codes in encode_in_memory(model, half, info)]


def decode_ahead(
    clips: Iterable[ShardClip], info: CodecInfo, look_ahead_seconds: float, num_threads: int
) -> Iterator[DecodedClip]:
    """Decode clips in threads, in order, while the caller works.

    libsndfile, NumPy and PyTorch release the GIL, so threads suffice.

    Args:
        clips: Rows of SHARD_CLIPS.
        info: The codec.
        look_ahead_seconds: Decoded audio that may wait for the caller, at least one clip.
        num_threads: Files decoded at the same time.

    Yields:
        (clip, waveform (T * hop_length,)).
    """
    waiting: deque[tuple[ShardClip, Future[torch.Tensor]]] = deque()
    waiting_seconds = 0.0
    checksums: dict[str, str] = {}  # a long recording is hashed once, not per segment
    executor = ThreadPoolExecutor(num_threads)
    try:
        for clip in clips:
            while waiting and waiting_seconds + clip["duration_seconds"] > look_ahead_seconds:
                first, waveform = waiting.popleft()
                waiting_seconds -= first["duration_seconds"]
                yield first, waveform.result()
            waiting.append((clip, executor.submit(_waveform, clip, info, checksums)))
            waiting_seconds += clip["duration_seconds"]
        while waiting:
            first, waveform = waiting.popleft()
            yield first, waveform.result()
    finally:
        executor.shutdown(cancel_futures=True)


def equal_length_batches(
    decoded: Iterable[DecodedClip], info: CodecInfo, max_batch_seconds: float
) -> Iterator[list[DecodedClip]]:
    """Yield consecutive clips of equal length as batches.

    Args:
        decoded: Clips with their waveforms, sorted by length.
        info: The codec.
        max_batch_seconds: Audio per batch; a longer clip is a batch of its own.

    Yields:
        Lists of (clip, waveform (T * hop_length,)), one T per list.
    """
    batch: list[DecodedClip] = []
    for clip, waveform in decoded:
        max_clips = max(1, int(max_batch_seconds * info.sample_rate_hz / len(waveform)))
        if batch and (len(batch[0][1]) != len(waveform) or len(batch) >= max_clips):
            yield batch
            batch = []
        batch.append((clip, waveform))
    if batch:
        yield batch


def _waveform(clip: ShardClip, info: CodecInfo, checksums: dict[str, str]) -> torch.Tensor:
    name: str = clip["audio_path"]
    path = Path(name)
    try:
        audio = decode(path, clip["start_seconds"], clip["end_seconds"])
        if name not in checksums:
            checksums[name] = sha256_of_file(path)
    except AudioError as error:
        raise UserError(
            f"clip {clip['clip_id']!r}: {error}; it was readable when it was validated. "
            "Restore the file, or run: snakemake --forcerun measure_shard"
        ) from None
    if checksums[name] != clip["audio_sha256"]:
        raise UserError(
            f"clip {clip['clip_id']!r}: {path} changed since it was validated; "
            "run: snakemake --forcerun measure_shard"
        )
    return to_codec_input(to_mono(audio.samples, clip["channel"]), audio.sample_rate_hz, info)


if __name__ == "__main__":
    main(run)
