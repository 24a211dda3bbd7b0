"""The held-out loss: one way to compute it, for training, evaluation and the package's proof."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from higgs_pipe.higgs.batch import PackedBatch, PackedRow, collate
from higgs_pipe.higgs.frame_losses import FrameLosses, frame_losses
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.progress import activity

Losses = TypeVar("Losses")  # of one sample


class Rows(Protocol):
    """Packed rows by number: a table, or one whose rows are changed when they are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PackedRow: ...


def held_out_sums(
    model: Any, rows: Rows, accelerator: Accelerator, rows_per_batch: int = 1
) -> dict[str, LossSums]:
    """Compute the sums of every held-out sample, on every process alike.

    Args:
        model: A :class:`~higgs_pipe.higgs.model.DualLossModel`.
        rows: The packed held-out rows; they are shared out over the processes.
        accelerator: The Accelerator of this process.
        rows_per_batch: Rows per forward pass.

    Returns:
        Sample id to its sums, each (2 + K,) float64 on the CPU, in the order of the ids.
    """
    return _by_sample(_sample_sums, model, rows, accelerator, rows_per_batch)


def held_out_frames(
    model: Any, rows: Rows, accelerator: Accelerator, rows_per_batch: int
) -> dict[str, FrameLosses]:
    """Compute the losses by frame of every held-out sample; arguments as of ``held_out_sums``."""
    return _by_sample(frame_losses, model, rows, accelerator, rows_per_batch)


def _sample_sums(model: DualLossModel, batch: PackedBatch) -> list[LossSums]:
    sums: LossSums = model(batch)[0]
    return sums.samples()


@torch.inference_mode()
def _by_sample(
    compute: Callable[[DualLossModel, PackedBatch], Iterable[Losses]],
    model: Any,
    rows: Rows,
    accelerator: Accelerator,
    rows_per_batch: int,
) -> dict[str, Losses]:
    """Compute the losses of each sample, batch by batch; every process gets them all."""
    dual_loss_model = accelerator.unwrap_model(model)
    was_training = dual_loss_model.training
    dual_loss_model.eval()
    found: list[tuple[str, Losses]] = []
    mine = range(accelerator.process_index, len(rows), accelerator.num_processes)
    with activity("held-out loss", len(mine), "rows") as evaluating:
        for start in range(0, len(mine), rows_per_batch):
            indices = mine[start : start + rows_per_batch]
            batch = collate([rows[i] for i in indices], dual_loss_model.shape)
            losses = compute(dual_loss_model, batch.to(accelerator.device))
            found += zip(batch.sample_ids, losses, strict=True)
            evaluating.advance(len(indices))
    dual_loss_model.train(was_training)
    return dict(sorted(gather_object(found), key=lambda item: item[0]))


def total_of(sums: dict[str, LossSums]) -> LossSums:
    """Add up all samples, in the order of the ids: (2 + K,)."""
    samples = list(sums.values())
    correct = [sample.correct for sample in samples if sample.correct is not None]
    return LossSums(
        loss=torch.stack([sample.loss for sample in samples]),
        count=torch.stack([sample.count for sample in samples]),
        correct=torch.stack(correct) if correct else None,
        has_text=samples[0].has_text,
    ).total()
