"""The lines of the log that show predictions beside labels."""

import torch
from helpers import PackedCorpus
from transformers import AutoConfig, AutoTokenizer

from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.loss import Predictions
from higgs_pipe.training.predictions import describe_predictions


def test_predictions_stand_beside_the_labels_that_they_are_for(corpus: PackedCorpus) -> None:
    """Each prediction is its own place: text 0, 1, ...; codebook k at place m is 10 m + k."""
    row = PackedRows(corpus.train_rows)[0]
    batch = collate([row], AutoConfig.from_pretrained(corpus.base))
    num_text, (num_frames, num_codebooks) = len(batch.text.values), batch.audio.values.shape
    audio = 10 * torch.arange(num_frames)[:, None] + torch.arange(num_codebooks)
    shown = describe_predictions(
        batch,
        Predictions(torch.arange(num_text)[:, None], (num_text, 7), audio, (1, 2, 3)),
        AutoTokenizer.from_pretrained(corpus.base),
    )
    first, second = row.sample_ids[:2]
    assert shown[1].strip() == first
    assert shown[6].strip() == second
    assert "predicted [3, 4, 5] " in shown[7]
    # Of codebook 0 every place but those after its EOS has a label.
    has_label = (row.audio_labels[:, 0] != -100).nonzero()[0]
    is_labelled = (row.audio_labels != -100).any(axis=1).nonzero()[0].tolist()
    places = [is_labelled.index(frame) for frame in has_label]
    num_first = int((batch.audio.samples == 0)[places].sum())
    of_second = [10 * place for place in places[num_first:]]
    of_second = of_second[: row.audio_labels[has_label[num_first:], 0].tolist().index(1025) + 1]
    assert shown[9].endswith(f"predicted {of_second[:5] + of_second[-5:]}")
