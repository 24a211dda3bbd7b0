"""The held-out sums against labels and predictions counted one by one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from trainings import PackedCorpus

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedRow, PackedRows
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.training import held_out
from higgs_pipe.training.held_out import held_out_sums, total_of


def native(corpus: PackedCorpus) -> Any:
    return load_base(Pretrained("base_model", str(corpus.base)), torch.float64)


def counted(model: Any, row: PackedRow) -> dict[str, tuple[list[int], list[int]]]:
    """Sample id to its labels and right predictions of each kind, by the native forward."""
    found, start, frame = {}, 0, 0
    placeholders = (model.config.audio_token_id, model.config.audio_delay_token_id)
    for sample_id, length in zip(row.sample_ids, row.sample_lengths.tolist(), strict=True):
        ids, labels = row.input_ids[start : start + length], row.labels[start : start + length]
        is_audio = np.isin(ids, placeholders)
        frames = slice(frame, frame + int(is_audio.sum()))
        audio_ids = torch.tensor(row.audio_input_ids[frames].astype(np.int64))[None]
        inputs = torch.tensor(ids.astype(np.int64))[None]
        hidden = model.model(input_ids=inputs, audio_input_ids=audio_ids).last_hidden_state[0]
        text = model.text_lm_head(hidden).argmax(-1)
        audio = model.audio_lm_head(hidden).view(length, 8, -1).argmax(-1)
        num_labels, num_right = [0] * 10, [0] * 10
        for position in range(length):
            if labels[position] != -100:
                num_labels[0] += 1
                num_right[0] += int(text[position - 1] == labels[position])
            if is_audio[position]:
                for k, label in enumerate(row.audio_labels[frame].tolist()):
                    kinds = [] if label == -100 else [1 + k, *([9] if label == 1025 else [])]
                    for kind in kinds:
                        num_labels[kind] += 1
                        num_right[kind] += int(audio[position - 1, k] == label)
                frame += 1
        found[sample_id] = (num_labels, num_right)
        start += length
    return found


@torch.no_grad()
@pytest.mark.parametrize("rows_per_batch", [1, 2, 3])
def test_every_sample_has_its_label_count_and_correct_predictions(
    corpus: PackedCorpus, rows_per_batch: int
) -> None:
    """Five rows: the last batch of two or three is not full."""
    table, model = PackedRows(corpus.train_rows), native(corpus)
    assert len(table) == 5
    expected: dict[str, tuple[list[int], list[int]]] = {}
    for i in range(5):
        expected |= counted(model, table[i])
    packed = DualLossModel(native(corpus))
    sums = held_out_sums(packed, table, Accelerator(cpu=True), rows_per_batch)
    assert list(sums) == sorted(expected)
    for sample_id, (num_labels, num_right) in expected.items():
        assert sums[sample_id].count.tolist() == num_labels
        correct = sums[sample_id].correct
        assert correct is not None
        assert correct.tolist() == num_right
    total = total_of(sums)
    assert total.count.tolist() == np.sum([n for n, _ in expected.values()], axis=0).tolist()
    assert sum(right for _, rights in expected.values() for right in rights) > 0


def test_held_out_losses_have_no_dropout_and_training_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[bool] = []

    def compute(model: Any, sample_ids: Any) -> Any:
        modes.append(model.training)
        return sample_ids

    def collated(sample_ids: Any, _: Any) -> Any:
        return SimpleNamespace(sample_ids=sample_ids, to=lambda _: sample_ids)

    monkeypatch.setattr(held_out, "collate", collated)
    model: Any = torch.nn.Dropout().train()
    model.shape = None
    process: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    process.unwrap_model = lambda wrapped: wrapped
    rows: Any = ["c", "a", "b"]
    found = held_out._by_sample(compute, model, rows, process, 2)
    assert list(found.items()) == [("a", "a"), ("b", "b"), ("c", "c")]
    assert modes == [False, False]
    assert model.training
