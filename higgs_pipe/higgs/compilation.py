"""The decision to compile the model's layers, and the place of the compiled code."""

import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from higgs_pipe.config.settings import AutoOrBool
from higgs_pipe.higgs.compilation_costs import (
    COLD_SECONDS,
    SAVED_SECONDS_PER_POSITION,
    WARM_SECONDS,
)
from higgs_pipe.higgs.fused_lora import is_fused

logger = logging.getLogger("higgs_pipe")

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # Triton's kernels are kept below it


def configure_compiler() -> None:
    """Make PyTorch keep less memory for the backward pass and reuse compiled code.

    By default it keeps the inputs of matrix products, including LoRA's dropped inputs and masks.
    Recomputing these takes no product and halves the memory. Tracing is faster where floats are
    constants, in PyTorch 2.11 twice as fast. LoRA's own backward pass may go into the cache of
    compiled code, because it depends on its arguments alone.
    """
    import torch._dynamo.config as dynamo  # late, because it takes seconds
    import torch._functorch.config as functorch

    functorch.aggressive_recomputation = True
    functorch.autograd_cache_allow_custom_autograd_functions = True
    dynamo.specialize_float = True


class Compilation(NamedTuple):
    """Choice to compile the layers or not, and its reason."""

    is_on: bool
    reason: str


def keep_compiled_code(folder: Path | None) -> None:
    """Keep compiled code in ``folder``, or where the user's variable says; call this early.

    Args:
        folder: None leaves the choice to PyTorch.
    """
    if folder is not None:
        os.environ.setdefault(CACHE_VARIABLE, str(folder.absolute()))


def folder_of_compiled_code() -> Path | None:
    """Return the folder in use; None is PyTorch's own."""
    used = os.environ.get(CACHE_VARIABLE)
    return None if used is None else Path(used)


def choose_compilation(
    setting: AutoOrBool,
    model: nn.Module,
    device: torch.device,
    num_positions: float,
    cache: Path | None = None,
    kept: bool | None = None,
    speed: float = 1.0,
) -> Compilation:
    """Choose whether to compile the layers.

    Args:
        setting: ``auto`` compiles if it is possible and saves time.
        model: The base with its adapter.
        device: The model's.
        num_positions: Positions that this process still has to train on.
        cache: Folder of compiled code; with code in it, compiling takes less time.
        kept: The choice of an interrupted run, which ``auto`` repeats if possible.
        speed: Speed of the GPU in matrix products, relative to an H200.
    """
    if setting != "auto":
        return Compilation(setting, "set in the config")
    obstacle = _obstacle(model, device)
    if obstacle is not None:
        return Compilation(False, obstacle)
    if kept is not None:
        return Compilation(kept, "as before the interruption")
    is_warm = cache is not None and cache.is_dir() and any(cache.iterdir())
    cost = WARM_SECONDS if is_warm else COLD_SECONDS
    saved = num_positions * SAVED_SECONDS_PER_POSITION / speed
    facts = f"compiling takes about {cost:.0f} s and saves about {saved:.0f} s"
    return Compilation(saved > cost, facts)


def _obstacle(model: nn.Module, device: torch.device) -> str | None:
    """Return the reason why the layers cannot be compiled for a GPU, or None."""
    if device.type != "cuda":
        return f"on {device.type} it takes longer than it saves"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "the GPU is older than compute capability 7.0"
    unfused = [name for name, part in model.named_modules() if _is_unfused(part)]
    if unfused:
        return f"PEFT's own code runs {len(unfused)} LoRA layers, such as {unfused[0]}"
    return missing_tool()


def _is_unfused(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and not is_fused(module)


def missing_tool() -> str | None:
    """Return a missing tool for compiling GPU kernels, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler (install gcc, or set CC)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"{header} is missing (install Python's development files)"
    return None
