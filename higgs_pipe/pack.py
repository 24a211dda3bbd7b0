"""Stage 3: pack clips and codes into training rows."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from higgs_pipe.cli import main
from higgs_pipe.config.stages import PackStage, load_stage
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.codes_store import CodesStore
from higgs_pipe.data.packing.results import (
    FallbackCount,
    PackedSplit,
    PackingSummary,
    RejectedSample,
)
from higgs_pipe.data.specs import EVAL, TRAIN, packed_spec
from higgs_pipe.data.spool import Spool
from higgs_pipe.data.tables import shard_path, write_table
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.packed_for import rows_metadata
from higgs_pipe.higgs.packer import Packer
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.prompts import PromptRenderer
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.progress import activity

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    clips: Path,
    codes_dir: Path,
    num_shards: int,
    train_rows: Path,
    eval_rows: Path,
    packing: Path,
    pinned_base: Path | None = None,
    splits: list[str] | None = None,
) -> None:
    """Pack the training split and the held-out split.

    Args:
        config: ``results/config/pack.json``.
        clips: The accepted clips, from validate.
        codes_dir: The shards of codes, from tokenize.
        num_shards: Number of shards; the folder may also have shards of an earlier run.
        train_rows: The packed training rows to write; temporary files are beside them.
        eval_rows: The packed held-out rows to write.
        packing: :class:`PackingSummary` to write.
        pinned_base: ``models/base_model.json``; without it, this stage pins the base.
        splits: Splits to pack, by default train and eval; the table of another split is empty.

    Raises:
        UserError: The codec does not fit the base model, codes are missing, a split is empty, or
            the disk is full.
    """
    stage = load_stage(PackStage, config)
    base = PinnedModel.read(pinned_base) if pinned_base else PinnedModel.of(stage.pretrained_base)
    renderer = renderer_of(base.pretrained)
    table = Clips.read(clips)
    shards = [shard_path(codes_dir, shard) for shard in range(num_shards)]
    train_rows.parent.mkdir(parents=True, exist_ok=True)
    with CodesStore(shards, table.ids, train_rows.parent) as codes:
        _check_codec(codes, renderer)
        counts: dict[str, PackedSplit] = {}
        rejected: list[RejectedSample] = []
        fallbacks: Counter[tuple[str, str, str]] = Counter()
        metadata = codes.codec_info.as_metadata() | rows_metadata(base)
        for split, path in ((TRAIN, train_rows), (EVAL, eval_rows)):
            if split not in (splits or (TRAIN, EVAL)):
                write_table(path, packed_spec(codes.codec_info.num_codebooks), [], metadata)
                counts[split] = PackedSplit.empty()
                continue
            packer = Packer(table, codes, renderer, stage.pack)
            with (
                Spool(train_rows.parent, np.int32) as spool,
                activity(f"packing {split}"),
            ):
                packer.plan(split, spool)
                counts[split] = packer.write(path, spool, metadata)
            rejected += packer.rejected
            fallbacks.update({(split, *key): n for key, n in packer.fallbacks.items()})
    summary = PackingSummary(
        max_tokens=stage.pack.max_tokens,
        train=counts[TRAIN],
        eval=counts[EVAL],
        fallbacks=[
            FallbackCount(split=split, speaker=speaker, reason=reason, num_clips=num_clips)
            for (split, speaker, reason), num_clips in sorted(fallbacks.items())
        ],
        rejected=rejected,
    )
    summary.write(packing)
    _log(summary)


def _check_codec(codes: CodesStore, renderer: PromptRenderer) -> None:
    info, shape = codes.codec_info, renderer.shape
    num_codes = shape.audio_stream_bos_id
    if info.num_codebooks != shape.num_codebooks or info.codebook_size > num_codes:
        raise UserError(
            f"codec {info.codec!r} has {info.num_codebooks} codebooks of {info.codebook_size} "
            f"codes, but the base model expects {shape.num_codebooks} of {num_codes}; set codec to "
            "that of the base model."
        )


def _log(summary: PackingSummary) -> None:
    for split, counts in ((TRAIN, summary.train), (EVAL, summary.eval)):
        if not counts.num_samples:
            continue  # not packed
        logger.info(
            "%s: %d samples (%s) in %d rows of %d, %.1f %% full",
            split,
            counts.num_samples,
            ", ".join(f"{number} {task}" for task, number in counts.tasks.items()),
            counts.num_rows,
            summary.max_tokens,
            100 * counts.fill,
        )
    for fallback in summary.fallbacks:
        logger.warning(
            "%d samples of speaker %s in %s fell back to a simpler task: %s",
            fallback.num_clips,
            fallback.speaker,
            fallback.split,
            fallback.reason,
        )
    if summary.rejected:
        messages = [sample.message for sample in summary.rejected]
        logger.warning("%d samples rejected:\n%s", len(messages), list_offenders(messages))


if __name__ == "__main__":
    main(run)
