"""Stage 3: clips and codes become packed training rows.

One sample a clip: plain speech, or cloning with a recording of the same speaker as its reference.
Samples are packed into rows of at most ``pack.max_tokens`` positions by first-fit-decreasing over
their lengths; only then are the rows built and written.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from higgs_pipe.cli import main
from higgs_pipe.config import PackConfig, PackStage, load_stage
from higgs_pipe.data.bins import first_fit_decreasing
from higgs_pipe.data.codes_store import CodesStore
from higgs_pipe.data.files import write_json
from higgs_pipe.data.splits import EVAL, REFERENCE, TRAIN, Stretch, unit_hash
from higgs_pipe.data.tables import CLIPS, packed_spec, read_table, table_writer, to_arrow
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.chatml import PromptRenderer, TokenIds, clean_text, conversation
from higgs_pipe.higgs.codes import IGNORED

logger = logging.getLogger("higgs_pipe")

SPEECH, CLONING = "speech", "cloning"
ROWS_PER_GROUP = 16  # a Parquet row group: what the trainer reads to get one row
CLIPS_PER_CHUNK = 1024  # prompts tokenized at once

NO_REFERENCE = "no other recording of the speaker in this split"
REFERENCE_TOO_LONG = "the sample with its reference exceeds pack.max_tokens"

Clip = dict[str, Any]


@dataclass(frozen=True)
class PlannedSample:
    """A sample before its codes are read."""

    clip: Clip
    reference: Clip | None
    fallback: str | None = None  # why the sample is plain speech though cloning was drawn
    prompt_ids: TokenIds = field(default_factory=lambda: np.empty(0, np.int32))
    length: int = 0  # S

    @property
    def task(self) -> str:
        """What the sample teaches."""
        return SPEECH if self.reference is None else CLONING

    @property
    def clip_ids(self) -> list[str]:
        """Clips whose codes the sample holds, the target last."""
        clips = [self.clip] if self.reference is None else [self.reference, self.clip]
        return [clip["clip_id"] for clip in clips]


def run(
    config: Path,
    clips: Path,
    codes_dir: Path,
    num_shards: int,
    train_rows: Path,
    eval_rows: Path,
    packing: Path,
) -> None:
    """Pack the training split and the held-out split.

    Args:
        config: ``results/config/pack.json``.
        clips: The accepted clips, from validate.
        codes_dir: The shards of codes, from tokenize.
        num_shards: How many there are; older ones may lie there too.
        train_rows: Where the packed training rows go.
        eval_rows: Where the packed held-out rows go.
        packing: Where the summary goes.

    Raises:
        UserError: The codec does not fit the base model, codes are missing, or a split is empty.
    """
    stage = load_stage(PackStage, config)
    renderer = PromptRenderer(stage.base_model, stage.base_model_revision)
    codes = CodesStore([codes_dir / f"shard-{shard:05d}.parquet" for shard in range(num_shards)])
    _check_codec(codes, renderer)
    all_clips = read_table(clips, CLIPS)[0].to_pylist()
    references = {clip["clip_id"]: clip for clip in all_clips if clip["split"] == REFERENCE}

    summary: dict[str, Any] = {"max_tokens": stage.pack.max_tokens}
    fallbacks: Counter[tuple[str, str, str]] = Counter()
    rejected: list[dict[str, str]] = []
    for split, path in ((TRAIN, train_rows), (EVAL, eval_rows)):
        split_clips = [clip for clip in all_clips if clip["split"] == split]
        samples = choose_references(split_clips, references, stage.pack)
        samples = measure(samples, codes, renderer, stage.pack)
        fallbacks.update(
            (split, sample.clip["speaker"] or "unknown", sample.fallback)
            for sample in samples
            if sample.fallback is not None
        )
        max_tokens = stage.pack.max_tokens
        rejected += [_too_long(s, max_tokens) for s in samples if s.length > max_tokens]
        fitting = [sample for sample in samples if sample.length <= max_tokens]
        if not fitting:
            raise UserError(
                f"no sample of the {split} split fits into pack.max_tokens = {max_tokens}; "
                "raise it, or lower validate.max_clip_seconds and bring shorter clips."
            )
        summary[split] = write_rows(path, fitting, codes, renderer, max_tokens)
    summary["fallbacks"] = [
        {"split": split, "speaker": speaker, "reason": reason, "num_clips": num_clips}
        for (split, speaker, reason), num_clips in sorted(fallbacks.items())
    ]
    summary["rejected"] = rejected
    write_json(packing, summary)
    _log(summary)


def _check_codec(codes: CodesStore, renderer: PromptRenderer) -> None:
    info, tokens = codes.codec_info, renderer.tokens
    if info.num_codebooks != tokens.num_codebooks or info.codebook_size > tokens.stream_bos:
        raise UserError(
            f"codec {info.codec!r} has {info.num_codebooks} codebooks of {info.codebook_size} "
            f"codes, the base model expects {tokens.num_codebooks} of {tokens.stream_bos}; "
            "set codec to the base model's own."
        )


def choose_references(
    clips: Sequence[Clip], references: Mapping[str, Clip], settings: PackConfig
) -> list[PlannedSample]:
    """Draw the task of each clip, and the reference of those that are cloning.

    A row's own reference recording comes first; otherwise another clip of the same speaker in the
    same split with other audio, drawn by seed. Segments of one file that overlap are never each
    other's reference.

    Args:
        clips: The clips of one split.
        references: The reference recordings, by id.
        settings: Task weights and seed.
    """
    by_speaker: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip["speaker"] is not None:
            by_speaker[clip["speaker"]].append(clip)
    cloning_share = settings.tasks.cloning / (settings.tasks.cloning + settings.tasks.speech)

    samples = []
    for clip in clips:
        if unit_hash("task", settings.seed, clip["clip_id"]) >= cloning_share:
            samples.append(PlannedSample(clip, reference=None))
            continue
        reference = (
            _draw_reference(clip, by_speaker, settings.seed)
            if clip["reference_id"] is None
            else references[clip["reference_id"]]
        )
        fallback = NO_REFERENCE if reference is None else None
        samples.append(PlannedSample(clip, reference, fallback))
    return samples


def _draw_reference(clip: Clip, by_speaker: Mapping[str, list[Clip]], seed: int) -> Clip | None:
    """Another clip of the speaker: one drawn by seed, or the next whose audio differs."""
    candidates = by_speaker.get(clip["speaker"], [])
    target = Stretch.of_clip(clip)
    start = int(unit_hash("reference", seed, clip["clip_id"]) * len(candidates))
    rotated = (candidates[(start + i) % len(candidates)] for i in range(len(candidates)))
    return next(
        (
            c
            for c in rotated
            if c["pcm_sha256"] != clip["pcm_sha256"] and not Stretch.of_clip(c).overlaps(target)
        ),
        None,
    )


def measure(
    samples: Sequence[PlannedSample],
    codes: CodesStore,
    renderer: PromptRenderer,
    settings: PackConfig,
) -> list[PlannedSample]:
    """Render each sample's prompt and work out its length.

    A reference that would make the sample longer than a row is left out.
    """
    measured = []
    for start in range(0, len(samples), CLIPS_PER_CHUNK):
        measured += _rendered(samples[start : start + CLIPS_PER_CHUNK], codes, renderer, settings)
    too_long = [
        i
        for i, sample in enumerate(measured)
        if sample.reference is not None and sample.length > settings.max_tokens
    ]
    shortened = [
        replace(measured[i], reference=None, fallback=REFERENCE_TOO_LONG) for i in too_long
    ]
    for i, sample in zip(too_long, _rendered(shortened, codes, renderer, settings), strict=True):
        measured[i] = sample
    return measured


def _rendered(
    samples: Sequence[PlannedSample],
    codes: CodesStore,
    renderer: PromptRenderer,
    settings: PackConfig,
) -> list[PlannedSample]:
    def spoken(clip: Clip) -> str:
        return clean_text(clip["text"]) if settings.clean_text else clip["text"]

    if not samples:
        return []
    all_prompt_ids = renderer.prompt_ids(
        [
            conversation(
                text=spoken(sample.clip),
                system_prompt=settings.system_prompt,
                scene=sample.clip["scene"],
                reference_text=spoken(sample.reference) if sample.reference else None,
            )
            for sample in samples
        ]
    )
    rendered = []
    for sample, prompt_ids in zip(samples, all_prompt_ids, strict=True):
        num_frames = [len(codes[clip_id]) for clip_id in sample.clip_ids]
        length = renderer.sample_length(prompt_ids, num_frames)
        rendered.append(replace(sample, prompt_ids=prompt_ids, length=length))
    return rendered


def write_rows(
    path: Path,
    samples: Sequence[PlannedSample],
    codes: CodesStore,
    renderer: PromptRenderer,
    max_tokens: int,
) -> dict[str, Any]:
    """Pack samples into rows, build them and write them, a row group at a time.

    Returns:
        The counts of the split, for ``packing.json``.
    """
    bins = first_fit_decreasing([sample.length for sample in samples], max_tokens)
    spec = packed_spec(codes.codec_info.num_codebooks)
    counts: Counter[str] = Counter()
    with table_writer(path, spec, codes.codec_info.as_metadata()) as writer:
        for start in range(0, len(bins), ROWS_PER_GROUP):
            rows = [
                _row([samples[i] for i in members], codes, renderer)
                for members in bins[start : start + ROWS_PER_GROUP]
            ]
            for row in rows:
                counts["num_tokens"] += len(row["input_ids"])
                counts["num_audio_frames"] += len(row["audio_input_ids"])
                counts["num_text_labels"] += int((row["labels"] != IGNORED).sum())
                counts["num_audio_labels"] += int((row["audio_labels"] != IGNORED).sum())
            writer.write_table(to_arrow(spec, rows, writer.schema), row_group_size=ROWS_PER_GROUP)
    target_frames = sum(len(codes[sample.clip["clip_id"]]) for sample in samples)
    return {
        "num_rows": len(bins),
        "num_samples": len(samples),
        "tasks": {task: sum(s.task == task for s in samples) for task in (SPEECH, CLONING)},
        "audio_seconds": target_frames / codes.codec_info.frame_rate_hz,
        **counts,
        "fill": counts["num_tokens"] / (len(bins) * max_tokens),
    }


def _row(
    members: Sequence[PlannedSample], codes: CodesStore, renderer: PromptRenderer
) -> dict[str, Any]:
    samples = [
        renderer.sample(planned.prompt_ids, [codes[clip_id] for clip_id in planned.clip_ids])
        for planned in members
    ]
    return {
        "input_ids": np.concatenate([sample.input_ids for sample in samples]),
        "labels": np.concatenate([sample.labels for sample in samples]),
        "audio_input_ids": np.concatenate([sample.audio_input_ids for sample in samples]),
        "audio_labels": np.concatenate([sample.audio_labels for sample in samples]),
        "sample_ids": [planned.clip["clip_id"] for planned in members],
        "sample_lengths": np.asarray([len(sample.input_ids) for sample in samples], np.int32),
    }


def _too_long(sample: PlannedSample, max_tokens: int) -> dict[str, str]:
    clip = sample.clip
    return {
        "clip_id": clip["clip_id"],
        "reason": "too_many_tokens",
        "message": (
            f"{clip['manifest']}:{clip['line']}: {sample.length} positions do not fit into "
            f"pack.max_tokens = {max_tokens}; raise it or split the recording"
        ),
    }


def _log(summary: dict[str, Any]) -> None:
    for split in (TRAIN, EVAL):
        counts = summary[split]
        tasks = ", ".join(f"{number} {task}" for task, number in counts["tasks"].items())
        logger.info(
            "%s: %d samples (%s) in %d rows of %d, %.1f %% full",
            *(split, counts["num_samples"], tasks, counts["num_rows"]),
            *(summary["max_tokens"], 100 * counts["fill"]),
        )
    for fallback in summary["fallbacks"]:
        logger.warning(
            "%(num_clips)d clips of speaker %(speaker)s in %(split)s are plain speech instead of "
            "cloning: %(reason)s",
            fallback,
        )
    if summary["rejected"]:
        messages = [item["message"] for item in summary["rejected"]]
        logger.warning(
            "%d clips rejected, too many tokens:\n%s", len(messages), list_offenders(messages)
        )


if __name__ == "__main__":
    main(run)
