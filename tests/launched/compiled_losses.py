"""Run in a process of its own: compiled layers against plain ones, with a cache of compiled code.

Usage: compiled_losses.py BASE TRAIN_ROWS OUTPUT_JSON, with TORCHINDUCTOR_CACHE_DIR set.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from reference import norm_as_precise_as_its_input
from torch._inductor import config as inductor
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import HiggsAudioV2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.padding import Grid
from higgs_pipe.training.compiling import compute_gradients


def main(base: Path, train_rows: Path, output: Path) -> None:
    pretrained = Pretrained("base_model", str(base))
    adapted = add_lora(load_base(pretrained, torch.float64), LoraSettings(dropout=0.2), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.full_like(parameter, 0.01).cumsum(0) % 0.1
    native = adapted.get_base_model()
    body = family_of_model(native).parts_of(native).body
    body.layers = body.layers[:1]  # every layer runs the same compiled code
    plain = DualLossModel(adapted).train()
    compiled = DualLossModel(copy.deepcopy(adapted)).train()
    compiled.compile_layers()
    rows = PackedRows(train_rows)
    batch = collate([rows[0]], plain.shape, dropout_seeds=[7])
    padded = Grid.of_rows(rows.sizes(), 2).collate([rows[0]], plain.shape, dropout_seeds=[7])
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    started = time.perf_counter()
    gradients = compute_gradients(compiled, batch)
    seconds = time.perf_counter() - started
    files = sorted(str(p.relative_to(cache)) for p in cache.rglob("*.py"))
    expected = compute_gradients(plain, batch)
    found = {
        "seconds": seconds,
        "gradient_error": largest_error(gradients, expected),
        "files": files,
        "gradient_error_padded": largest_error(compute_gradients(compiled, padded), expected),
        "files_for_padding": len(list(cache.rglob("*.py"))) - len(files),
    }
    output.write_text(json.dumps(found))


def largest_error(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Of all gradients, each relative to its norm."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs if b is not None)


if __name__ == "__main__":
    inductor.aot_inductor.debug_compile = True  # -O0: the C++ compiler takes most of the time
    inductor.cpp.simdlen = 1
    inductor.compile_threads = 1  # else it starts processes for them, which take seconds to import
    for norm in (HiggsAudioV2RMSNorm, Qwen3RMSNorm):
        norm.forward = norm_as_precise_as_its_input
    main(*map(Path, sys.argv[1:]))
