"""Stage 5: the real loss on the held-out clips, of the adapter and of the base without it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from higgs_pipe.cli import main
from higgs_pipe.config.stages import EvalStage, load_stage
from higgs_pipe.data.specs import EVAL_CLIPS, LOSS_DESCRIPTIONS
from higgs_pipe.data.tables import write_table
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.devices import pick_device, pick_dtype
from higgs_pipe.higgs.lora import load_adapter
from higgs_pipe.higgs.loss import LossSums, named_accuracies, named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.results import EvalMetrics, SplitMetrics

logger = logging.getLogger("higgs_pipe")

ADAPTER, BASE = "adapter", "base"


def run(config: Path, eval_rows: Path, adapter_dir: Path, metrics: Path, clips: Path) -> None:
    """Evaluate an adapter and its base on the same clips.

    Args:
        config: ``results/config/eval.json``.
        eval_rows: Packed held-out rows.
        adapter_dir: The PEFT adapter.
        metrics: Where the totals go (JSON): ``{"adapter": {...}, "base": {...}}``.
        clips: Where the table with a row per clip goes.

    Raises:
        UserError: The adapter does not fit the base, or the held-out split is empty.
    """
    stage = load_stage(EvalStage, config)
    settings = stage.eval
    accelerator = Accelerator(cpu=pick_device(settings.device).type == "cpu")
    rows = PackedRows(eval_rows)
    dtype = pick_dtype(settings.dtype, accelerator.device)
    base = load_base(stage.pretrained_base, dtype)
    adapted = load_adapter(base, adapter_dir)
    model = DualLossModel(adapted).to(accelerator.device)

    sums = {}
    for name, state in ((ADAPTER, nullcontext()), (BASE, adapted.disable_adapter())):
        with state:
            sums[name] = held_out_sums(model, rows, accelerator, settings.rows_per_batch)
    if accelerator.is_main_process:
        write_table(clips, EVAL_CLIPS, list(clip_rows(sums)))
        totals = {name: summarize(of_clips) for name, of_clips in sums.items()}
        EvalMetrics(**totals).write(metrics)
        for name, total in totals.items():
            logger.info(
                "%-7s  eval_loss %.4f  text %.4f  audio %.4f  stop %.4f  (%d clips)",
                name,
                total.eval_loss,
                total.eval_text_loss,
                total.eval_audio_loss,
                total.eval_stop_loss,
                total.num_clips,
            )
    accelerator.end_training()


def summarize(sums: dict[str, LossSums]) -> SplitMetrics:
    """Return the metrics over all clips: nats per label over the whole split, one division last."""
    total = total_of(sums)
    return SplitMetrics(
        **named_losses(total, prefix="eval_"),
        **named_accuracies(total, prefix="eval_"),
        num_clips=len(sums),
        num_text_labels=int(total.count[0]),
        num_audio_labels=int(total.count[1:-1].sum()),
    )


def clip_rows(sums: Mapping[str, dict[str, LossSums]]) -> Iterator[dict[str, Any]]:
    """Rows of ``clips.parquet``: each clip's losses under the adapter and under the base."""
    for clip_id, of_adapter in sums[ADAPTER].items():
        row: dict[str, Any] = {"clip_id": clip_id}
        for model in (ADAPTER, BASE):
            losses = named_losses(sums[model][clip_id])
            row |= {f"{model}_{name}": losses[name] for name in LOSS_DESCRIPTIONS}
        row["num_text_labels"] = int(of_adapter.count[0])
        row["num_audio_labels"] = int(of_adapter.count[1:-1].sum())
        yield row


if __name__ == "__main__":
    main(run)
