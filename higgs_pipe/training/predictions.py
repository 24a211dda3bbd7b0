"""Predictions beside labels, in two readable log lines."""

from typing import Any

from torch import Tensor

from higgs_pipe.higgs.batch import Labels, PackedBatch
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.loss import Predictions

NUM_SHOWN_AT_EACH_END = 4


def describe_predictions(batch: PackedBatch, predictions: Predictions, tokenizer: Any) -> list[str]:
    """Return a line on text and one on codebook 0 of the first sample: both ends, and shapes.

    If the family has no text loss, there is no line on text.

    Args:
        batch: The micro-batch.
        predictions: The model's predictions of its labels.
        tokenizer: Decodes the text ids.
    """
    name = batch.sample_ids[0]
    lines = []
    if predictions.text is not None:
        text, text_labels = _both_ends(predictions.text, batch.text)
        lines.append(
            f"  {name} text: predicted {text} {tokenizer.decode(text)!r}, "
            f"label {text_labels} {tokenizer.decode(text_labels)!r}; "
            f"logits {predictions.text_logits_shape}"
        )
    codes, code_labels = _both_ends(predictions.audio, batch.audio)
    lines.append(
        f"  {name} codebook 0: predicted {codes}, label {code_labels}; "
        f"logits {predictions.audio_logits_shape}"
    )
    return lines


def _both_ends(predicted: Tensor, labels: Labels) -> tuple[list[int], list[int]]:
    """Return the first and last 4 predictions and labels of sample 0, from the first column."""
    chosen = (labels.samples == 0) & (labels.values[:, 0] != IGNORED)
    predicted, expected = predicted[:, 0].cpu()[chosen], labels.values[chosen, 0]
    if len(expected) > 2 * NUM_SHOWN_AT_EACH_END:
        ends = [*range(NUM_SHOWN_AT_EACH_END), *range(-NUM_SHOWN_AT_EACH_END, 0)]
        predicted, expected = predicted[ends], expected[ends]
    return predicted.tolist(), expected.tolist()
