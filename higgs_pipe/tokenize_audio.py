"""Stage 2: the recordings of one shard become codec codes.

Clips are encoded in batches of exactly equal length, because padding inside a batch changes the
codes: whatever the batch, the codes are those of encoding one by one.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from higgs_pipe.cli import main
from higgs_pipe.config import TokenizeStage, load_stage
from higgs_pipe.data.audio import AudioError, decode
from higgs_pipe.data.files import sha256_of_file
from higgs_pipe.data.tables import SHARD_CLIPS, CodecInfo, codes_spec, read_table, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec import encode, load_codec, to_codec_input
from higgs_pipe.higgs.devices import pick_device

logger = logging.getLogger("higgs_pipe")

Row = dict[str, Any]


def run(config: Path, shard_clips: Path, codes: Path, num_threads: int = 1) -> None:
    """Encode the clips of one shard.

    Args:
        config: ``results/config/tokenize.json``.
        shard_clips: The shard's clips, from validate.
        codes: Where the table of codes goes.
        num_threads: CPU threads of the codec.

    Raises:
        UserError: A file changed or vanished since validate, or the codec cannot be loaded.
    """
    stage = load_stage(TokenizeStage, config)
    torch.set_num_threads(num_threads)
    device = pick_device(stage.tokenize.device)
    model, info = load_codec(stage.codec, stage.codec_revision, device)
    clips = read_table(shard_clips, SHARD_CLIPS)[0].to_pylist()
    rows = [
        {
            "clip_id": clip["clip_id"],
            "codes": clip_codes,
            "num_frames": len(clip_codes),
            "audio_sha256": clip["audio_sha256"],
        }
        for batch in equal_length_batches(clips, info, stage.tokenize.max_batch_seconds)
        for (clip, _), clip_codes in zip(
            batch,
            encode(model, torch.stack([waveform for _, waveform in batch]), info),
            strict=True,
        )
    ]
    rows.sort(key=lambda row: str(row["clip_id"]))
    write_table(codes, codes_spec(info.num_codebooks), rows, info.as_metadata())
    seconds = sum(row["num_frames"] for row in rows) / info.frame_rate_hz
    logger.info("%s: %d clips, %.0f s of audio on %s", codes.name, len(rows), seconds, device)


def equal_length_batches(
    clips: list[Row], info: CodecInfo, max_batch_seconds: float
) -> Iterator[list[tuple[Row, torch.Tensor]]]:
    """Decode clips, shortest first, into batches of equal length.

    Args:
        clips: Rows of SHARD_CLIPS.
        info: The codec.
        max_batch_seconds: Audio in a batch; a longer clip is a batch of its own.

    Yields:
        Lists of (clip, waveform (T * hop_length,)), one T a list.
    """
    batch: list[tuple[Row, torch.Tensor]] = []
    checksums: dict[Path, str] = {}  # a long recording is hashed once, not for each segment
    for clip in sorted(clips, key=lambda clip: (clip["duration_seconds"], clip["clip_id"])):
        waveform = _waveform(clip, info, checksums)
        max_clips = max(1, int(max_batch_seconds * info.sample_rate_hz / len(waveform)))
        if batch and (len(batch[0][1]) != len(waveform) or len(batch) >= max_clips):
            yield batch
            batch = []
        batch.append((clip, waveform))
    if batch:
        yield batch


def _waveform(clip: Row, info: CodecInfo, checksums: dict[Path, str]) -> torch.Tensor:
    path = Path(clip["audio_path"])
    try:
        audio = decode(path, clip["start_seconds"], clip["end_seconds"])
        if path not in checksums:
            checksums[path] = sha256_of_file(path)
    except AudioError as error:
        raise UserError(
            f"clip {clip['clip_id']!r}: {error}; it was readable when it was validated. "
            "Restore the file, or run: snakemake --forcerun measure_shard"
        ) from None
    if checksums[path] != clip["audio_sha256"]:
        raise UserError(
            f"clip {clip['clip_id']!r}: {path} changed since it was validated; "
            "run: snakemake --forcerun measure_shard"
        )
    return to_codec_input(audio.samples, audio.sample_rate_hz, info)


if __name__ == "__main__":
    main(run)
