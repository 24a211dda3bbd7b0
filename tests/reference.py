"""A plain-loop reference of the objective, written only from its documented definition.

A sample's audio turn holds, for each codebook, BOS, the codes, EOS; codebook k is delayed by k;
what is missing before is BOS and after is EOS. Supervised are: in the target turn the tokens
``<|audio_out_bos|>``, ``<|audio_eos|>``, ``<|eot_id|>``; every code of the target, and the first
EOS of each codebook. Nothing else. Each is predicted at the position before it. Uses nothing of
the package, and the native model as it comes.

:func:`plain_training` is a whole training in that manner: full precision, one sample at a time.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import HiggsAudioV2ForConditionalGeneration


def sample_losses(model: Any, row: Any, start: int, length: int, first_frame: int) -> Any:
    """Sums of one sample's losses by plain loops over its labels: (text, codebooks) with counts.

    Arguments as of :func:`_predictions`.
    """
    text_logp, text_at, audio_logp, audio_at = _predictions(model, row, start, length, first_frame)
    text = _nats(text_logp, text_at)
    audio = [_nats(audio_logp[:, k], at) for k, at in enumerate(audio_at)]
    return text, len(text_at), audio, [len(at) for at in audio_at]


def _predictions(model: Any, row: Any, start: int, length: int, first_frame: int) -> Any:
    """Log-probabilities of one sample, and where its labels are: for text, for the codebooks.

    Args:
        model: The native model (perhaps with LoRA), unchanged.
        row: A packed row.
        start: Where the sample begins in the row.
        length: Its positions.
        first_frame: Its first frame in the row.
    """
    config = model.config
    ids = torch.as_tensor(row.input_ids[start : start + length].astype("int64"))
    labels = row.labels[start : start + length].tolist()
    is_audio = [i in (config.audio_token_id, config.audio_delay_token_id) for i in ids.tolist()]
    frames = slice(first_frame, first_frame + sum(is_audio))
    audio_ids = torch.as_tensor(row.audio_input_ids[frames].astype("int64"))
    frame_labels = row.audio_labels[frames].tolist()

    hidden = model.model(input_ids=ids[None], audio_input_ids=audio_ids[None]).last_hidden_state[0]
    text_logp = model.text_lm_head(hidden).log_softmax(-1)
    audio_logits = model.audio_lm_head(hidden)
    audio_logp = audio_logits.reshape(length, config.num_codebooks, -1).log_softmax(-1)
    text_at: list[tuple[int, int]] = []  # (position of the prediction, label)
    audio_at: list[list[tuple[int, int]]] = [[] for _ in range(config.num_codebooks)]
    frame = 0
    for position in range(length):
        if labels[position] != -100:
            text_at.append((position - 1, labels[position]))
        if is_audio[position]:
            for k, label in enumerate(frame_labels[frame]):
                if label != -100:
                    audio_at[k].append((position - 1, label))
            frame += 1
    return text_logp, text_at, audio_logp, audio_at


def plain_frame_losses(model: Any, row: Any) -> dict[str, tuple[Any, Any]]:
    """By sample of a row with one target: losses (T, K), and probabilities of EOS (T + 1,)."""
    found = {}
    start = first_frame = 0
    placeholders = (model.config.audio_token_id, model.config.audio_delay_token_id)
    for sample_id, length in zip(row.sample_ids, row.sample_lengths.tolist(), strict=True):
        with torch.no_grad():
            _, _, logp, at = _predictions(model, row, start, length, first_frame)
        losses = [
            [-logp[position, k, label].item() for position, label in codebook[:-1]]
            for k, codebook in enumerate(at)
        ]
        eos = at[0][-1][1]
        stops = [logp[position, 0, eos].exp().item() for position, _ in at[0]]
        found[sample_id] = (np.array(losses).T, np.array(stops))
        ids = row.input_ids[start : start + length].tolist()
        first_frame += sum(token in placeholders for token in ids)
        start += length
    return found


def _nats(logp: Any, predicted: list[tuple[int, int]]) -> Any:
    """The summed loss of (position, label) pairs under log-probabilities (positions, ids)."""
    positions, labels = zip(*predicted, strict=True)
    return -logp[list(positions), list(labels)].sum()


def row_losses(model: Any, row: Any) -> Any:
    """:func:`sample_losses` added up over the samples of a row, each run by itself."""
    totals: Any = None
    start = first_frame = 0
    placeholders = (model.config.audio_token_id, model.config.audio_delay_token_id)
    for length in row.sample_lengths.tolist():
        found = sample_losses(model, row, start, length, first_frame)
        if totals is None:
            totals = found
        else:
            text, text_count, audio, audio_count = totals
            totals = (
                text + found[0],
                text_count + found[1],
                [a + b for a, b in zip(audio, found[2], strict=True)],
                [a + b for a, b in zip(audio_count, found[3], strict=True)],
            )
        ids = row.input_ids[start : start + length].tolist()
        first_frame += sum(i in placeholders for i in ids)
        start += length
    return totals


def dual_loss(text: Any, text_count: int, audio: list[Any], audio_count: list[int]) -> Any:
    """Text mean plus the mean of the codebooks' means."""
    means = [a / n for a, n in zip(audio, audio_count, strict=True)]
    return text / text_count + sum(means) / len(means)


def read_rows(path: Path) -> list[Any]:
    """The packed rows, their columns as arrays."""
    return [
        SimpleNamespace(**{name: np.array(value) for name, value in row.items()})
        for row in pq.read_table(path).to_pylist()
    ]


def norm_as_precise_as_its_input(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The native norm, which rounds to float32 whatever comes in; Adam would amplify that.

    For a comparison in float64, put it in the place of ``HiggsAudioV2RMSNorm.forward``.
    """
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))


def base_with_lora(base: Path, seed: int = 0, r: int = 16, alpha: int = 32) -> Any:
    """The native model in float64 with a new adapter on every linear layer of the body."""
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        base, dtype=torch.float64, use_text_head=True
    )
    ffn = ["gate_proj", "up_proj", "down_proj"]
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", *ffn]
    config = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=modules)
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def loss_of_rows(model: Any, rows: list[Any]) -> Any:
    """The dual loss of an optimizer step that takes ``rows``."""
    found = [row_losses(model.get_base_model(), row) for row in rows]
    num_codebooks = model.config.num_codebooks
    audio = [sum(f[2][k] for f in found) for k in range(num_codebooks)]
    num_audio = [sum(f[3][k] for f in found) for k in range(num_codebooks)]
    return dual_loss(sum(f[0] for f in found), sum(f[1] for f in found), audio, num_audio)


def plain_training(
    base: Path,
    rows_path: Path,
    steps: list[list[int]],
    learning_rate: float,
    num_warmup_steps: int,
    max_norm: float = math.inf,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """AdamW over ``steps`` (lists of rows): the adapter, and the loss of each step."""
    model, rows = base_with_lora(base), read_rows(rows_path)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    losses = []
    for i, step in enumerate(steps):
        if i < num_warmup_steps:
            factor = i / num_warmup_steps
        else:
            done = (i - num_warmup_steps) / (len(steps) - num_warmup_steps)
            factor = (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * factor
        loss = loss_of_rows(model, [rows[row] for row in step])
        optimizer.zero_grad()
        loss.backward()
        norm = sum(p.grad.square().sum() for p in trained) ** 0.5
        for p in trained:
            p.grad *= min(1.0, max_norm / norm)
        optimizer.step()
        losses.append(loss.item())
    return get_peft_model_state_dict(model), losses


def delayed_frames(codes: list[list[int]], bos: int, eos: int) -> list[list[int]]:
    num_codebooks = len(codes[0])
    streams = [[bos, *(frame[k] for frame in codes), eos] for k in range(num_codebooks)]
    num_frames = len(codes) + 2 + num_codebooks - 1
    frames = []
    for t in range(num_frames):
        frame = []
        for k, stream in enumerate(streams):
            if t < k:
                frame.append(bos)
            elif t - k < len(stream):
                frame.append(stream[t - k])
            else:
                frame.append(eos)
        frames.append(frame)
    return frames


def audio_labels(codes: list[list[int]], bos: int, eos: int) -> list[list[int]]:
    frames = delayed_frames(codes, bos, eos)
    labels = [[-100] * len(frame) for frame in frames]
    for k in range(len(frames[0])):
        for t, frame in enumerate(frames):
            if frame[k] == bos:
                continue
            labels[t][k] = frame[k]
            if frame[k] == eos:
                break
    return labels


def text_labels(tokens: list[str], is_target: list[bool]) -> list[str | None]:
    """Labels of a tokenized sample, as token strings; None where there is none.

    Args:
        tokens: Of the sample.
        is_target: Whether each assistant turn is a target.
    """
    header = ["<|start_header_id|>", *"assistant", "<|end_header_id|>", "Ċ", "Ċ"]
    labels: list[str | None] = [None] * len(tokens)
    targets = iter(is_target)
    learns = False
    for i, token in enumerate(tokens):
        if tokens[max(0, i - len(header)) : i] == header:
            learns = next(targets)
        if learns and token not in ("<|AUDIO_OUT|>", "<|reserved_special_token_6|>"):
            labels[i] = token
        if token == "<|eot_id|>":
            learns = False
    return labels
