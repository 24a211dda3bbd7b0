"""Prediction beside label, in a few readable lines of the log."""

from typing import Any

from torch import Tensor

from higgs_pipe.higgs.batch import Labels, PackedBatch
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.loss import Predictions

NUM_SAMPLES_SHOWN = 2
NUM_SHOWN_AT_EACH_END = 5


def describe_predictions(batch: PackedBatch, predictions: Predictions, tokenizer: Any) -> list[str]:
    """Return lines for the first two samples: both ends of text and of audio codebook 0.

    Args:
        batch: The micro-batch.
        predictions: The model's predictions of its labels.
        tokenizer: Decodes the text ids.
    """
    text_shape, audio_shape = tuple(batch.text.values[:, 0].shape), tuple(batch.audio.values.shape)
    lines = [
        f"text logits {predictions.text_logits_shape}, labels {text_shape}; "
        f"audio logits {predictions.audio_logits_shape}, labels {audio_shape}"
    ]
    for sample, sample_id in enumerate(batch.sample_ids[:NUM_SAMPLES_SHOWN]):
        text, text_labels = _both_ends(predictions.text, batch.text, sample)
        codes, code_labels = _both_ends(predictions.audio, batch.audio, sample)
        lines += [
            f"  {sample_id}",
            f"    text   predicted {text} {tokenizer.decode(text)!r}",
            f"           label     {text_labels} {tokenizer.decode(text_labels)!r}",
            f"    audio  predicted {codes}",
            f"    (cb 0) label     {code_labels}",
        ]
    return lines


def _both_ends(predicted: Tensor, labels: Labels, sample: int) -> tuple[list[int], list[int]]:
    """Return the first and last 5 predictions and labels of a sample, from the first column."""
    chosen = (labels.samples == sample) & (labels.values[:, 0] != IGNORED)
    predicted, expected = predicted[:, 0].cpu()[chosen], labels.values[chosen, 0]
    if len(expected) > 2 * NUM_SHOWN_AT_EACH_END:
        ends = [*range(NUM_SHOWN_AT_EACH_END), *range(-NUM_SHOWN_AT_EACH_END, 0)]
        predicted, expected = predicted[ends], expected[ends]
    return predicted.tolist(), expected.tolist()
