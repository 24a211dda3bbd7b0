"""Prediction against label, in a few lines that a person can read in the log."""

from typing import Any

from higgs_pipe.higgs.batch import PackedBatch
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.loss import Predictions

NUM_SAMPLES_SHOWN = 2
NUM_SHOWN_AT_EACH_END = 5


def describe_predictions(batch: PackedBatch, predictions: Predictions, tokenizer: Any) -> list[str]:
    """Lines for the first two samples: first 5 and last 5 of text and of audio codebook 0.

    Args:
        batch: The micro-batch.
        predictions: What the model predicted for its labels.
        tokenizer: Decodes the text ids.
    """
    lines = [
        f"text logits {predictions.text_logits_shape}, labels {tuple(batch.text_labels.shape)}; "
        f"audio logits {predictions.audio_logits_shape}, labels {tuple(batch.audio_labels.shape)}"
    ]
    for sample, sample_id in enumerate(batch.sample_ids[:NUM_SAMPLES_SHOWN]):
        chosen = batch.text_sample == sample
        predicted = _both_ends(predictions.text.cpu()[chosen].tolist())
        labels = _both_ends(batch.text_labels[chosen].tolist())
        in_codebook = (batch.audio_sample == sample) & (batch.audio_labels[:, 0] != IGNORED)
        predicted_codes = _both_ends(predictions.audio[:, 0].cpu()[in_codebook].tolist())
        codes = _both_ends(batch.audio_labels[in_codebook, 0].tolist())
        lines += [
            f"  {sample_id}",
            f"    text   predicted {predicted} {tokenizer.decode(predicted)!r}",
            f"           label     {labels} {tokenizer.decode(labels)!r}",
            f"    audio  predicted {predicted_codes}",
            f"    (cb 0) label     {codes}",
        ]
    return lines


def _both_ends(values: list[int]) -> list[int]:
    """The first 5 and the last 5, at most 10 in all."""
    if len(values) <= 2 * NUM_SHOWN_AT_EACH_END:
        return values
    return values[:NUM_SHOWN_AT_EACH_END] + values[-NUM_SHOWN_AT_EACH_END:]
