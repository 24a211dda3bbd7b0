"""Operators and kernels of a layer of the 3B model's proportions, counted on a CPU.

    PYTHONPATH=. python bench/count_operators.py

Forward and backward of a micro-step with LoRA r16 and dropout over a small bfloat16 base, once with
two layers and once with four: half the difference is a layer. Uncompiled, every operator that
writes memory is counted; compiled, the kernels that the compiler generates, the matrix products it
calls, and those products for which it first copies their addend (a copy of a whole activation).
"""

import argparse
import collections
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from train_step import build_model, draw_clips, model_config, packed_rows

from higgs_pipe.higgs.batch import PackedBatch, collate
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel

# Operators that only describe memory anew.
VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "split",
    "select",
    "split_with_sizes",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
    "as_strided",
    "unbind",
    "_reshape_alias",
    "empty",
    "empty_like",
    "new_empty",
    "_pin_memory",
    "lift_fresh",
}
COMPILED_KERNEL = re.compile(r"^ +cpp_fused\w+\(", re.MULTILINE)
PRODUCT = re.compile(r"extern_kernels\.(?:mm|addmm|bmm)\(")
# addmm(a, b, c, out=d): the library copies a to d first.
COPYING_PRODUCT = re.compile(r"extern_kernels\.addmm\((\w+),.*out=(?!\1)")


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in PyTorch
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in PyTorch
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def small_model(num_layers: int, dropout: float) -> tuple[DualLossModel, PackedBatch]:
    """A model of this many layers, and a packed row."""
    config = model_config(256, num_layers, 512)
    [clip] = draw_clips(config, 1)  # one sample: one call of attention
    rows = packed_rows([clip], 1024)
    torch.set_default_dtype(torch.bfloat16)
    model = DualLossModel(build_model(config, dropout)).train()
    torch.set_default_dtype(torch.float32)
    return model, collate(rows, config, dropout_seeds=range(len(rows)))


def take_micro_step(model: DualLossModel, batch: PackedBatch) -> None:
    """Forward and backward."""
    weights = label_weights(batch.label_counts())
    model(batch, weights, predict=False)[0].objective.backward()


def count_uncompiled(num_layers: int, dropout: float) -> collections.Counter[str]:
    """Operators of a micro-step by name."""
    model, batch = small_model(num_layers, dropout)
    take_micro_step(model, batch)
    with Counter() as counter:
        take_micro_step(model, batch)
    found: collections.Counter[str] = counter.found
    return found


def count_compiled(dropout: float) -> dict[str, int]:
    """Kernels of one layer by kind, of forward and backward together."""
    torch._dynamo.reset()
    # The first layer's input needs no gradient, so that the second one is compiled apart.
    counts = []
    for num_layers in (1, 2):
        model, batch = small_model(num_layers, dropout)
        model.compile_layers()
        _, code = run_and_get_code(take_micro_step, model, batch)
        text = "\n".join(code)
        counts.append(
            {
                "generated kernels": len(COMPILED_KERNEL.findall(text)),
                "matrix products": len(PRODUCT.findall(text)),
                "products that copy first": len(COPYING_PRODUCT.findall(text)),
            }
        )
    return counts[1]


def main(arguments: Sequence[str]) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args(arguments)
    few, many = (count_uncompiled(n, options.dropout) for n in (2, 4))
    per_layer = {name: (many[name] - few[name]) / 2 for name in many}
    print("operators per layer:", sum(per_layer.values()))
    for name, number in sorted(per_layer.items(), key=lambda item: -item[1])[:20]:
        print(f"  {number:6.1f} {name}")
    if not options.no_compile:
        inductor.aot_inductor.debug_compile = True  # -O0: the C++ compiler takes most of the time
        inductor.cpp.simdlen = 1
        print(count_compiled(options.dropout))


if __name__ == "__main__":
    main(sys.argv[1:])
