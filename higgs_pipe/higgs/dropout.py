"""LoRA's dropout, drawn by packed row: the same in any micro-batch, order and process.

A position has a key, drawn from the seed of its row; a layer has a factor for each input feature. A
value is dropped where their product modulo 2^32 is among the lowest numbers: multiplicative hashing
(Knuth, The Art of Computer Programming, volume 3, section 6.4) of two odd random numbers. No
generator has a state, so a layer that is recomputed or compiled draws the same mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import dropout

Part = Literal["all", "text", "audio"]


class PositionKeys:
    """Keys of the positions of the batch at hand; None draws as PyTorch does."""

    def __init__(self) -> None:
        self.all: Tensor | None = None  # (S,) int32, in the order of the samples
        self.text: Tensor | None = None  # (S - F,)
        self.audio: Tensor | None = None  # (F,)

    def put(self, keys: Tensor | None, routed: Tensor, num_text: int) -> None:
        """Take the keys of the next batch.

        Args:
            keys: (S,) in the order of the samples.
            routed: (S,) positions of text, then of audio.
            num_text: Positions of text.
        """
        self.all = self.text = self.audio = None
        if keys is not None:
            self.all = keys
            self.text = keys.index_select(0, routed[:num_text])
            self.audio = keys.index_select(0, routed[num_text:])


class RowDropout(nn.Module):
    """Dropout of a LoRA layer's input, by the keys of its positions.

    Args:
        p: Share of the values that are dropped.
        factors: (in,) int32, odd.
        keys: Position keys of the batch at hand.
        part: The positions that the layer sees.
    """

    factors: Tensor

    def __init__(self, p: float, factors: Tensor, keys: PositionKeys, part: Part) -> None:
        super().__init__()
        self.p = p
        self.lowest_kept = round((p - 0.5) * 2**32)
        self.register_buffer("factors", factors, persistent=False)
        self.keys = keys
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """(S, in) -> (S, in)."""
        if not self.training:
            return x
        keys: Tensor | None = getattr(self.keys, self.part)
        if keys is None:
            return dropout(x, self.p)
        is_kept = keys[:, None] * self.factors >= self.lowest_kept  # int32 wraps around
        return torch.where(is_kept, x / (1 - self.p), 0.0)


def draw_by_row(body: Any, seen_by: Mapping[str, Part]) -> PositionKeys:
    """Replace the dropout of every LoRA layer of the native body; return what takes the keys.

    Args:
        body: The body of the native model.
        seen_by: The positions that a part of a layer sees, by its name; the others see all.
    """
    keys = PositionKeys()
    generator = np.random.default_rng(0)
    for layer in body.layers:
        for name, module in layer.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            part = seen_by.get(name.split(".")[0], "all")
            for adapter, found in module.lora_dropout.items():
                if isinstance(found, RowDropout):  # the model was wrapped before
                    found.keys = keys
                elif isinstance(found, nn.Dropout):
                    factors = torch.from_numpy(_odd_numbers(generator, module.in_features))
                    factors = factors.to(module.lora_A[adapter].weight.device)
                    module.lora_dropout[adapter] = RowDropout(found.p, factors, keys, part)
    return keys


def position_keys(seeds: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    """Draw the keys of the positions of packed rows: (S,), odd.

    Args:
        seeds: One for each row.
        lengths: Positions of each row.
    """
    keys = [
        _odd_numbers(np.random.default_rng(seed), length)
        for seed, length in zip(seeds, lengths, strict=True)
    ]
    return np.concatenate(keys)


def _odd_numbers(generator: np.random.Generator, size: int) -> npt.NDArray[np.int32]:
    return generator.integers(-(2**31), 2**31, size, np.int32) | np.int32(1)
