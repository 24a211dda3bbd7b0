"""Packed rows in several row groups, and the right predictions of their labels."""

from pathlib import Path

import pyarrow.parquet as pq
import torch
from trainings import PackedCorpus
from transformers import AutoConfig

from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.head_loss import HeadLoss
from higgs_pipe.higgs.loss import loss_sums


def test_rows_are_read_by_index_across_row_groups(corpus: PackedCorpus, tmp_path: Path) -> None:
    """Row groups have eight rows."""
    corpus.pack(tmp_path, max_tokens=200, tasks={"speech": 1, "cloning": 0})
    expected = pq.read_table(tmp_path / "train.parquet").to_pylist()
    rows = PackedRows(tmp_path / "train.parquet")
    assert len(rows) == len(expected) > 8
    for number in reversed(range(len(rows))):
        assert rows[number].input_ids.tolist() == expected[number]["input_ids"]
        assert rows[number].audio_labels.tolist() == expected[number]["audio_labels"]


def test_a_prediction_is_correct_if_it_equals_its_own_label(corpus: PackedCorpus) -> None:
    """Wrong are every third text label and every (k + 2)-th label of codebook k."""
    config = AutoConfig.from_pretrained(corpus.base)
    batch = collate([PackedRows(corpus.train_rows)[0]], config)
    text, audio = batch.text.values.clone(), batch.audio.values.clone()
    expected = torch.zeros(len(batch.sample_ids), 10, dtype=torch.int64)
    for place, sample in enumerate(batch.text.samples.tolist()):
        text[place] += int(place % 3 == 0)
        expected[sample, 0] += int(place % 3 != 0)
    for place, sample in enumerate(batch.audio.samples.tolist()):
        for k, label in enumerate(batch.audio.values[place].tolist()):
            is_right = place % (k + 2) != 0
            audio[place, k] += int(not is_right)
            if label != -100 and is_right:
                expected[sample, 1 + k] += 1
                expected[sample, 9] += int(label == 1025)
    of_text, of_audio = (
        HeadLoss(torch.zeros(found.shape, dtype=torch.float64), found, None)
        for found in (text, audio)
    )
    correct = loss_sums(of_text, of_audio, batch).correct
    assert correct is not None
    assert correct.tolist() == expected.tolist()
