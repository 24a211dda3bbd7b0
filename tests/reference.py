"""The objective once more, from its written definition alone, in plain loops.

A sample's audio turn holds, for each codebook, BOS, the codes, EOS; codebook k is delayed by k;
what is missing before is BOS and after is EOS. Supervised are: in the target turn the tokens
``<|audio_out_bos|>``, ``<|audio_eos|>``, ``<|eot_id|>``; every code of the target, and the first
EOS of each codebook. Nothing else. Each is predicted at the position before it. Uses nothing of
the package, and the native model as it comes.
"""

from typing import Any

import torch


def sample_losses(model: Any, row: Any, start: int, length: int, first_frame: int) -> Any:
    """Sums of one sample's losses by plain loops over its labels: (text, codebooks) with counts.

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
    text, text_count = torch.zeros((), dtype=hidden.dtype), 0
    audio = [torch.zeros((), dtype=hidden.dtype) for _ in range(config.num_codebooks)]
    audio_count = [0] * config.num_codebooks
    frame = 0
    for position in range(length):
        if labels[position] != -100:
            text = text - text_logp[position - 1, labels[position]]
            text_count += 1
        if is_audio[position]:
            for k, label in enumerate(frame_labels[frame]):
                if label != -100:
                    audio[k] = audio[k] - audio_logp[position - 1, k, label]
                    audio_count[k] += 1
            frame += 1
    return text, text_count, audio, audio_count


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
