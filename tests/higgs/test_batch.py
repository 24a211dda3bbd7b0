from dataclasses import replace

import numpy as np
import pytest
from helpers import PackedCorpus
from transformers import AutoConfig

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow, PackedRows, collate


@pytest.fixture(scope="module")
def config(tiny_base):
    return AutoConfig.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def row(corpus: PackedCorpus) -> PackedRow:
    return PackedRows(corpus.train_rows)[0]


def test_positions_restart_at_each_sample(row, config):
    batch = collate([row, row], config)
    expected = [i for length in batch.sample_lengths for i in range(length)]
    assert batch.position_ids[0].tolist() == expected


def test_text_is_routed_before_audio_and_back(row, config):
    batch = collate([row, row], config)
    ids = batch.input_ids[0]
    is_audio = [int(i) in (config.audio_token_id, config.audio_delay_token_id) for i in ids]
    routed = [i for i, audio in enumerate(is_audio) if not audio]
    routed += [i for i, audio in enumerate(is_audio) if audio]
    assert batch.routed.tolist() == routed
    assert batch.routed[batch.unrouted].tolist() == list(range(len(ids)))


def test_offsets_are_where_the_samples_end(row, config):
    batch = collate([row, row], config)
    ends = [sum(batch.sample_lengths[:n]) for n in range(len(batch.sample_lengths) + 1)]
    assert batch.sample_offsets.tolist() == ends


def test_each_label_is_predicted_one_position_before_it(row, config):
    batch = collate([row], config)
    labelled = np.flatnonzero(row.labels != -100)
    assert (batch.text_predictors + 1).tolist() == labelled.tolist()
    assert batch.text_labels.tolist() == row.input_ids[labelled].tolist()
    frames = batch.audio_predictors + 1
    assert all(
        row.input_ids[i] in (config.audio_token_id, config.audio_delay_token_id) for i in frames
    )


def test_counts_are_the_labels_of_each_kind(row, config):
    counts = collate([row], config).label_counts().tolist()
    assert counts[0] == (row.labels != -100).sum() == 3 * len(row.sample_ids)
    assert counts[1:-1] == (row.audio_labels != -100).sum(axis=0).tolist()
    assert counts[-1] == 8 * len(row.sample_ids)


def test_any_row_is_read_by_its_index(corpus):
    rows = PackedRows(corpus.train_rows)
    ids = [sample_id for i in range(len(rows)) for sample_id in rows[i].sample_ids]
    assert sorted(ids) == [f"clip-{i:02d}" for i in range(14) if i not in (3, 6, 9)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_lengths": np.array([5], np.int32)}, "lengths of samples, tokens and labels"),
        ({"audio_input_ids": np.zeros((2, 8), np.int16)}, "audio placeholders for 2 frames"),
        ({"labels": "first"}, "a label at the first position"),
        ({"input_ids": "beyond"}, "ids beyond the model's vocabulary"),
    ],
)
def test_a_row_that_disagrees_with_itself_is_refused(row, config, change, message):
    if change.get("labels") == "first":
        change = {"labels": np.where(np.arange(len(row.labels)) == 0, 1, row.labels)}
    if "input_ids" in change:
        change = {"input_ids": np.where(np.arange(len(row.labels)) == 1, 10**6, row.input_ids)}
    with pytest.raises(UserError, match=message):
        collate([replace(row, **change)], config)


def test_a_missing_table_names_the_rule(tmp_path):
    with pytest.raises(UserError, match="forcerun"):
        PackedRows(tmp_path / "train.parquet")
