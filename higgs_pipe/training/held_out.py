"""The held-out loss: one way to compute it, for training, evaluation and the package's proof."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.loss import LossSums


@torch.inference_mode()
def held_out_sums(
    model: Any, rows: PackedRows, accelerator: Accelerator, rows_per_batch: int = 1
) -> dict[str, LossSums]:
    """Sums of every held-out sample, on every process, whatever the number of processes.

    Args:
        model: A :class:`~higgs_pipe.higgs.model.DualLossModel`, perhaps wrapped by DDP.
        rows: The packed held-out rows; they are shared out over the processes.
        accelerator: Of this process.
        rows_per_batch: Rows in a forward pass.

    Returns:
        Sample id to its sums, each (2 + K,) float64 on the CPU, in the order of the ids.
    """
    dual_loss_model = accelerator.unwrap_model(model)
    was_training = dual_loss_model.training
    dual_loss_model.eval()
    found: list[tuple[str, LossSums]] = []
    mine = range(accelerator.process_index, len(rows), accelerator.num_processes)
    for indices in _batched(mine, rows_per_batch):
        batch = collate([rows[i] for i in indices], dual_loss_model.native.config)
        sums, _ = dual_loss_model(batch.to(accelerator.device))
        loss, count, correct = (
            tensor.double().cpu() for tensor in (sums.loss, sums.count, sums.correct)
        )
        found += [
            (sample_id, LossSums(loss[i], count[i], correct[i]))
            for i, sample_id in enumerate(batch.sample_ids)
        ]
    dual_loss_model.train(was_training)
    return dict(sorted(gather_object(found), key=lambda item: item[0]))


def total_of(sums: dict[str, LossSums]) -> LossSums:
    """The sums of all samples together, (2 + K,), added in the order of the ids."""
    samples = list(sums.values())
    return LossSums(
        torch.stack([s.loss for s in samples]),
        torch.stack([s.count for s in samples]),
        torch.stack([s.correct for s in samples]),
    ).total()


def _batched(indices: range, size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
