"""Run under ``accelerate launch``: dump the gradients of one optimizer step, for several settings.

Usage: dump_gradients.py TRAIN_JSON TRAIN_ROWS EVAL_ROWS OUTPUT_DIR CASES_JSON
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from higgs_pipe.config import TrainStage, load_stage
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.step_inputs import PlannedStep
from higgs_pipe.train import Training


def main() -> None:
    config, train_rows, eval_rows, output_dir = (Path(arg) for arg in sys.argv[1:5])
    cases = json.loads(sys.argv[5])
    accelerator = Accelerator(cpu=True)
    for name, case in cases.items():
        stage = load_stage(TrainStage, config, json.dumps(case["settings"]))
        training = Training(stage, PackedRows(train_rows), PackedRows(eval_rows), accelerator)
        gradients = {}

        def keep(training=training, gradients=gradients) -> None:
            model = accelerator.unwrap_model(training.model)
            gradients.update(
                {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
            )

        training.optimizer.step = keep
        training.step(training.build_step(PlannedStep(step=2, epoch=0, rows=case["rows"])))
        if accelerator.is_main_process:
            torch.save(gradients, output_dir / f"{name}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()
