"""The lines of the log that show predictions beside labels."""

import torch
from trainings import PackedCorpus
from transformers import AutoConfig, AutoTokenizer

from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.loss import Predictions
from higgs_pipe.training.predictions import describe_predictions


def test_predictions_are_logged_next_to_their_labels(corpus: PackedCorpus) -> None:
    """Predictions encode their positions: text 0, 1, ...; codebook k at position m is 10 m + k."""
    row = PackedRows(corpus.train_rows)[0]
    batch = collate([row], AutoConfig.from_pretrained(corpus.base))
    num_text, (num_frames, num_codebooks) = len(batch.text.values), batch.audio.values.shape
    audio = 10 * torch.arange(num_frames)[:, None] + torch.arange(num_codebooks)
    text, codes = describe_predictions(
        batch,
        Predictions(torch.arange(num_text)[:, None], (num_text, 7), audio, (1, 2, 3)),
        AutoTokenizer.from_pretrained(corpus.base),
    )
    assert text.split()[0] == codes.split()[0] == row.sample_ids[0]
    assert "predicted [0, 1, 2] " in text
    # Codebook 0 has labels up to and with its EOS, 1025.
    labels = row.audio_labels[:, 0]
    labels = labels[labels != -100]
    labels = labels[: labels.tolist().index(1025) + 1].tolist()
    places = [10 * place for place in range(len(labels))]
    assert f"predicted {places[:4] + places[-4:]}, label {labels[:4] + labels[-4:]}; " in codes
    assert codes.endswith("logits (1, 2, 3)")
