"""The pre-flight's look at the model: what it gets, what its losses ask for, what can learn."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from higgs_pipe.higgs.batch import PackedBatch, PackedRow, collate
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.training.preflight.data_checks import REPACK, Check, audio_turns, with_text_of

MARGIN_STANDARD_ERRORS = 5.0
"""Labels of a clip are not independent, so their standard error is too small; hence not 2 or 3."""

BATCH_KEYS = {"input_ids", "audio_input_ids", "position_ids"}
LAYOUT_KEYS = {"routing", "sample_lengths"}  # what our layers get beside the native arguments
IN_ADAPTER = re.compile(r"\.lora_.*|\.modules_to_save\..*")  # in a parameter's name

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What passed by in one forward pass."""

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
    """Run the model on a batch and look at what reaches its backbone and what comes out."""
    of_backbone: list[tuple[dict[str, Any], Tensor]] = []
    of_native: list[None] = []

    def on_backbone(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        positional = {f"argument {i}": value for i, value in enumerate(args)}
        of_backbone.append((positional | kwargs, output.last_hidden_state[0]))

    def on_native(*_: Any) -> None:
        of_native.append(None)

    with _hooked(model.native.model, on_backbone), _hooked(model.native, on_native):
        sums, _ = model(batch)
    kwargs, hidden = of_backbone[-1]
    return Seen(kwargs, bool(of_native), hidden, sums.total())


def check_model_inputs(seen: Seen, batch: PackedBatch) -> Check:
    """The backbone gets the batch, no cache and nothing else; the native loss never runs."""
    given = {key: value for key, value in seen.backbone_kwargs.items() if value is not None}
    problems = [f"{key} is missing" for key in sorted(BATCH_KEYS - given.keys())]
    problems += [
        f"{key} is not the batch's"
        for key in sorted(BATCH_KEYS & given.keys())
        if not torch.equal(given[key], getattr(batch, key))
    ]
    strays = given.keys() - BATCH_KEYS - LAYOUT_KEYS - {"use_cache"}
    problems += [f"a stray {key}" for key in sorted(strays)]
    if given.get("use_cache") is not False:
        problems.append("use_cache is not off, so packed samples see each other")
    if seen.native_forward_ran:
        problems.append("the native model's own forward ran, whose loss masks every EOS")
    if problems:
        return Check(
            "model inputs",
            "failed",
            "; ".join(problems) + ". The loss would be another one. This is a mistake in the code "
            "that calls the model, higgs_pipe/higgs/model.py; please report it.",
        )
    return Check("model inputs", "passed", f"{', '.join(sorted(given))}, and nothing else")


@torch.no_grad()
def check_devices(native: Any, batch: PackedBatch, device: torch.device) -> Check:
    """Parameters and batch are on the process's device; what is added together has one type."""
    problems = []
    here = batch.input_ids.device
    if here.type != device.type:
        problems.append(f"the batch is on {here} and not on {device}")
    strangers = [n for n, p in native.named_parameters() if p.device != here]
    if strangers:
        problems.append(f"{len(strangers)} parameters are not on {here}, as {strangers[0]}")
    problems += [
        f"{key} is {getattr(batch, key).dtype} and not int64"
        for key in sorted(BATCH_KEYS)
        if getattr(batch, key).dtype != torch.int64
    ]
    lora = sorted({str(p.dtype) for n, p in native.named_parameters() if ".lora_" in n})
    if len(lora) > 1:
        problems.append(f"LoRA tensors are {' and '.join(lora)}")
    text = audio = None
    if not problems:
        text = native.model.embed_tokens(batch.input_ids[:, :1]).dtype
        audio = native.model.embed_audio_tokens(batch.audio_input_ids[:, :1]).dtype
    if text != audio:
        problems.append(f"text embeddings are {text}, audio embeddings {audio}")
    if problems:
        return Check(
            "device and type",
            "failed",
            "; ".join(problems) + ". The step would fail or compute in mixed types. Set "
            "train.device and train.dtype to one that this machine has.",
        )
    types = f"base {text}, LoRA {''.join(lora)}".replace("torch.", "")
    return Check("device and type", "passed", f"{types}, on {here}")


@torch.no_grad()
def audio_losses_by_offset(native: Any, hidden: Tensor, batch: PackedBatch) -> Floats:
    """The loss of each audio label at three offsets: (3, M, K) nats, NaN where there is no label.

    A label on position q is predicted from position q - offset. 1 is the offset of generation; at 0
    the model sees the code that it is asked for. A loss that comes out as NaN is infinite here.

    Args:
        native: The native model; its audio head is applied.
        hidden: (S, H) of the backbone.
        batch: Whose labels they are.
    """
    labelled = batch.audio_predictors + 1
    has_label = (batch.audio_labels != IGNORED).cpu().numpy()
    losses = np.full((3, *has_label.shape), np.nan)
    for offset in range(3):
        logits = native.audio_lm_head(hidden.index_select(0, labelled - offset))
        nats = cross_entropy(
            logits.unflatten(-1, (native.config.num_codebooks, -1)).flatten(0, 1).float(),
            batch.audio_labels.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        ).view_as(batch.audio_labels)
        nats = nats.double().masked_fill(nats.isnan(), math.inf)
        losses[offset][has_label] = nats.cpu().numpy()[has_label]
    return losses


def repeated_codes(batch: PackedBatch) -> Floats:
    """Whether the code after a label is the same once more: (M, K) of 1, 0 or NaN (none after)."""
    labels, position = batch.audio_labels.cpu().numpy(), batch.audio_predictors.cpu().numpy()
    is_next = np.diff(position) == 1  # (M - 1,); between two clips there is text
    both = (labels[:-1] != IGNORED) & (labels[1:] != IGNORED) & is_next[:, None]
    repeated = np.full(labels.shape, np.nan)
    repeated[:-1][both] = (labels[:-1] == labels[1:])[both]
    return repeated


def check_training_loss(losses: Floats, sums: LossSums) -> Check:
    """The loss that training lowers is the one at the offset of generation, codebook by codebook.

    Args:
        losses: Of :func:`audio_losses_by_offset`.
        sums: Of the model on the same batch.
    """
    expected = means_of_codebooks(losses[1])
    trained = (sums.loss / sums.count)[1:-1].tolist()
    different = [
        f"codebook {k}: {b:.4f} where the next frame's is {a:.4f}"
        for k, (a, b) in enumerate(zip(expected, trained, strict=True))
        if abs(a - b) > 0.01 * a  # bfloat16 rounds; a step of one frame is far more
    ]
    if different:
        return Check(
            "training loss",
            "failed",
            f"{'; '.join(different[:3])} nats. Training would not learn to predict the next frame. "
            "This is a mistake in the code of the loss, higgs_pipe/higgs/; please report it.",
        )
    return Check("training loss", "passed", "asks for the frame after each position")


def check_offsets(losses: Floats, repeated: Floats, codebook_size: int) -> Check:
    """The base predicts the next frame better than the one it reads or the one after the next.

    A base that is no better than a guess (ln V) at any offset gives no evidence. At offset 0 a low
    loss may only say that codes repeat, so it counts if the base gives a frame's own code more
    probability than codes repeat.

    Args:
        losses: (3, M, K) of :func:`audio_losses_by_offset`.
        repeated: (M, K) of :func:`repeated_codes`.
        codebook_size: V.
    """
    if np.isinf(losses).any():
        return Check("audio offset", "no evidence", "the base's audio loss is not finite")
    right, wrong = [], []
    for k in range(losses.shape[2]):
        at = losses[:, :, k]
        means = [float(np.nanmean(at[offset])) for offset in range(3)]
        if not any(_is_above(math.log(codebook_size) - at[offset], 0) for offset in range(3)):
            continue
        beyond_repeats = np.exp(-at[0]) - repeated[:, k]
        if _is_above(at[1] - at[2], 0):
            wrong.append(f"codebook {k}: {means[2]:.3f} at offset 2, {means[1]:.3f} at 1")
        elif _is_above(at[1] - at[0], 0) and _is_above(beyond_repeats, 0):
            wrong.append(f"codebook {k}: {means[0]:.3f} at offset 0, {means[1]:.3f} at 1")
        elif _is_above(at[0] - at[1], 0) and _is_above(at[2] - at[1], 0):
            right.append(k)
    if wrong:
        return Check(
            "audio offset",
            "failed",
            f"the base model does not predict the next frame best ({'; '.join(wrong)}; nats per "
            "label): codes or labels are shifted, or `codec` is not the base model's, or the base "
            "was itself trained on labels that were not shifted. Check `codec` and `base_model`; "
            + REPACK,
        )
    if len(right) == losses.shape[2]:
        return Check("audio offset", "passed", "the base predicts the next frame best")
    agreeing = f"codebooks {', '.join(map(str, right))} agree; in the others " if right else ""
    return Check(
        "audio offset",
        "no evidence",
        f"{agreeing}the base's loss on held-out codes says nothing either way: no better than a "
        f"blind guess (ln V = {math.log(codebook_size):.2f} nats), or alike at offsets 0, 1 and "
        "2. So it is for a base with random weights; for a trained one, check `codec`.",
    )


def _is_above(values: Floats, bound: float) -> bool:
    """Whether the mean is above the bound by the margin; NaN is no value."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return False
    standard_error = values.std(ddof=1) / math.sqrt(len(values))
    return bool(values.mean() - MARGIN_STANDARD_ERRORS * standard_error > bound)


def check_lora_gradients(model: DualLossModel, batch: PackedBatch) -> Check:
    """Every LoRA layer, and every part trained in full, gets a gradient from the labels.

    In a new adapter one of the two matrices is zero and the other's gradient is therefore zero too,
    so one gradient a layer is asked for. The text and the audio mean weigh alike here, whatever the
    settings: without text labels the last layer's text FFN would have no gradient.
    """
    parts = [(n, p) for n, p in model.named_parameters() if IN_ADAPTER.search(n)]
    trained = [(name, p) for name, p in parts if p.requires_grad]
    sums, _ = model(batch)
    total = sums.total()
    loss = (total.loss / total.count)[:-1].sum()
    gradients = torch.autograd.grad(loss, [p for _, p in trained], allow_unused=True)
    norms: dict[str, float] = {IN_ADAPTER.split(name)[0]: 0.0 for name, _ in parts}
    for (name, _), gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            norms[IN_ADAPTER.split(name)[0]] += float(gradient.norm())
    without: dict[str, list[str]] = defaultdict(list)
    groups = sorted({_lora_group(layer) for layer in norms})
    for layer, norm in norms.items():
        if norm == 0:
            without[_lora_group(layer)].append(layer.removeprefix("model.base_model.model."))
    if len(without) == len(groups):
        return Check(
            "LoRA gradients",
            "failed",
            "the gradient of every LoRA tensor is zero: nothing would be learnt. Check that "
            "train.lora.target_modules name layers between the labels and the input, and that the "
            "base model's weights are not all zero.",
        )
    if without:
        named = "; ".join(
            f"{group} ({len(layers)} layers, as {layers[0]})" for group, layers in without.items()
        )
        return Check(
            "LoRA gradients",
            "failed",
            f"no gradient in {named}. They would stay as they are: frozen, or cut off from the "
            "loss. Leave them out of train.lora.target_modules, or find what cuts them off.",
        )
    return Check("LoRA gradients", "passed", f"{len(norms)} layers: {', '.join(groups)}")


def _lora_group(layer: str) -> str:
    """``model…layers.3.audio_mlp.up_proj`` -> ``audio FFN up_proj``."""
    kinds = {"self_attn": "attention", "mlp": "text FFN", "audio_mlp": "audio FFN"}
    names = layer.split(".")
    kind = next((kinds[name] for name in names if name in kinds), None)
    return f"{kind} {names[-1]}" if kind else names[-1]


def check_shuffled_text(
    model: DualLossModel, samples: Sequence[PackedRow], losses: Floats, device: torch.device
) -> Check:
    """A control: whether the base's audio loss is lower with the right text than with another's.

    It never fails. Samples with equally many audio turns exchange their texts, all turns of them.

    Args:
        model: In evaluation mode.
        samples: One a row.
        losses: (3, M, K) of :func:`audio_losses_by_offset` on the samples.
        device: Of the model.
    """
    config = model.native.config
    by_turns: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        by_turns[len(audio_turns(sample, config))].append(i)
    donor = {
        i: others[(n + 1) % len(others)]
        for others in by_turns.values()
        if len(others) > 1
        for n, i in enumerate(others)
    }
    if not donor:
        return Check("shuffled text", "no evidence", "no two held-out samples can exchange texts")
    shuffled = [with_text_of(samples[i], samples[donor[i]], config) for i in sorted(donor)]
    batch = collate(shuffled, config).to(device)
    other = audio_losses_by_offset(model.native, seen_in_forward(model, batch).hidden, batch)[1]
    num_labels = [(sample.audio_labels != IGNORED).any(axis=1).sum() for sample in samples]
    own = losses[1][np.isin(np.repeat(np.arange(len(samples)), num_labels), sorted(donor))]
    if np.isinf(own).any() or np.isinf(other).any():
        return Check("shuffled text", "no evidence", "the base's audio loss is not finite")
    found = (
        f"the base's audio loss is {np.nanmean(own):.3f} with a sample's own text and "
        f"{np.nanmean(other):.3f} with another's, nats per label"
    )
    knows = _is_above(math.log(config.codebook_size) - own, 0)
    if knows and _is_above(other - own, 0):
        return Check("shuffled text", "passed", found + ": it reads the text")
    if knows and _is_above(own - other, 0):
        found += ". Are the transcripts those of their clips?"
    return Check("shuffled text", "no evidence", found)


def means_of_codebooks(losses: Floats) -> list[float]:
    """Nats per label of each codebook: (M, K) -> K."""
    return [float(np.nanmean(codebook)) for codebook in losses.T]
