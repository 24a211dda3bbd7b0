"""Padded micro-batches: few shapes, and the same losses, gradients and masks as without padding."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trainings import PackedCorpus, dropping_model

from higgs_pipe.higgs.batch import PackedBatch, PackedRow, PackedRows, RowSize, collate
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel
from higgs_pipe.higgs.padding import MAX_SHAPES, Grid

PLACEHOLDER, DELAY, TEXT = 1, 2, 7
NUM_CODEBOOKS = 3
CONFIG: Any = SimpleNamespace(
    vocab_size=99,
    num_codebooks=NUM_CODEBOOKS,
    codebook_size=12,
    audio_token_id=PLACEHOLDER,
    audio_delay_token_id=DELAY,
    audio_stream_bos_id=10,
    audio_stream_eos_id=11,
)


def sizes_of(rows: list[PackedRow]) -> list[RowSize]:
    return [
        RowSize(
            num_positions=len(row.input_ids),
            num_samples=len(row.sample_lengths),
            longest_sample=int(row.sample_lengths.max()),
            num_text_labels=int((row.labels != -100).sum()),
        )
        for row in rows
    ]


@pytest.fixture(scope="module")
def rows(corpus: PackedCorpus) -> list[PackedRow]:
    table = PackedRows(corpus.train_rows)
    return [table[i] for i in range(len(table))]


def losses_and_gradients(
    model: DualLossModel, batch: PackedBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    sums, _ = model(batch, label_weights(batch.label_counts()))
    sums.objective.backward()
    total = sums.total()
    assert torch.equal(total.count, batch.label_counts())
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return torch.cat([total.loss, total.correct]), gradients


@pytest.mark.parametrize("numbers", [[0], [2, 0], [3, 1, 2]])
def test_padding_changes_no_loss_gradient_or_dropout_mask(
    tiny_base: Path, rows: list[PackedRow], numbers: list[int]
) -> None:
    model = dropping_model(tiny_base)
    chosen, seeds, config = [rows[i] for i in numbers], numbers, model.native.config
    plain = collate(chosen, config, seeds)
    padded = Grid.of_rows(sizes_of(rows), 4).collate(chosen, config, seeds)
    assert padded.input_ids.shape[1] > plain.input_ids.shape[1]
    assert padded.sample_ids == plain.sample_ids
    expected, expected_gradients = losses_and_gradients(model, plain)
    found, gradients = losses_and_gradients(model, padded)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert len(gradients) == len(expected_gradients) == 40
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() < 1e-9 * gradient.norm(), name


def test_the_content_of_the_padding_does_not_reach_the_loss(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    model = dropping_model(tiny_base).eval()
    batch = Grid.of_rows(sizes_of(rows), 1).collate(rows[:1], model.native.config)
    num_real = len(rows[0].input_ids)
    assert batch.input_ids.shape[1] > num_real
    expected = model(batch)[0].loss
    batch.input_ids[0, num_real:] += 1
    batch.audio_input_ids[0, len(rows[0].audio_input_ids) :] += 5
    assert torch.equal(model(batch)[0].loss, expected)


def drawn_row(generator: np.random.Generator, num_positions: int) -> PackedRow:
    """A row of clips of 1 to 20 s with prompts of many lengths."""
    lengths: list[int] = []
    ids: list[int] = []
    while sum(lengths) < num_positions - 600:
        text, frames = int(generator.integers(20, 90)), int(generator.integers(35, 510))
        lengths.append(text + frames)
        ids += [TEXT] * text + [PLACEHOLDER] * frames
    labels = np.where(generator.random(len(ids)) < 0.01, TEXT, -100)
    labels[np.cumsum([0, *lengths[:-1]])] = -100
    num_frames = ids.count(PLACEHOLDER)
    frame_labels = generator.integers(0, 10, (num_frames, NUM_CODEBOOKS))
    return PackedRow(
        input_ids=np.array(ids, np.int32),
        labels=labels.astype(np.int32),
        audio_input_ids=frame_labels.astype(np.int16),
        audio_labels=frame_labels.astype(np.int16),
        sample_ids=tuple(map(str, range(len(lengths)))),
        sample_lengths=np.array(lengths, np.int32),
    )


@pytest.mark.parametrize("rows_per_micro_batch", [1, 4])
def test_a_corpus_of_mixed_lengths_has_few_shapes(rows_per_micro_batch: int) -> None:
    generator = np.random.default_rng(0)
    rows = [drawn_row(generator, int(n)) for n in generator.choice([700, 2048], 400, p=[0.1, 0.9])]
    grid = Grid.of_rows(sizes_of(rows), rows_per_micro_batch)
    starts = range(0, 400, rows_per_micro_batch)
    batches = [grid.collate(rows[i : i + rows_per_micro_batch], CONFIG) for i in starts]
    shapes = {(b.layout.num_text, *(t.shape for t in b.tensors())) for b in batches}
    assert 2 <= len(shapes) <= MAX_SHAPES == 65
    plain = {collate(rows[i : i + 1], CONFIG).input_ids.shape for i in starts}
    assert len(plain) > 50  # so that few shapes mean something
    longest = max(len(row.input_ids) for row in rows) * rows_per_micro_batch
    assert grid.num_positions <= longest * (1 + 1 / 64) + 2 * 16


def test_every_batch_is_padded_to_a_shape_of_the_grid() -> None:
    generator = np.random.default_rng(1)
    rows = [drawn_row(generator, n) for n in (700, 900, 2048)]
    grid = Grid.of_rows(sizes_of(rows), 2)
    for chosen in ([rows[0]], rows[1:], [rows[0], rows[2]]):
        batch = grid.collate(chosen, CONFIG)
        assert batch.layout.num_text % grid.text_step == 0
        assert batch.input_ids.shape[1] == grid.num_positions
        assert sum(batch.layout.samples.lengths) == grid.num_positions
        assert max(batch.layout.samples.lengths) <= grid.longest_sample
        assert batch.layout.samples.offsets[-1] == grid.num_positions
        assert len(batch.layout.samples.offsets) == grid.num_samples + 1


def test_a_packed_table_knows_the_sizes_of_its_rows(
    corpus: PackedCorpus, rows: list[PackedRow]
) -> None:
    assert PackedRows(corpus.train_rows).sizes() == sizes_of(rows)
