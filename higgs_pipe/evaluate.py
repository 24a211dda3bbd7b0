"""Stage 5a: compare adapter and base on the held-out clips: losses, speech, and the verdict.

::

    eval/metrics.json        the real loss over the whole split
    eval/clips.parquet       a row per clip
    eval/breakdown.json      the loss by group of clips
    eval/generation.json     totals of the generated speech
    eval/generation.parquet  a row per prompt and voice
    eval/verdict.json        better, worse or no evidence
    samples/                 WAVs: recordings, codec round trips, base, adapter
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from higgs_pipe.cli import main
from higgs_pipe.config.settings import EvalSpeechModelConfig, EvaluateConfig
from higgs_pipe.config.stages import EvalStage, load_stage
from higgs_pipe.data.files import atomic_folder
from higgs_pipe.data.specs import EVAL_CLIPS, LOSS_DESCRIPTIONS
from higgs_pipe.data.tables import write_table
from higgs_pipe.higgs.ancestor import take_weights
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.codec import load_codec_of
from higgs_pipe.higgs.compilation import keep_compiled_code
from higgs_pipe.higgs.compilation_costs import FORWARD_SHARE
from higgs_pipe.higgs.devices import pick_device, pick_dtype
from higgs_pipe.higgs.lora import check_base, load_adapter
from higgs_pipe.higgs.loss import LossSums, named_accuracies, named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.listening.clip_losses import ClipLosses
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.held_out import HeldOutClips, HeldOutSample, read_samples
from higgs_pipe.listening.intervals import Difference
from higgs_pipe.listening.listener import Listener
from higgs_pipe.listening.speaking import (
    choose_prompts,
    speak_prompts,
)
from higgs_pipe.listening.spoken import ADAPTER, BASE, GENERATED, Generation
from higgs_pipe.listening.takes import Takes
from higgs_pipe.listening.text_use import OtherTexts
from higgs_pipe.listening.verdict import judge
from higgs_pipe.progress import activity
from higgs_pipe.training.compiling import compile_where_it_pays
from higgs_pipe.training.held_out import held_out_frames, held_out_sums, total_of
from higgs_pipe.training.results import EvalMetrics, SplitMetrics

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    clips: Path,
    eval_rows: Path,
    adapter_dir: Path,
    eval_dir: Path,
    samples_dir: Path,
    clips_of: str = "manifest",
    ancestor_dir: Path | None = None,
    compile_cache: Path | None = None,
) -> None:
    """Evaluate an adapter and its base on the same clips.

    Args:
        config: ``results/config/eval.json``.
        clips: ``clips.parquet`` of the validate stage.
        eval_rows: Packed held-out rows.
        adapter_dir: The PEFT adapter.
        eval_dir: Where the results go.
        samples_dir: Where the WAVs go.
        clips_of: The setting that names the recordings, manifest or eval.other_manifest; the
            wording of the verdict depends on it.
        ancestor_dir: The adapter that training continued from, if any; its losses are added.
        compile_cache: Folder of compiled code, unless ``TORCHINDUCTOR_CACHE_DIR`` names another.

    Raises:
        UserError: Base or codec are not those of the rows or of the adapter, the held-out split is
            empty, or a recording or speech model cannot be read.
    """
    stage = load_stage(EvalStage, config)
    settings = stage.eval
    keep_compiled_code(compile_cache)
    accelerator = Accelerator(cpu=pick_device(settings.device).type == "cpu")
    device = accelerator.device
    # First, so that a model that cannot be loaded ends the stage before hours of work.
    models = settings.speech_models if accelerator.is_main_process else EvalSpeechModelConfig()
    listener = Listener(models, device)
    rows = PackedRows(eval_rows)
    pinned = base_of_rows(eval_rows, stage.pretrained_base)
    base = load_base(pinned.pretrained, pick_dtype(settings.dtype, device))
    adapted = load_adapter(base, adapter_dir)
    check_base(adapter_dir, pinned)
    model = DualLossModel(adapted).to(device)
    num_forward = 4 * sum(rows.row_lengths())  # adapter and base, own text and another
    compile_where_it_pays(model, settings.compile, accelerator, num_forward * FORWARD_SHARE, rows)
    codec, info = load_codec_of(rows.codec_info, device)
    samples = read_samples(rows, HeldOutClips.read(clips), model.shape)
    max_frames = settings.max_seconds * info.frame_rate_hz
    prompts = choose_prompts(samples, settings.num_prompts, max_frames)
    speakers = {each.sample.sample_id: each.clip["speaker"] for each in samples}

    losses, other_text, spoken = {}, {}, {}
    states = {ADAPTER: nullcontext(), BASE: adapted.disable_adapter()}
    for name, state in states.items():
        with state:
            losses[name] = list(
                held_out_frames(model, rows, accelerator, settings.rows_per_batch).values()
            )
            others = OtherTexts(rows, speakers, model.place_of_text)
            sums = held_out_sums(model, others, accelerator, settings.rows_per_batch)
            other_text[name] = list(sums.values())
            spoken[name] = speak_prompts(model, codec, info, prompts.chosen, settings, accelerator)
    ancestor = None
    if ancestor_dir is not None:  # last: it takes the place of the adapter
        take_weights(adapted, ancestor_dir)
        ancestor = summarize(held_out_sums(model, rows, accelerator, settings.rows_per_batch))
    if accelerator.is_main_process:
        of_clips = ClipLosses(
            clips=[_described(each) for each in samples],
            clusters=_clusters(samples),
            adapter=losses[ADAPTER],
            base=losses[BASE],
            adapter_other_text=other_text[ADAPTER],
            base_other_text=other_text[BASE],
        )
        metrics = write_losses(eval_dir, of_clips, ancestor)
        with activity("rendering recordings through the codec"):
            takes = Takes.collect(prompts.chosen, spoken, codec, info)
        differences = write_speech(
            eval_dir, samples_dir, takes, settings, listener, prompts.num_too_long
        )
        verdict = judge(
            {**of_clips.differences(), **differences},
            audio_loss=metrics.adapter.eval_audio_loss,
            num_entries=model.shape.codebook_size,
            text_use=of_clips.text_use(),
            clustered_by=of_clips.clusters.by,
            clips_of=clips_of,
        )
        verdict.write(eval_dir / "verdict.json")
        for sentence in verdict.sentences:
            logger.info("%s", sentence)
    accelerator.end_training()


def _described(each: HeldOutSample) -> dict[str, Any]:
    return {
        "clip_id": each.sample.sample_id,
        "task": each.task,
        "text": each.text,
        "speaker": each.speakers,
        "language": each.clip["language"],
        "duration_seconds": each.duration_seconds,
    }


def _clusters(samples: Sequence[HeldOutSample]) -> Clusters:
    return Clusters.of(
        [each.sample.sample_id for each in samples],
        [each.clip["audio_path"] for each in samples],
        [each.clip["speaker"] for each in samples],
    )


def write_losses(
    eval_dir: Path, losses: ClipLosses, ancestor: SplitMetrics | None = None
) -> EvalMetrics:
    """Write ``metrics.json``, ``breakdown.json`` and ``clips.parquet``."""
    ids = [clip["clip_id"] for clip in losses.clips]
    totals = {
        name: summarize(dict(zip(ids, [of_clip.sums for of_clip in model], strict=True)))
        for name, model in ((ADAPTER, losses.adapter), (BASE, losses.base))
    }
    metrics = EvalMetrics(**totals, ancestor=ancestor)
    write_table(eval_dir / "clips.parquet", EVAL_CLIPS, clip_rows(losses))
    losses.breakdown().write(eval_dir / "breakdown.json")
    metrics.write(eval_dir / "metrics.json")
    logged: list[tuple[str, SplitMetrics]] = [*totals.items()]
    if ancestor is not None:
        logged.append(("ancestor", ancestor))
    for name, total in logged:
        text = "" if total.eval_text_loss is None else f"  text {total.eval_text_loss:.4f}"
        logger.info(
            "%-8s  eval_loss %.4f%s  audio %.4f  stop %.4f  (%d clips)",
            name,
            total.eval_loss,
            text,
            total.eval_audio_loss,
            total.eval_stop_loss,
            total.num_clips,
        )
    return metrics


def summarize(sums: dict[str, LossSums]) -> SplitMetrics:
    """Return the metrics over all clips: nats per label over the whole split, one division last."""
    total = total_of(sums)
    return SplitMetrics(
        **named_losses(total, prefix="eval_"),
        **named_accuracies(total, prefix="eval_"),
        num_clips=len(sums),
        num_text_labels=int(total.count[0]) if total.has_text else None,
        num_audio_labels=int(total.count[1:-1].sum()),
    )


def clip_rows(losses: ClipLosses) -> list[dict[str, Any]]:
    """Return the rows of ``clips.parquet``: each clip's losses under adapter and base."""
    rows = []
    for clip, adapter, base in zip(losses.clips, losses.adapter, losses.base, strict=True):
        row = {key: clip[key] for key in ("clip_id", "speaker", "language", "task")}
        for name, model in ((ADAPTER, adapter), (BASE, base)):
            named = named_losses(model.sums)
            row |= {f"{name}_{loss}": named.get(loss) for loss in LOSS_DESCRIPTIONS}
            row |= {
                f"{name}_stop_at_end": model.stop_at_end,
                f"{name}_stop_before_end": model.stop_before_end,
            }
        count, has_text = adapter.sums.count, adapter.sums.has_text
        row["num_text_labels"] = int(count[0]) if has_text else None
        row |= {"num_audio_labels": int(count[1:-1].sum())}
        rows.append(row)
    return rows


def write_speech(
    eval_dir: Path,
    samples_dir: Path,
    takes: Takes,
    settings: EvaluateConfig,
    listener: Listener,
    num_too_long: int,
) -> dict[str, Difference | None]:
    """Measure the generated speech; write ``generation.json``, ``generation.parquet``, and WAVs.

    Returns:
        Adapter minus base at the first temperature, for the verdict.
    """
    generation = Generation(
        num_prompts=len(takes.prompts),
        num_too_long=num_too_long,
        max_seconds=settings.max_seconds,
        seed=settings.seed,
        speech_models=settings.speech_models.model_dump(),
        voices=[],
        differences=[],
    )
    if takes.prompts:
        with activity("measuring the speech"):
            takes.listen(listener)
        clusters = _clusters(takes.prompts)
        generation = generation.model_copy(
            update={"voices": takes.totals(clusters), "differences": takes.differences(clusters)}
        )
    with atomic_folder(samples_dir) as folder:
        takes.write(folder)
    write_table(eval_dir / "generation.parquet", GENERATED, takes.rows())
    generation.write(eval_dir / "generation.json")
    return generation.differences[0].measures if generation.differences else {}


if __name__ == "__main__":
    main(run)
