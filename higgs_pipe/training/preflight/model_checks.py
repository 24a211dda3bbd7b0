"""Pre-flight checks of the model: its inputs, devices and dtypes, and its LoRA gradients."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.training.preflight.data_checks import Check, verdict

BATCH_KEYS = {"input_ids", "audio_input_ids", "position_ids"}
OWN_KEYS = {"layout"}  # what our layers get beside the native arguments
IN_ADAPTER = re.compile(r"\.lora_.*|\.modules_to_save\..*")  # in a parameter's name


@dataclass(frozen=True)
class Seen:
    """Inputs and outputs observed in one forward pass."""

    backbone_kwargs: dict[str, Any]
    native_forward_ran: bool
    hidden: Tensor  # (S, H)
    sums: LossSums  # (2 + K,), summed over the samples


@contextmanager
def _hooked(module: Any, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def seen_in_forward(model: DualLossModel, batch: PackedBatch) -> Seen:
    """Run the model on a batch, and record what reaches its backbone and what comes out."""
    of_backbone: list[tuple[dict[str, Any], Tensor]] = []
    of_native: list[None] = []

    def on_backbone(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        positional = {f"argument {i}": value for i, value in enumerate(args)}
        of_backbone.append((positional | kwargs, output.last_hidden_state[0]))

    def on_native(*_: Any) -> None:
        of_native.append(None)

    with _hooked(model.body, on_backbone), _hooked(model.native, on_native):
        sums, _ = model(batch)
    kwargs, hidden = of_backbone[-1]
    return Seen(kwargs, bool(of_native), hidden, sums.total())


def check_model_inputs(seen: Seen, batch: PackedBatch) -> Check:
    """Check that the backbone gets only the batch, without a cache, and no native loss runs."""
    given = {key: value for key, value in seen.backbone_kwargs.items() if value is not None}
    problems = [f"{key} is missing" for key in sorted(BATCH_KEYS - given.keys())]
    problems += [
        f"{key} is not the batch's"
        for key in sorted(BATCH_KEYS & given.keys())
        if not torch.equal(given[key], getattr(batch, key))
    ]
    strays = given.keys() - BATCH_KEYS - OWN_KEYS - {"use_cache"}
    problems += [f"a stray {key}" for key in sorted(strays)]
    if given.get("use_cache") is not False:
        problems.append("use_cache is not off, so packed samples see each other")
    if seen.native_forward_ran:
        problems.append("the native model's own forward ran, whose loss masks every EOS")
    return verdict(
        "model inputs",
        problems,
        f"{', '.join(sorted(given))}, and nothing else",
        "The model would train on another loss. This is a bug in higgs_pipe/higgs/model.py; please "
        "report it.",
    )


@torch.no_grad()
def check_devices(native: Any, batch: PackedBatch, device: torch.device) -> Check:
    """Check that parameters and batch are on the process's device, in matching dtypes."""
    problems = []
    here = batch.input_ids.device
    if here.type != device.type:
        problems.append(f"the batch is on {here}, not on {device}")
    elsewhere = [n for n, p in native.named_parameters() if p.device != here]
    if elsewhere:
        problems.append(f"{len(elsewhere)} parameters are not on {here}, such as {elsewhere[0]}")
    problems += [
        f"{key} is {getattr(batch, key).dtype}, not int64"
        for key in sorted(BATCH_KEYS)
        if getattr(batch, key).dtype != torch.int64
    ]
    lora = sorted({str(p.dtype) for n, p in native.named_parameters() if ".lora_" in n})
    if len(lora) > 1:
        problems.append(f"LoRA tensors are {' and '.join(lora)}")
    text = audio = None
    if not problems:
        parts = family_of_model(native).parts_of(native)
        text = parts.embed_text(batch.input_ids[:, :1]).dtype
        audio = parts.embed_audio(batch.audio_input_ids[:, :1]).dtype
    if text != audio:
        problems.append(f"text embeddings are {text}, audio embeddings {audio}")
    dtypes = f"base {text}, LoRA {''.join(lora)}".replace("torch.", "")
    return verdict(
        "device and type",
        problems,
        f"{dtypes}, on {here}",
        "The step would fail or compute in mixed dtypes. Set train.device and train.dtype to what "
        "this machine has.",
    )


def check_lora_gradients(model: DualLossModel, batch: PackedBatch) -> Check:
    """Check that every LoRA layer, and every part trained in full, gets a gradient.

    In a new adapter one of the two matrices is zero, and therefore the other's gradient too: one
    gradient per layer is enough. Text and audio have equal weights here, whatever the settings,
    because without the text loss the last layer's text FFN would have no gradient.
    """
    parts = [(n, p) for n, p in model.named_parameters() if IN_ADAPTER.search(n)]
    trained = [(name, p) for name, p in parts if p.requires_grad]
    sums, _ = model(batch)
    total = sums.total()
    columns = slice(0 if total.has_text else 1, -1)
    loss = (total.loss[columns] / total.count[columns]).sum()
    gradients = torch.autograd.grad(loss, [p for _, p in trained], allow_unused=True)
    norms: dict[str, float] = {IN_ADAPTER.split(name)[0]: 0.0 for name, _ in parts}
    for (name, _), gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            norms[IN_ADAPTER.split(name)[0]] += float(gradient.norm())
    without: dict[str, list[str]] = defaultdict(list)
    parts_of_layers = model.family.lora.parts
    groups = sorted({_lora_group(layer, parts_of_layers) for layer in norms})
    for layer, norm in norms.items():
        if norm == 0:
            without[_lora_group(layer, parts_of_layers)].append(
                layer.removeprefix("model.base_model.model.")
            )
    if len(without) == len(groups):
        return Check(
            "LoRA gradients",
            "failed",
            "the gradient of every LoRA tensor is zero: nothing would be learned. Check that "
            "train.lora.target_modules names layers between the labels and the input, and that the "
            "base model's weights are not all zero.",
        )
    if without:
        named = "; ".join(
            f"{group} ({len(layers)} layers, such as {layers[0]})"
            for group, layers in without.items()
        )
        return Check(
            "LoRA gradients",
            "failed",
            f"no gradient in {named}. They are frozen, or cut off from the loss, and would not "
            "learn. Remove them from train.lora.target_modules, or find what cuts them off.",
        )
    return Check("LoRA gradients", "passed", f"{len(norms)} layers: {', '.join(groups)}")


def _lora_group(layer: str, parts: Sequence[tuple[str, str]]) -> str:
    """Name a layer's group: ``model…layers.3.audio_mlp.up_proj`` -> ``audio FFN up_proj``."""
    kinds = (part for part, piece in parts if ".layers." in layer and piece in layer)
    name = layer.split(".")[-1]
    kind = next(kinds, None)
    return f"{kind} {name}" if kind else name
