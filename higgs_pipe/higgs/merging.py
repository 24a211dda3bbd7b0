"""An adapter merged into its base, one tensor at a time.

Each changed weight is computed in float32 from the base's and the adapter's tensors, by the
formulas of LoRA (Hu et al. 2021), rank-stabilised LoRA (Kalajdzievski 2023) and DoRA (Liu et al.
2024)::

    LoRA   W + s B A,   s = alpha / r, rank-stabilised alpha / sqrt(r)
    DoRA   (W + s B A) m / |W + s B A|, the norm of each output, m trained

Parts that were trained in full, and trained tokens' rows, replace the base's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.adapter_files import check_adapter
from higgs_pipe.higgs.loading_errors import CONTENT_FAULTS
from higgs_pipe.higgs.shards import Shards

PEFT_PREFIX = "base_model.model."
# Settings of PEFT that change the formula; this pipeline trains none of them.
UNKNOWN_FORMULAS = (
    "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters",
    "fan_in_fan_out", "lora_bias", "use_qalora", "megatron_config",
)  # fmt: skip
# What PEFT calls the tensors of a module that it has changed.
PARTS = (
    "lora_A.weight", "lora_B.weight", "lora_magnitude_vector",
    "lora_embedding_A", "lora_embedding_B", "base_layer.weight",
    "token_adapter.trainable_tokens_delta",
)  # fmt: skip


class Change(Protocol):
    """The change that an adapter makes to one weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; 0 where any size fits."""

    def apply(self, weight: Tensor) -> Tensor:
        """Return the changed weight, in its dtype; ``weight`` may be overwritten."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA or DoRA of a weight (M, N)."""

    down: Tensor  # (r, N)
    up: Tensor  # (M, r)
    scale: float
    magnitude: Tensor | None = None  # DoRA: (M,), or (N,) of an embedding
    is_embedding: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N)."""
        return len(self.up), self.down.shape[1]

    def apply(self, weight: Tensor) -> Tensor:
        """(M, N) -> (M, N)."""
        weight.addmm_(self.up.to(weight.dtype), self.down.to(weight.dtype), alpha=self.scale)
        if self.magnitude is not None:
            outputs = 0 if self.is_embedding else 1
            norm = torch.linalg.vector_norm(weight, dim=outputs, keepdim=True)
            weight *= self.magnitude.to(weight.dtype).view_as(norm) / norm
        return weight


@dataclass(frozen=True, eq=False)
class InFull:
    """A weight that was trained in full."""

    trained: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the trained weight."""
        return tuple(self.trained.shape)

    def apply(self, weight: Tensor) -> Tensor:
        """Return the trained weight."""
        return weight.copy_(self.trained)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Rows of the text embeddings that were trained."""

    ids: list[int]
    rows: Tensor  # (tokens, H)

    @property
    def shape(self) -> tuple[int, ...]:
        """(any vocabulary, H)."""
        return 0, self.rows.shape[1]

    def apply(self, weight: Tensor) -> Tensor:
        """(vocabulary, H) -> (vocabulary, H)."""
        return weight.index_copy_(0, torch.tensor(self.ids), self.rows.to(weight.dtype))


def read_changes(adapter_dir: Path) -> dict[str, list[Change]]:
    """Return the changes of each weight by its native name, in the order of their application.

    Args:
        adapter_dir: A PEFT adapter, as training saves it.

    Raises:
        UserError: It changed since training, or has a tensor or a setting that merging does not
            support.
    """
    check_adapter(adapter_dir)
    try:
        config = LoraConfig.from_pretrained(str(adapter_dir))
        found = load_file(adapter_dir / "adapter_model.safetensors")
        scale = _scale(config)
    except (OSError, ValueError, ZeroDivisionError, *CONTENT_FAULTS) as error:
        raise UserError(f"{adapter_dir} is damaged ({error!r:.200}); train it again.") from None
    unknown = [key for key in UNKNOWN_FORMULAS if getattr(config, key, None)]
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in found.items():
        module, _, part = _split(key.removeprefix(PEFT_PREFIX))
        parts.setdefault(f"{module}.weight", {})[part] = tensor
    changes: dict[str, list[Change]] = {}
    for name, tensors in parts.items():
        known = list(_changes(tensors, config, scale))
        unknown += [f"{name}: {part}" for part in tensors]
        changes[name] = known
    if unknown:
        raise UserError(
            f"{adapter_dir}: the adapter cannot be merged, because of\n{list_offenders(unknown)}\n"
            "Set package.forms: [peft]."
        )
    return changes


def _split(key: str) -> tuple[str, str, str]:
    """Return module, dot and part of a tensor's key."""
    for part in PARTS:
        if key.endswith(f".{part}"):
            return key.removesuffix(f".{part}"), ".", part
    return key.rpartition(".")


def _scale(config: LoraConfig) -> float:
    """Return the factor of the product of LoRA's matrices."""
    scale: float = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    return scale


def _changes(tensors: dict[str, Tensor], config: LoraConfig, scale: float) -> Iterator[Change]:
    """Yield the changes that the tensors of one module make; they are taken out of ``tensors``."""
    tensors.pop("base_layer.weight", None)  # the base's, which PEFT saves beside LoRA on it
    if "weight" in tensors:
        yield InFull(tensors.pop("weight"))
    magnitude = tensors.pop("lora_magnitude_vector", None)
    if "lora_A.weight" in tensors and "lora_B.weight" in tensors:
        down, up = (tensors.pop(f"lora_{side}.weight") for side in "AB")
        yield LowRank(down, up, scale, magnitude)
    if "lora_embedding_A" in tensors and "lora_embedding_B" in tensors:
        a, b = (tensors.pop(f"lora_embedding_{side}") for side in "AB")
        yield LowRank(b.T, a.T, scale, magnitude, is_embedding=True)
    if "token_adapter.trainable_tokens_delta" in tensors:
        ids: Any = config.trainable_token_indices
        if isinstance(ids, list):
            yield Tokens(ids, tensors.pop("token_adapter.trainable_tokens_delta"))


@dataclass
class Rounding:
    """Sums over all weights that were rounded, in float64."""

    max_error: float = 0.0
    error: float = 0.0  # sum of squares of (rounded - exact)
    weight: float = 0.0  # of exact
    change: float = 0.0  # of (exact - base), of changed weights alone
    error_of_changed: float = 0.0  # of (rounded - exact), likewise

    def add(self, exact: Tensor, rounded: Tensor) -> float:
        """Count a weight; return the sum of squares of its error."""
        error = rounded.to(exact.dtype) - exact
        squares = _square_sum(error)
        self.max_error = max(self.max_error, float(error.abs_().max()))
        self.error += squares
        self.weight += _square_sum(exact)
        return squares

    @property
    def relative_error(self) -> float:
        """RMS of the error, relative to the weights'."""
        return _root_ratio(self.error, self.weight)

    @property
    def error_of_change(self) -> float:
        """RMS of the error of the changed weights, relative to their changes'."""
        return _root_ratio(self.error_of_changed, self.change)


def _square_sum(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _root_ratio(numerator: float, denominator: float) -> float:
    return math.sqrt(numerator / denominator) if denominator else 0.0


@dataclass(eq=False)
class Merge:
    """The weights of a base with an adapter merged into it.

    Attributes:
        base: The base's tensors.
        changes: The adapter's, by name.
        dtype: The dtype that weights are rounded to.
        rounding: The effect of rounding on the weights computed so far.
    """

    base: Shards
    changes: Mapping[str, Sequence[Change]]
    dtype: torch.dtype
    rounding: Rounding = field(default_factory=Rounding)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that base and adapter fit the model.

        Args:
            shapes: Every weight of the native model.

        Raises:
            UserError: The base lacks a weight or has it in another shape, or the adapter changes
                a weight that the model does not have, or in another shape.
        """
        found = self.base.shapes
        wrong = [
            f"{name}: the base has {found.get(name)}, the model {shape}"
            for name, shape in shapes.items()
            if found.get(name) != shape
        ]
        for name, changes in self.changes.items():
            for change in changes:
                model = shapes.get(name, ())
                pairs = zip(change.shape, model, strict=False)
                if len(change.shape) != len(model) or any(a not in (0, b) for a, b in pairs):
                    wrong.append(f"{name}: the adapter has {change.shape}, the model {model}")
        if wrong:
            raise UserError(
                f"the adapter cannot be merged:\n{list_offenders(wrong)}\n"
                "Use a complete, unquantized base, and the adapter that was trained on it."
            )

    def __getitem__(self, name: str) -> Tensor:
        """Compute a weight in float32, or in the base's dtype if that is wider, and round it."""
        original = self.base[name]
        changes = self.changes.get(name)
        if not changes and original.dtype == self.dtype:
            return original
        exact = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
        for change in changes or ():
            exact = change.apply(exact)
        rounded = exact.to(self.dtype)
        squares = self.rounding.add(exact, rounded)
        if changes:
            self.rounding.error_of_changed += squares
            self.rounding.change += _square_sum(exact - original.to(exact.dtype))
        return rounded
