"""Pre-flight: before training, look for mistakes that a falling loss would hide.

First the data: frames, labels and ids of the packed rows must mean what the model reads in them.
Then the model, on a few samples: it must get the batch and nothing else, its losses must ask for
the next frame, and every LoRA layer must get a gradient.

Nothing here changes the training that follows: the forward passes are in evaluation mode, which
draws no random number, and gradients are not stored in the parameters.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.batch import PackedRow, PackedRows, collate
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.progress import activity
from higgs_pipe.training.preflight.data_checks import (
    Check,
    check_index_ranges,
    check_labels,
    check_placeholders,
    samples_of,
)
from higgs_pipe.training.preflight.model_checks import (
    check_devices,
    check_lora_gradients,
    check_model_inputs,
    seen_in_forward,
)
from higgs_pipe.training.preflight.offset_checks import (
    audio_losses_by_offset,
    check_offsets,
    check_shuffled_text,
    check_training_loss,
    means_of_codebooks,
    repeated_codes,
)

logger = logging.getLogger("higgs_pipe")

MAX_ROWS_CHECKED = 64  # of each split, evenly spread
PROBE_POSITIONS = 2048  # of held-out samples, for the base's losses
GRADIENT_POSITIONS = 512  # of training samples; any step can hold as many


@activity("pre-flight")
def check_before_training(
    model: Any,
    train_rows: PackedRows,
    eval_rows: PackedRows,
    accelerator: Accelerator,
    start: str = "base",
) -> dict[str, Any]:
    """Run every check, on every process alike.

    This comes before a checkpoint is resumed: the model's losses are those of what it starts from,
    the base's with a new adapter.

    Args:
        model: A :class:`~higgs_pipe.higgs.model.DualLossModel` with a new adapter.
        train_rows: The packed training rows.
        eval_rows: The packed held-out rows.
        accelerator: The Accelerator of this process.
        start: What training starts from, for the messages: the base, or an earlier adapter on it.

    Returns:
        ``preflight.json``: ``checks``, each with ``name``, ``status`` (passed, failed or no
        evidence) and ``found``; and the ``base_audio_loss_by_offset``, a list of K nats per label
        each.

    Raises:
        UserError: A check failed on any process.
    """
    dual_loss_model: DualLossModel = accelerator.unwrap_model(model)
    native, shape = dual_loss_model.native, dual_loss_model.shape
    rows = [table[i] for table in (train_rows, eval_rows) for i in _spread(len(table))]
    samples = [sample for row in rows for sample in samples_of(row, shape)]
    checks = [
        check_index_ranges(rows, native),
        check_placeholders(samples, shape),
        check_labels(samples, shape),
    ]
    _report(checks, accelerator)

    probe = _first_samples(eval_rows, shape, PROBE_POSITIONS, at_least=2)
    training = _first_samples(train_rows, shape, GRADIENT_POSITIONS, at_least=1)
    batch, training_batch = (
        collate(some, shape).to(accelerator.device) for some in (probe, training)
    )
    checks.append(check_devices(native, batch, accelerator.device))
    _report(checks[-1:], accelerator)

    was_training = dual_loss_model.training
    dual_loss_model.eval()
    try:
        seen = seen_in_forward(dual_loss_model, batch)
        losses = audio_losses_by_offset(native, seen.hidden, batch)
        of_model = [
            check_model_inputs(seen, batch),
            check_training_loss(losses, seen.sums),
            check_offsets(losses, repeated_codes(batch), shape.codebook_size, start),
            check_lora_gradients(dual_loss_model, training_batch),
            check_shuffled_text(dual_loss_model, probe, losses, accelerator.device, start),
        ]
    finally:
        dual_loss_model.train(was_training)
    _report(of_model, accelerator)
    checks += of_model
    passed = [check.name for check in checks if check.status == "passed"]
    logger.info("pre-flight: passed: %s", ", ".join(passed))
    return {
        "checks": [asdict(check) for check in checks],
        "base_audio_loss_by_offset": {
            str(offset): [
                value if math.isfinite(value) else None for value in means_of_codebooks(at_offset)
            ]
            for offset, at_offset in enumerate(losses)
        },
    }


def _spread(num_rows: int) -> list[int]:
    """Spread at most ``MAX_ROWS_CHECKED`` row indices from first to last."""
    return sorted({*np.linspace(0, num_rows - 1, min(num_rows, MAX_ROWS_CHECKED)).astype(int)})


def _report(checks: Sequence[Check], accelerator: Accelerator) -> None:
    """Log the checks; stop every process if any check failed on any process."""
    for check in checks:
        if check.status != "failed":
            # On screen only the checks that prove nothing; the log file has all.
            level = logging.DEBUG if check.status == "passed" else logging.WARNING
            logger.log(level, "pre-flight: %s: %s: %s", check.name, check.status, check.found)
    failed = gather_object([check for check in checks if check.status == "failed"])
    messages = list(dict.fromkeys(f"{check.name}: {check.found}" for check in failed))
    if messages:
        raise UserError(
            f"pre-flight: {len(messages)} of the checks before training failed:\n"
            f"{list_offenders(messages)}\n"
            "Nothing was trained. To train anyway, set train.preflight: false."
        )


def _first_samples(
    table: PackedRows, config: BaseShape, num_positions: int, at_least: int
) -> list[PackedRow]:
    """Take samples from the start of a table up to a number of positions."""
    chosen: list[PackedRow] = []
    for index in range(len(table)):
        for sample in samples_of(table[index], config):
            chosen.append(sample)
            if len(chosen) >= at_least and sum(len(s.input_ids) for s in chosen) >= num_positions:
                return chosen
    return chosen
