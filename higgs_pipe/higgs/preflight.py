"""Pre-flight: before training, look for the mistakes that a falling loss would hide.

The data first: do frames, labels and ids of the packed rows say what the model will read into them?
Then the model, on a few samples: does it get the batch and nothing else, do its losses ask for the
next frame, and does every LoRA layer get a gradient?

Nothing here leaves a trace in the training that follows: the forward passes are in evaluation mode,
which draws no random number, and gradients are computed beside the parameters, not into them.
"""

import itertools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import cross_entropy

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.batch import PackedBatch, PackedRow, PackedRows, collate
from higgs_pipe.higgs.codes import IGNORED, delay, target_labels, undelay
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.higgs.model import DualLossModel

logger = logging.getLogger("higgs_pipe")

MAX_ROWS_CHECKED = 64  # of each split, evenly spread
PROBE_POSITIONS = 2048  # of held-out samples, for the base's losses
GRADIENT_POSITIONS = 512  # of training samples: no more than any step can hold
MARGIN_STANDARD_ERRORS = 5.0
"""Labels of a clip are not independent, so their standard error is too small; hence not 2 or 3."""

BATCH_KEYS = {"input_ids", "audio_input_ids", "position_ids"}
LAYOUT_KEYS = {"routing", "sample_lengths"}  # what our layers get beside the native arguments
IN_ADAPTER = re.compile(r"\.lora_.*|\.modules_to_save\..*")  # in a parameter's name
REPACK = "run: snakemake --forcerun pack"

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Status = Literal["passed", "failed", "no evidence"]


@dataclass(frozen=True)
class Check:
    """What one check found; if it failed, also what that means and what to do."""

    name: str
    status: Status
    found: str


def check_before_training(
    model: Any, train_rows: PackedRows, eval_rows: PackedRows, accelerator: Accelerator
) -> dict[str, Any]:
    """Run every check, on every process alike.

    The model's losses must be the base's, so this comes before a checkpoint is resumed: a new
    adapter changes nothing.

    Args:
        model: A :class:`~higgs_pipe.higgs.model.DualLossModel` with a new adapter, perhaps wrapped
            by DDP.
        train_rows: The packed training rows.
        eval_rows: The packed held-out rows.
        accelerator: Of this process.

    Returns:
        ``preflight.json``: ``checks``, each with ``name``, ``status`` (passed, failed or no
        evidence) and ``found``; and the ``base_audio_loss_by_offset``, a list of K nats per label
        each.

    Raises:
        UserError: A check failed, on any process.
    """
    dual_loss_model: DualLossModel = accelerator.unwrap_model(model)
    native = dual_loss_model.native
    rows = [table[i] for table in (train_rows, eval_rows) for i in _spread(len(table))]
    samples = [sample for row in rows for sample in samples_of(row, native.config)]
    checks = [
        check_index_ranges(rows, native),
        check_placeholders(samples, native.config),
        check_labels(samples, native.config),
    ]
    _report(checks, accelerator)

    probe = _first_samples(eval_rows, native.config, PROBE_POSITIONS, at_least=2)
    training = _first_samples(train_rows, native.config, GRADIENT_POSITIONS, at_least=1)
    batch, training_batch = (
        collate(some, native.config).to(accelerator.device) for some in (probe, training)
    )
    checks.append(check_devices(native, batch, accelerator.device))
    _report(checks[-1:], accelerator)

    was_training = dual_loss_model.training
    dual_loss_model.eval()
    try:
        seen = seen_in_forward(dual_loss_model, batch)
        losses = audio_losses_by_offset(native, seen.hidden, batch)
        of_model = [
            check_model_inputs(seen, batch),
            check_training_loss(losses, seen.sums),
            check_offsets(losses, repeated_codes(batch), native.config.codebook_size),
            check_lora_gradients(dual_loss_model, training_batch),
            check_shuffled_text(dual_loss_model, probe, losses, accelerator.device),
        ]
    finally:
        dual_loss_model.train(was_training)
    _report(of_model, accelerator)
    checks += of_model
    return {
        "checks": [asdict(check) for check in checks],
        "base_audio_loss_by_offset": {
            str(offset): [value if math.isfinite(value) else None for value in _means(at_offset)]
            for offset, at_offset in enumerate(losses)
        },
    }


def _spread(num_rows: int) -> list[int]:
    """At most ``MAX_ROWS_CHECKED`` row indices from first to last."""
    return sorted({*np.linspace(0, num_rows - 1, min(num_rows, MAX_ROWS_CHECKED)).astype(int)})


def _report(checks: Sequence[Check], accelerator: Accelerator) -> None:
    """Log the checks; stop every process if one failed on any."""
    for check in checks:
        if check.status != "failed":
            level = logging.INFO if check.status == "passed" else logging.WARNING
            logger.log(level, "pre-flight: %s: %s: %s", check.name, check.status, check.found)
    failed = gather_object([check for check in checks if check.status == "failed"])
    messages = list(dict.fromkeys(f"{check.name}: {check.found}" for check in failed))
    if messages:
        raise UserError(
            f"pre-flight: {len(messages)} of the checks before training failed:\n"
            f"{list_offenders(messages)}\n"
            "Nothing was trained. If you know better, train.preflight: false trains without them."
        )


def samples_of(row: PackedRow, config: Any) -> list[PackedRow]:
    """The samples of a packed row, each as a row of its own.

    Frames are dealt out by the samples' placeholders; the last sample gets what is left.
    """
    is_audio = is_placeholder(row.input_ids, config)
    ends = np.cumsum(row.sample_lengths)
    frame_ends = np.cumsum(is_audio)[ends - 1]
    frame_ends[-1] = len(row.audio_input_ids)
    positions = np.split(np.arange(len(row.input_ids)), ends[:-1])
    frames = np.split(np.arange(len(row.audio_input_ids)), frame_ends[:-1])
    return [
        replace(
            row,
            input_ids=row.input_ids[p],
            labels=row.labels[p],
            audio_input_ids=row.audio_input_ids[f],
            audio_labels=row.audio_labels[f],
            sample_ids=(sample_id,),
            sample_lengths=np.array([len(p)], row.sample_lengths.dtype),
        )
        for sample_id, p, f in zip(row.sample_ids, positions, frames, strict=True)
    ]


def _first_samples(
    table: PackedRows, config: Any, num_positions: int, at_least: int
) -> list[PackedRow]:
    """Samples from the start of a table until they have so many positions."""
    chosen: list[PackedRow] = []
    for index in range(len(table)):
        for sample in samples_of(table[index], config):
            chosen.append(sample)
            if len(chosen) >= at_least and sum(len(s.input_ids) for s in chosen) >= num_positions:
                return chosen
    return chosen


def is_placeholder(input_ids: Array, config: Any) -> npt.NDArray[np.bool_]:
    """Which positions stand for an audio frame: (S,)."""
    return np.isin(input_ids, (config.audio_token_id, config.audio_delay_token_id))


def audio_turns(sample: PackedRow, config: Any) -> list[slice]:
    """The positions of each unbroken run of placeholders."""
    is_audio = is_placeholder(sample.input_ids, config).astype(np.int8)
    edges = np.flatnonzero(np.diff(is_audio, prepend=0, append=0))
    return [slice(*edge) for edge in edges.reshape(-1, 2).tolist()]


def _turn_frames(sample: PackedRow, config: Any) -> list[slice]:
    """The frames of each audio turn, by its placeholders."""
    lengths = [turn.stop - turn.start for turn in audio_turns(sample, config)]
    ends = np.cumsum([0, *lengths]).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def check_index_ranges(rows: Sequence[PackedRow], native: Any) -> Check:
    """Every id of the rows has its embedding and its output."""
    config = native.config
    num_text = min(native.model.embed_tokens.num_embeddings, native.text_lm_head.out_features)
    embedded = native.model.embed_audio_tokens.embed_audio_tokens.num_embeddings
    num_audio = min(embedded, native.audio_lm_head.out_features) // config.num_codebooks
    problems = []
    for row in rows:
        name = row.sample_ids[0]
        if row.audio_input_ids.shape[1] != config.num_codebooks:
            problems.append(f"row of {name}: {row.audio_input_ids.shape[1]} codebooks")
        for what, ids, size in (
            ("text id", row.input_ids, num_text),
            ("text label", row.labels[row.labels != IGNORED], num_text),
            ("audio id", row.audio_input_ids, num_audio),
            ("audio label", row.audio_labels[row.audio_labels != IGNORED], num_audio),
        ):
            if ids.size and not 0 <= ids.min() <= ids.max() < size:
                problems.append(f"row of {name}: {what}s from {ids.min()} to {ids.max()}")
    return _data_check(
        "index range",
        problems,
        f"{len(rows)} rows: text ids below {num_text:,}, audio ids below {num_audio:,}",
        f"the base model has {num_text:,} text ids and {config.num_codebooks} codebooks of "
        f"{num_audio:,}; these rows were packed for another base_model. {REPACK}",
    )


def check_placeholders(samples: Sequence[PackedRow], config: Any) -> Check:
    """Each audio turn has the frames of one recording, whole: BOS first, EOS last, delayed."""
    problems, num_frames = [], 0
    for sample in samples:
        for turn, frames in zip(
            audio_turns(sample, config), _turn_frames(sample, config), strict=True
        ):
            num_placeholders = turn.stop - turn.start
            found = sample.audio_input_ids[frames]
            num_frames += len(found)
            if not _is_delayed(found, num_placeholders, config):
                problems.append(
                    f"{sample.sample_ids[0]}: the {num_placeholders} placeholders from position "
                    f"{turn.start} on do not have the frames of one recording"
                )
        if len(sample.audio_input_ids) != is_placeholder(sample.input_ids, config).sum():
            problems.append(
                f"{sample.sample_ids[0]}: {is_placeholder(sample.input_ids, config).sum()} "
                f"placeholders for {len(sample.audio_input_ids)} frames"
            )
    return _data_check(
        "audio placeholders",
        problems,
        f"{num_frames:,} in {len(samples):,} samples, each with its frame",
        "A recording starts with stream BOS, ends with stream EOS, and codebook k is k frames "
        f"late. Here frames are missing, or belong to another sample. {REPACK}",
    )


def _is_delayed(frames: Array, num_placeholders: int, config: Any) -> bool:
    num_codebooks = frames.shape[1]
    if len(frames) != num_placeholders or num_placeholders < num_codebooks + 2:
        return False
    stream = (config.audio_stream_bos_id, config.audio_stream_eos_id)
    return np.array_equal(delay(undelay(frames), *stream), frames)


def check_labels(samples: Sequence[PackedRow], config: Any) -> Check:
    """Labels stand on what they ask for; targets have all of theirs, references none."""
    problems = []
    num_targets = num_text = num_codes = num_eos = 0
    for sample in samples:
        targets = [
            frames
            for frames in _turn_frames(sample, config)
            if (sample.audio_labels[frames] != IGNORED).any()
        ]
        eos_labels = int((sample.audio_labels == config.audio_stream_eos_id).sum())
        problem = _label_problem(sample, targets, config)
        if problem:
            problems.append(f"{sample.sample_ids[0]}: {problem}")
        num_targets += len(targets)
        num_text += int((sample.labels != IGNORED).sum())
        num_codes += int((sample.audio_labels != IGNORED).sum()) - eos_labels
        num_eos += eos_labels
    return _data_check(
        "labels",
        problems,
        f"{len(samples):,} samples with {num_targets:,} targets: {num_text:,} text, {num_codes:,} "
        f"code and {num_eos:,} EOS labels, {config.num_codebooks} EOS labels a target",
        "Such labels teach something else than the next token of the target. " + REPACK,
    )


def _label_problem(sample: PackedRow, targets: Sequence[slice], config: Any) -> str | None:
    text, audio = sample.labels != IGNORED, sample.audio_labels != IGNORED
    if not text.any() or not targets:
        return "no text label" if targets else "no audio label"
    if (sample.labels != sample.input_ids)[text].any():
        return "text labels are not the tokens that they stand on"
    if (text & is_placeholder(sample.input_ids, config)).any():
        return "a placeholder has a text label"
    if (sample.audio_labels != sample.audio_input_ids)[audio].any():
        return "audio labels are not the codes that they stand on: one of the two is shifted"
    for frames in targets:
        labels = sample.audio_labels[frames]
        num_eos = int((labels == config.audio_stream_eos_id).sum())
        if num_eos != config.num_codebooks:
            return f"{num_eos} EOS labels in a target, where {config.num_codebooks} end it"
        if not np.array_equal(labels, target_labels(sample.audio_input_ids[frames])):
            return "codes of the target have no label, or stream BOS has one"
    return None


def _data_check(name: str, problems: list[str], passed: str, failed: str) -> Check:
    if not problems:
        return Check(name, "passed", passed)
    # One line each would be lost among the other checks of the message.
    shown = "; ".join(problems[:3])
    more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
    return Check(name, "failed", f"{shown}{more}. {failed}")


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
    labels = batch.audio_labels.cpu().numpy()
    position, sample = batch.audio_predictors.cpu().numpy(), batch.audio_sample.cpu().numpy()
    is_next = (np.diff(position) == 1) & (np.diff(sample) == 0)  # (M - 1,)
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
    expected = _means(losses[1])
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


def with_text_of(sample: PackedRow, other: PackedRow, config: Any) -> PackedRow:
    """The audio turns of a sample between the text of another with equally many turns."""
    ids, labels, other_start = [], [], 0
    turns = audio_turns(sample, config)
    for turn, other_turn in zip(turns, audio_turns(other, config), strict=True):
        ids += [other.input_ids[other_start : other_turn.start], sample.input_ids[turn]]
        labels += [other.labels[other_start : other_turn.start], sample.labels[turn]]
        other_start = other_turn.stop
    input_ids = np.concatenate([*ids, other.input_ids[other_start:]])
    return replace(
        sample,
        input_ids=input_ids,
        labels=np.concatenate([*labels, other.labels[other_start:]]),
        sample_lengths=np.array([len(input_ids)], sample.sample_lengths.dtype),
    )


def _means(losses: Floats) -> list[float]:
    """Nats per label of each codebook: (M, K) -> K."""
    return [float(np.nanmean(codebook)) for codebook in losses.T]
