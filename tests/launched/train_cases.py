"""Run under the launcher: several small trainings by the same processes, which join only once.

Usage: train_cases.py CASES_JSON

CASES_JSON lists objects {config, train_rows, eval_rows, output_dir, gradients_of?, gpu?}: a case
with ``gradients_of`` (rows) leaves the gradients of one optimizer step in ``gradients.pt``; any
other trains to the end. With ``gpu`` it does so as on a GPU that runs out of memory once, and
leaves the number of replayed micro-steps in ``num_replays.txt``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pretended_gpu import pretend_a_gpu
from reference import norm_as_precise_as_its_input
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import HiggsAudioV2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from higgs_pipe import train
from higgs_pipe.config.stages import TrainStage, load_stage
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.training.processes import make_accelerator
from higgs_pipe.training.step_inputs import PlannedStep
from higgs_pipe.training.training import Training


def dump_gradients(case: dict) -> None:
    output_dir = Path(case["output_dir"])
    stage = load_stage(TrainStage, Path(case["config"]), "{}")
    accelerator = make_accelerator(stage.train, output_dir)
    train_rows, eval_rows = (PackedRows(Path(case[name])) for name in ("train_rows", "eval_rows"))
    base = base_of_rows(train_rows.path, stage.pretrained_base)
    training = Training(stage, base, train_rows, eval_rows, accelerator)
    training.planner.plan(lambda *_: None)
    gradients = {}

    def keep() -> None:
        model = accelerator.unwrap_model(training.model)
        gradients.update(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        )

    training.state.update = keep  # type: ignore[method-assign]
    planned = PlannedStep(step=2, epoch=0, rows=case["gradients_of"])
    training.stepper.step(training.inputs.build(planned))
    if accelerator.is_main_process:
        torch.save(gradients, output_dir / "gradients.pt")


def run_cases(cases: list[dict]) -> None:
    for case in cases:
        if "gradients_of" in case:
            dump_gradients(case)
        else:
            names = ("config", "train_rows", "eval_rows", "output_dir")
            paths: dict[str, Any] = {name: Path(case[name]) for name in names}
            with pytest.MonkeyPatch.context() as patch:
                capture = pretend_a_gpu(patch) if case.get("gpu") else None
                train.run(**paths)
            if capture is not None and Accelerator().is_main_process:
                (paths["output_dir"] / "num_replays.txt").write_text(str(capture.num_replays))


if __name__ == "__main__":
    end_training, Accelerator.end_training = Accelerator.end_training, lambda _: None
    for norm in (HiggsAudioV2RMSNorm, Qwen3RMSNorm):
        norm.forward = norm_as_precise_as_its_input
    run_cases(json.loads(Path(sys.argv[1]).read_text()))
    end_training(Accelerator())
