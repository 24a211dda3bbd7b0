"""GPU memory of a training: a formula, with constants fitted to measurements."""

from dataclasses import dataclass, replace
from typing import Self

from higgs_pipe.data.results import ResultPart
from higgs_pipe.higgs.shape import BaseShape

GIB = 2**30
BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4, "float64": 8}
BYTES_PER_QUANTIZED_VALUE = {"8bit": 1.0, "4bit": 0.5}
# Weight, gradient and two moments of AdamW in float32 (Rajbhandari et al., ZeRO, 2020, section 3.1,
# without the 16-bit copies).
BYTES_PER_TRAINED_VALUE = 16
# What a layer keeps, and what is in use while one layer is computed, over the values that
# :func:`layer_values` counts: fitted to the peaks of docs/performance.md. Without compiled layers,
# dropout and norms keep copies. Compiled, a layer keeps its input, queries, keys, values, attention
# outputs, the input of the FFN, and two branches of it; the rest is computed again, at once.
KEPT_SHARE = {False: 1.60, True: 0.58}
WORKING_SHARE = {False: 0.42, True: 2.16}
WORKSPACE_BYTES = 0.19e9  # of matrix products, and what is allocated once per step
# Of the 3B model of Higgs Audio v2, on which memory and time were measured.
LAYERS_3B, PRODUCTS_3B = 28, 3072 * (2 * 3072 + 2 * 1024 + 3 * 8192)


class Parameters(ResultPart):
    """Parameter counts of the base, and of the adapter by part."""

    base: int
    trainable: int
    trainable_by_part: dict[str, int]


class Memory(ResultPart):
    """GiB on each GPU by purpose; CUDA itself takes about half a GiB more."""

    weights: float
    adapter_and_optimizer: float
    activations: float
    logits: float
    workspace: float
    total: float

    @classmethod
    def of_bytes(cls, **num_bytes: float) -> Self:
        """Convert bytes by purpose to GiB, and add them up."""
        gib = {purpose: number / GIB for purpose, number in num_bytes.items()}
        return cls(**gib, total=sum(gib.values()))


@dataclass(frozen=True)
class MemoryFormula:
    """Bytes of a training on one GPU, as a function of positions and recomputed layers."""

    num_layers: int
    weights: float
    num_trained: int
    logits: float  # with their gradient, at most
    layer_input: float  # bytes per position that a recomputed layer keeps
    layer_kept: float  # bytes per position that another layer keeps
    working: float  # bytes per position while one layer is computed
    relative_work: float = 1.0  # of a position, to the 3B model's

    def activations(self, num_positions: float, num_recomputed: int) -> float:
        """Return the bytes that a micro-batch needs beyond weights, adapter and optimizer."""
        num_kept = self.num_layers - num_recomputed + (1 if num_recomputed else 0)
        per_position = num_recomputed * self.layer_input + num_kept * self.layer_kept
        return (per_position + self.working) * num_positions

    def memory(self, num_positions: int, num_recomputed: int) -> Memory:
        """Return the memory of a training by purpose."""
        return Memory.of_bytes(
            weights=self.weights,
            adapter_and_optimizer=BYTES_PER_TRAINED_VALUE * self.num_trained,
            activations=self.activations(num_positions, num_recomputed),
            logits=self.logits,
            workspace=WORKSPACE_BYTES,
        )

    def fewest_recomputed(self, num_positions: float, num_bytes: float) -> int | None:
        """Return the fewest layers to recompute so that activations fit; None if they never do."""
        return next(
            (
                num_recomputed
                for num_recomputed in range(self.num_layers + 1)
                if self.activations(num_positions, num_recomputed) <= num_bytes
            ),
            None,
        )

    def scaled(self, factor: float) -> Self:
        """Return the formula with the size of activations scaled to a probe's measurement."""
        return replace(
            self,
            layer_input=self.layer_input * factor,
            layer_kept=self.layer_kept * factor,
            working=self.working * factor,
        )


def layer_values(base: BaseShape, rank: int) -> int:
    """Count the values that a layer keeps per position for its backward pass.

    Counted as Korthikanti et al. do (Reducing Activation Recomputation in Large Transformer Models,
    2022, section 4.1), for a layer with a frozen base and without a stored matrix of attention
    scores. With hidden size H, query size Q, key and value size D and FFN size I: two norms and
    their outputs (4 H), queries and attention outputs (2 Q), keys and values (2 D), the FFN's gate,
    its activation, its other branch and their product (4 I), and LoRA's projections (7 ranks).
    If queries and keys are normalized, also their values before that (Q + D).
    """
    queries, keys = base.query_size, base.key_value_size
    normalized = queries + keys if base.normalizes_heads else 0
    attention = 4 * base.hidden_size + 2 * queries + 2 * keys + normalized
    return int(attention + 4 * base.intermediate_size + 7 * rank)


def relative_work(base: BaseShape) -> float:
    """Return the matrix products of a position in a base's layers, relative to the 3B model's."""
    return base.num_layers * base.products_per_layer / (LAYERS_3B * PRODUCTS_3B)
