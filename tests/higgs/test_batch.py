from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trainings import PackedCorpus
from transformers import AutoConfig

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow, PackedRows, collate


@pytest.fixture(scope="module")
def config(tiny_base: Path) -> Any:
    return AutoConfig.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def row(corpus: PackedCorpus) -> PackedRow:
    return PackedRows(corpus.train_rows)[0]


def test_positions_restart_at_each_sample(row: PackedRow, config: Any) -> None:
    batch = collate([row, row], config)
    expected = [i for length in batch.layout.samples.lengths for i in range(length)]
    assert batch.position_ids[0].tolist() == expected


def test_text_is_routed_before_audio_and_back(row: PackedRow, config: Any) -> None:
    batch = collate([row, row], config)
    ids = batch.input_ids[0]
    is_audio = [int(i) in (config.audio_token_id, config.audio_delay_token_id) for i in ids]
    routed = [i for i, audio in enumerate(is_audio) if not audio]
    routed += [i for i, audio in enumerate(is_audio) if audio]
    assert batch.layout.routed.tolist() == routed
    assert batch.layout.num_text == is_audio.count(False)
    assert batch.layout.routed[batch.layout.unrouted].tolist() == list(range(len(ids)))


def test_sample_offsets_are_the_cumulative_lengths(row: PackedRow, config: Any) -> None:
    batch = collate([row, row], config)
    lengths, offsets, _ = batch.layout.samples
    assert offsets.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]


def test_the_longest_sample_is_found_in_any_order(corpus: PackedCorpus, config: Any) -> None:
    table = PackedRows(corpus.train_rows)
    rows = [table[0], table[len(table) - 1]]
    for order in (rows, rows[::-1]):
        samples = collate(order, config).layout.samples
        assert samples.longest == max(samples.lengths)
        assert len(set(samples.lengths)) > 1


def test_each_label_is_predicted_from_the_previous_position(row: PackedRow, config: Any) -> None:
    batch = collate([row], config)
    labelled = np.flatnonzero(row.labels != -100)
    assert (batch.text.predictors + 1).tolist() == labelled.tolist()
    assert batch.text.values[:, 0].tolist() == row.input_ids[labelled].tolist()
    frames = batch.audio.predictors + 1
    assert all(
        row.input_ids[i] in (config.audio_token_id, config.audio_delay_token_id) for i in frames
    )


def test_each_label_has_the_index_of_its_sample(row: PackedRow, config: Any) -> None:
    batch = collate([row, row], config)
    sample_of = [n for n, length in enumerate(batch.layout.samples.lengths) for _ in range(length)]
    for labels in (batch.text, batch.audio):
        expected = [sample_of[position + 1] for position in labels.predictors]
        assert labels.samples.tolist() == expected


def test_moving_a_batch_moves_all_its_tensors(row: PackedRow, config: Any) -> None:
    batch = collate([row], config).to(torch.device("meta"))
    parts = [batch.input_ids, batch.audio_input_ids, batch.position_ids, *batch.text, *batch.audio]
    parts += [batch.layout.routed, batch.layout.unrouted, batch.layout.samples.offsets]
    assert {tensor.device.type for tensor in parts} == {"meta"}
    assert batch.sample_ids == row.sample_ids
    assert batch.layout.samples.lengths == tuple(row.sample_lengths)


def test_label_counts_are_per_kind_and_codebook(row: PackedRow, config: Any) -> None:
    counts = collate([row], config).label_counts().tolist()
    assert counts[0] == (row.labels != -100).sum() == 3 * len(row.sample_ids)
    assert counts[1:-1] == (row.audio_labels != -100).sum(axis=0).tolist()
    assert counts[-1] == 8 * len(row.sample_ids)


def test_every_row_can_be_read_by_index(corpus: PackedCorpus) -> None:
    rows = PackedRows(corpus.train_rows)
    ids = [sample_id for i in range(len(rows)) for sample_id in rows[i].sample_ids]
    assert sorted(ids) == [f"clip-{i:02d}" for i in range(14) if i not in (3, 6, 9)]


def test_the_length_of_a_row_is_the_sum_of_its_samples(corpus: PackedCorpus) -> None:
    rows = PackedRows(corpus.train_rows)
    assert rows.row_lengths() == [len(rows[number].input_ids) for number in range(len(rows))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_lengths": np.array([5], np.int32)}, "lengths"),
        ({"audio_input_ids": np.zeros((2, 8), np.int16)}, "placeholders for 2 frames"),
        ({"audio_labels": np.zeros((2, 8), np.int16)}, "and 2 frames of labels"),
        ({"labels": "first"}, "first position"),
        ({"labels": "too few"}, "lengths"),
        ({"input_ids": "beyond"}, "vocabulary"),
        ({"audio_input_ids": "beyond"}, "vocabulary"),
        ({"sample_lengths": "from a frame on"}, "first position"),
    ],
)
def test_an_inconsistent_row_is_refused(
    row: PackedRow, config: Any, change: dict[str, Any], message: str
) -> None:
    changes: dict[str, Any] = {
        "first": np.where(np.arange(len(row.labels)) == 0, 1, row.labels),
        "too few": row.labels[:-1],
    }
    if "sample_lengths" in change:
        start = int(np.flatnonzero(row.input_ids == config.audio_token_id)[0])
        changes["from a frame on"] = np.array([start, len(row.labels) - start], np.int32)
    if "input_ids" in change:  # the first id that the model does not have
        changes["beyond"] = np.where(np.arange(len(row.labels)) == 1, 320, row.input_ids)
    if "audio_input_ids" in change:
        changes["beyond"] = np.where(row.audio_input_ids == 1025, 1026, row.audio_input_ids)
    change = {
        key: changes[value] if isinstance(value, str) else value for key, value in change.items()
    }
    with pytest.raises(UserError, match=f"'{row.sample_ids[0]}'.*{message}.*forcerun pack_rows"):
        collate([replace(row, **change)], config)


def test_a_missing_table_names_the_rule_to_rerun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="forcerun"):
        PackedRows(tmp_path / "train.parquet")


def test_an_empty_table_is_named_with_the_rule_to_rerun(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    pq.write_table(pq.read_table(corpus.eval_rows).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none\.parquet: .*--forcerun pack_rows"):
        PackedRows(tmp_path / "none.parquet")
