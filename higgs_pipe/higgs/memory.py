"""Parameters and GPU memory of a training, estimated without a GPU and without the weights."""

import math
from typing import Self

import torch
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.data.results import ResultPart
from higgs_pipe.higgs.lora import add_lora, trainable_parameters

GIB = 2**30
BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4, "float64": 8}
BYTES_PER_QUANTIZED_VALUE = {"8bit": 1.0, "4bit": 0.5}


class Parameters(ResultPart):
    """Parameter counts of the base, and of the adapter by part."""

    base: int
    trainable: int
    trainable_by_part: dict[str, int]


class Memory(ResultPart):
    """GiB on each GPU by purpose; CUDA and the allocator often add a GiB or two."""

    weights: float
    adapter_and_optimizer: float
    activations: float
    logits: float
    total: float

    @classmethod
    def of_bytes(cls, **num_bytes: float) -> Self:
        """Convert bytes by purpose to GiB, and add them up."""
        gib = {purpose: number / GIB for purpose, number in num_bytes.items()}
        return cls(**gib, total=sum(gib.values()))


def estimate_model(
    base: HiggsAudioV2Config, train: TrainConfig, max_tokens: int
) -> tuple[Parameters, Memory]:
    """Estimate the parameters of an experiment, and the memory per process on its GPU.

    - Weights: the frozen base in its dtype; if quantized, its layers' matrices in fewer bits.
    - Adapter: 16 bytes per trained parameter: weight, gradient and two moments of AdamW in
      float32 (Rajbhandari et al., ZeRO, 2020, section 3.1, without the 16-bit copies).
    - Activations: what a layer keeps for its backward pass, counted as Korthikanti et al. do
      (Reducing Activation Recomputation in Large Transformer Models, 2022, section 4.1), for a
      layer with a frozen base and without a stored matrix of attention scores. With hidden size
      H, key and value size D, FFN size I and rank r, a position keeps two norms, their outputs,
      queries and attention outputs (6 H), keys and values (2 D), the FFN's gate, its activation,
      its other branch and their product (4 I), and LoRA's projections (7 r). With gradient
      checkpointing a recomputed layer keeps H, and one layer at a time is there in full.
    - Logits: of the audio head at every position, and their gradient, in float32, up to
      ``train.max_logits_mb``; the text head sees only a few positions per sample.

    Args:
        base: The config of the base.
        train: The settings of the experiment.
        max_tokens: Positions of a packed row.
    """
    # The initialisation changes no shape, and some kinds need the weights. A token trained on its
    # own is a row of the embeddings, but only the tokenizer knows which.
    lora = train.lora.model_copy(update={"init": "default", "trainable_tokens": []})
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(base, use_text_head=True).requires_grad_(False)
        num_base = sum(parameter.numel() for parameter in model.parameters())
        layers = model.model.layers.parameters()
        num_in_layers = sum(parameter.numel() for parameter in layers if parameter.ndim == 2)
        parts = trainable_parameters(add_lora(model, lora, train.seed))
    num_trainable = sum(parts.values()) + len(train.lora.trainable_tokens) * base.hidden_size

    num_bytes = BYTES_PER_VALUE.get(train.dtype, BYTES_PER_VALUE["bfloat16"])
    num_positions = train.rows_per_micro_batch * max_tokens
    key_value_size = base.num_key_value_heads * base.head_dim
    layer = 6 * base.hidden_size + 2 * key_value_size + 4 * base.intermediate_size
    layer += 7 * train.lora.r
    every = int(train.gradient_checkpointing)
    num_recomputed = math.ceil(base.num_hidden_layers / every) if every else 0
    num_kept = base.num_hidden_layers - num_recomputed + (1 if num_recomputed else 0)
    kept = num_recomputed * base.hidden_size + num_kept * layer
    logits: float = 2 * 4 * num_positions * base.num_codebooks * base.codebook_size
    weights = float(num_base * num_bytes)
    if train.quantization is not None:
        weights -= num_in_layers * (num_bytes - BYTES_PER_QUANTIZED_VALUE[train.quantization])
    memory = Memory.of_bytes(
        weights=weights,
        adapter_and_optimizer=16 * num_trainable,
        activations=kept * num_bytes * num_positions,
        logits=min(logits, train.max_logits_mb * 1e6),
    )
    return Parameters(base=num_base, trainable=num_trainable, trainable_by_part=parts), memory
