"""Stage 4: train a LoRA adapter on the packed rows, under ``accelerate launch``.

An optimizer step takes ``rows_per_step`` packed rows over all processes together, in a seeded
global order. The counts of labels are summed over the whole step before the first forward pass,
each micro-batch's loss is divided by them, and the gradients are added up: the number of processes
and the size of the micro-batches change the speed, never the result.

Everything random is seeded by epoch and row, so a checkpoint needs no state of a random generator,
and a resumed run gives the adapter of an uninterrupted one.
"""

import logging
import signal
import sys
from pathlib import Path
from typing import Any

from higgs_pipe.cli import main
from higgs_pipe.config.stages import TrainStage, load_stage
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.compilation import keep_compiled_code
from higgs_pipe.higgs.family import family_of_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.training.checkpoints import Checkpoints, run_identity
from higgs_pipe.training.lock import only_training_in
from higgs_pipe.training.preflight.checks import check_before_training
from higgs_pipe.training.processes import (
    caught_signals,
    lost_process_named,
    make_accelerator,
)
from higgs_pipe.training.run_info import run_info, write_run
from higgs_pipe.training.training import Training

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    train_rows: Path,
    eval_rows: Path,
    output_dir: Path,
    overrides: str = "{}",
    adapter_dir: Path | None = None,
    compile_cache: Path | None = None,
) -> None:
    """Train an adapter; keep the one with the lowest held-out loss.

    An interrupted run resumes from its last checkpoint. SIGTERM, SIGHUP, Ctrl-C and the end of the
    workflow finish the step, save a checkpoint, and exit with 128 + the signal's number.

    Args:
        config: ``results/config/train.json``.
        train_rows: Packed training rows.
        eval_rows: Packed held-out rows.
        output_dir: Gets ``adapter/`` (PEFT), ``metrics.jsonl``, ``preflight.json``,
            ``config.json``, ``run.json`` and ``trainable_parameters.json``, ``logs/`` of the
            tracker, and ``checkpoints/`` while training runs.
        overrides: JSON object of the experiment's settings, which override the ``train`` section.
        adapter_dir: Folder of the adapter, if not ``adapter/`` in ``output_dir``.
        compile_cache: Folder of compiled code, unless ``TORCHINDUCTOR_CACHE_DIR`` names another.

    Raises:
        UserError: A setting does not fit, or training fails for a reason that the user can fix.
    """
    stage = load_stage(TrainStage, config, overrides)
    keep_compiled_code(compile_cache)
    accelerator = make_accelerator(stage.train, output_dir)
    adapter_dir = adapter_dir or output_dir / "adapter"
    with (
        lost_process_named(accelerator, stage.train.timeout_seconds),
        only_training_in(output_dir, accelerator),
    ):
        packed, held_out = PackedRows(train_rows), PackedRows(eval_rows)
        base = base_of_rows(train_rows, stage.pretrained_base, eval_rows)
        if (licence := family_of_base(base.pretrained).licence) and accelerator.is_main_process:
            logger.warning("%s", licence.notice)
        training = Training(stage, base, packed, held_out, accelerator)
        checked: dict[str, Any] = {"checks": []}
        if stage.train.preflight:
            start = "base" if training.ancestor is None else "earlier adapter"
            checked = check_before_training(training.model, packed, held_out, accelerator, start)
        if accelerator.is_main_process:
            info = run_info(accelerator.device, accelerator.num_processes, training.ancestor)
            write_run(output_dir, info, stage, training.trainable_parameters, checked)
        checkpoints = Checkpoints(
            output_dir / "checkpoints",
            run_identity(stage, base, train_rows, eval_rows, accelerator, training.ancestor),
            stage.train.save_total_limit,
        )
        with caught_signals() as caught:
            is_complete = training.fit(output_dir, adapter_dir, checkpoints, caught)
            accelerator.end_training()
    if not is_complete:  # the signal may have come to another process
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))


if __name__ == "__main__":
    main(run)
