"""A plain-loop reference of the Higgs TTS 3 objective, written only from its definition.

T codec frames become T + 7 rows; codebook k is k rows late, BOC (1024) fills the rows before its
codes and EOC (1025) those after. A sample is ``<|tts|>``, perhaps a reference, ``<|text|>`` T
``<|audio|>`` and a placeholder of -100 for each row. Labels are every code and every EOC of the
target; the last codebook has none of these. ``<|audio|>`` predicts row 0. There is no
text loss. The loss is the mean of the codebooks' means. Uses nothing of the package.
"""

from typing import Any

import torch

BOC, EOC, PLACEHOLDER, IGNORED = 1024, 1025, -100, -100


def delayed_rows(codes: list[list[int]]) -> list[list[int]]:
    """(T, K) codes -> (T + K - 1, K)."""
    num_codebooks, rows = len(codes[0]), []
    for r in range(len(codes) + num_codebooks - 1):
        row = []
        for k in range(num_codebooks):
            if r < k:
                row.append(BOC)
            elif r < k + len(codes):
                row.append(codes[r - k][k])
            else:
                row.append(EOC)
        rows.append(row)
    return rows


def row_labels(codes: list[list[int]]) -> list[list[int]]:
    """The labels of a target's rows."""
    rows = delayed_rows(codes)
    labels = [[IGNORED] * len(row) for row in rows]
    for k in range(len(rows[0])):
        for r, row in enumerate(rows):
            if row[k] != BOC:
                labels[r][k] = row[k]
    return labels


def codebook_losses(model: Any, row: Any) -> tuple[list[Any], list[int]]:
    """Sums and counts of each codebook over the samples of a packed row, each run by itself.

    Args:
        model: The native model (perhaps with LoRA), unchanged; it returns logits (1, S, K, V).
        row: A packed row.
    """
    sums: list[Any] = [0.0] * 8
    counts = [0] * 8
    start = frame = 0
    for length in row.sample_lengths.tolist():
        ids = row.input_ids[start : start + length].tolist()
        num_frames = ids.count(PLACEHOLDER)
        frames = row.audio_input_ids[frame : frame + num_frames]
        logits = model(torch.tensor([ids]), torch.as_tensor(frames.astype("int64"))[None])[0]
        log_p, seen = logits.log_softmax(-1), 0
        for position, token in enumerate(ids):
            if token != PLACEHOLDER:
                continue
            for k, label in enumerate(row.audio_labels[frame + seen].tolist()):
                if label != IGNORED:
                    sums[k] = sums[k] - log_p[position - 1, k, label]
                    counts[k] += 1
            seen += 1
        start, frame = start + length, frame + num_frames
    return sums, counts


def audio_loss(sums: list[Any], counts: list[int]) -> Any:
    """The mean of the codebooks' means."""
    return sum(s / n for s, n in zip(sums, counts, strict=True)) / len(sums)
