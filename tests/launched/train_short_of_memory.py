"""Run under the launcher: a training in which the last process runs out of memory once.

Usage: train_short_of_memory.py CONFIG TRAIN_ROWS EVAL_ROWS OUTPUT_DIR

In step 2 the last process's first micro-batch of two rows, or its only one, does not fit.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from higgs_pipe import train
from higgs_pipe.training.step import Stepper

raised = False


def main(config: Path, train_rows: Path, eval_rows: Path, output_dir: Path) -> None:
    micro_step = Stepper._micro_step

    def limited(self: Stepper, *args: Any) -> Any:
        global raised
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        if rank == num_processes - 1 and self.state.progress.step == 1 and not raised:
            raised = True
            raise torch.OutOfMemoryError("pretended")
        return micro_step(self, *args)

    Stepper._micro_step = limited  # type: ignore[method-assign, assignment]
    train.run(config, train_rows, eval_rows, output_dir)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
