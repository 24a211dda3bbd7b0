"""Compiling of the model's layers, alike on all processes, before the first step."""

import logging
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from higgs_pipe.config.settings import AutoOrBool
from higgs_pipe.higgs.batch import PackedBatch, PackedRows, collate
from higgs_pipe.higgs.compilation import (
    choose_compilation,
    folder_of_compiled_code,
)
from higgs_pipe.higgs.compilation_costs import H200_FLOPS
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.memory import relative_work
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.training.card import card_of

logger = logging.getLogger("higgs_pipe")


def compile_where_it_pays(
    model: DualLossModel,
    setting: AutoOrBool,
    accelerator: Accelerator,
    num_positions: float,
    rows: PackedRows,
    kept: bool | None = None,
) -> bool:
    """Compile the layers if every process can and should; log why, and how long it took.

    Args:
        model: To be compiled.
        setting: ``train.compile`` or ``eval.compile``.
        accelerator: The Accelerator of this process.
        num_positions: Positions that are left to train on, over all processes.
        rows: Packed rows; the first one is used to compile.
        kept: The choice of an interrupted run.

    Returns:
        Whether they are compiled.
    """
    card = card_of(accelerator.device)
    choice = choose_compilation(
        setting,
        model,
        accelerator.device,
        num_positions / accelerator.num_processes,
        folder_of_compiled_code(),
        kept,
        speed=(1.0 if card is None else card.flops() / H200_FLOPS) / relative_work(model.shape),
    )
    choices = gather_object([choice])
    is_on = all(each.is_on for each in choices)
    reason = next((each.reason for each in choices if each.is_on == is_on), choice.reason)
    logger.info("layers are %s: %s", "compiled" if is_on else "not compiled", reason)
    if is_on:
        model.compile_layers()
        batch = collate([rows[0]], model.shape, dropout_seeds=[0])
        warm_up(model, batch.to(accelerator.device))
    return is_on


def warm_up(model: DualLossModel, batch: PackedBatch) -> None:
    """Compile the code of a training step and a held-out loss, and log the time that it took.

    Parameters, gradients and the state of training stay unchanged.

    Args:
        model: With layers to compile.
        batch: On the model's device.
    """
    logger.info("compiling the layers; the first time takes half a minute or more")
    started = time.perf_counter()
    evaluate_once(model, batch)
    if any(parameter.requires_grad for parameter in model.parameters()):
        compute_gradients(model, batch)
    if batch.input_ids.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    place = folder_of_compiled_code() or "PyTorch's own folder"
    logger.info("compiled the layers in %.1f s; the code is kept in %s", seconds, place)


def compute_gradients(model: DualLossModel, batch: PackedBatch) -> tuple[Any, ...]:
    """Return the gradients of a micro-step; nothing is added to those of training."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = label_weights(batch.label_counts(), has_text=model.shape.has_text_loss)
    sums, _ = model(batch, weights, predict=False)
    return torch.autograd.grad(sums.objective, trained, allow_unused=True)


@torch.inference_mode()
def evaluate_once(model: DualLossModel, batch: PackedBatch) -> None:
    """Run a forward pass as for a held-out loss."""
    was_training = model.training
    model.eval()(batch)
    model.train(was_training)
