"""Parameters and GPU memory of a training, counted on models without weights."""

from typing import Any

import torch

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.higgs.family import family_of_config
from higgs_pipe.higgs.lora import add_lora, trainable_parameters
from higgs_pipe.higgs.memory import (
    BYTES_PER_QUANTIZED_VALUE,
    BYTES_PER_VALUE,
    KEPT_SHARE,
    WORKING_SHARE,
    MemoryFormula,
    Parameters,
    layer_values,
    relative_work,
)


def memory_formula(
    base: Any, train: TrainConfig, num_trained: int, is_compiled: bool
) -> MemoryFormula:
    """Return the formula of an experiment, with constants fitted to measurements.

    Args:
        base: The native config of the base.
        train: The settings of the experiment.
        num_trained: Trained parameters.
        is_compiled: Whether the layers are compiled.
    """
    family = family_of_config(base)
    shape, model = family.shape_of(base), family.skeleton(base)
    num_bytes = BYTES_PER_VALUE.get(train.dtype, BYTES_PER_VALUE["bfloat16"])
    weights = float(sum(p.numel() for p in model.parameters()) * num_bytes)
    if train.quantization is not None:
        # The heads' matrices are two-dimensional too, but not in the layers.
        layers = family.parts_of(model).body.layers
        matrices = (p for p in layers.parameters() if p.ndim == 2)
        saved_per_value = num_bytes - BYTES_PER_QUANTIZED_VALUE[train.quantization]
        weights -= sum(p.numel() for p in matrices) * saved_per_value
    layer = layer_values(shape, train.lora.r) * num_bytes
    return MemoryFormula(
        num_layers=shape.num_layers,
        weights=weights,
        num_trained=num_trained,
        logits=train.max_logits_mb * 1e6,
        layer_input=shape.hidden_size * num_bytes,
        layer_kept=KEPT_SHARE[is_compiled] * layer,
        working=WORKING_SHARE[is_compiled] * layer,
        relative_work=relative_work(shape),
    )


def count_parameters(base: Any, train: TrainConfig) -> Parameters:
    """Count the parameters of an experiment, without weights."""
    # The initialisation changes no shape, and some kinds need the weights. A token trained on its
    # own is a row of the embeddings, but only the tokenizer knows which.
    lora = train.lora.model_copy(update={"init": "default", "trainable_tokens": []})
    family = family_of_config(base)
    model = family.skeleton(base).requires_grad_(False)
    with torch.device("meta"):
        num_base = sum(parameter.numel() for parameter in model.parameters())
        parts = trainable_parameters(add_lora(model, lora, train.seed))
    num_trainable = (
        sum(parts.values()) + len(train.lora.trainable_tokens) * family.shape_of(base).hidden_size
    )
    return Parameters(base=num_base, trainable=num_trainable, trainable_by_part=parts)
