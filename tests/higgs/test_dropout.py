"""Dropout per row: the requested rate, independent masks, and the same in any micro-batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainings import PackedCorpus, dropping_model

from higgs_pipe.higgs.batch import PackedRow, PackedRows, collate
from higgs_pipe.higgs.dropout import PositionKeys, RowDropout, position_keys
from higgs_pipe.higgs.model import DualLossModel

WEIGHTS = torch.full((10,), 1e-3, dtype=torch.float64)  # of text, 8 codebooks, stop
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module")
def rows(corpus: PackedCorpus) -> list[PackedRow]:
    table = PackedRows(corpus.train_rows)
    return [table[i] for i in range(3)]


def gradients(model: DualLossModel, *batches: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        model(batch, WEIGHTS)[0].objective.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-10 * gradient.norm(), name


def test_dropout_of_a_row_is_the_same_in_any_batch(tiny_base: Path, rows: list[PackedRow]) -> None:
    model = dropping_model(tiny_base)
    config = model.native.config
    alone = [collate([row], config, [seed]) for row, seed in zip(rows, SEEDS, strict=True)]
    expected = gradients(model, *alone)
    assert_equal(gradients(model, collate(rows, config, SEEDS)), expected)
    assert_equal(gradients(model, collate(rows[::-1], config, SEEDS[::-1])), expected)
    other = gradients(model, collate(rows, config, SEEDS[::-1]))
    assert any((other[n] - g).norm() > 1e-3 * g.norm() for n, g in expected.items())


def test_recomputed_layers_use_the_same_dropout(tiny_base: Path, rows: list[PackedRow]) -> None:
    model = dropping_model(tiny_base)
    batch = collate(rows, model.native.config, SEEDS)
    expected = gradients(model, batch)
    model.recomputed_layers = 2
    assert_equal(gradients(model, batch), expected)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_values_are_dropped_with_probability_p_and_the_others_scaled(
    tiny_base: Path, p: float
) -> None:
    [layer, *_] = [m for m in dropping_model(tiny_base).modules() if isinstance(m, RowDropout)]
    wide = RowDropout(p, odd(4000), layer.keys, "all").train()
    layer.keys.all = torch.from_numpy(position_keys([5], [1000]))
    dropped = wide(torch.ones(1000, 4000))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / (1 - p)])
    # 4 million draws: a standard deviation of at most 0.00025.
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.0015)
    assert wide.eval()(dropped) is dropped


def odd(size: int) -> torch.Tensor:
    drawn = np.random.default_rng(3).integers(-(2**31), 2**31, size, np.int32)
    return torch.from_numpy(drawn | np.int32(1))


def test_dropout_masks_of_positions_features_and_layers_are_independent(tiny_base: Path) -> None:
    layers = [m for m in dropping_model(tiny_base).modules() if isinstance(m, RowDropout)]
    keys = torch.from_numpy(position_keys([1, 2], [300, 300]))
    layers[0].keys.put(keys, torch.arange(600), 300)
    masks = [
        layer(torch.ones(300 if layer.part != "all" else 600, len(layer.factors))) == 0
        for layer in layers
    ]
    assert len({tuple(layer.factors.tolist()) for layer in layers}) == len(layers)
    same_shape = [m[:300].double() for m in masks if m.shape[1] == masks[0].shape[1]]
    for views in (same_shape[0], same_shape[0].T, torch.stack([m.flatten() for m in same_shape])):
        correlation = torch.corrcoef(views[:60])
        off_diagonal = correlation - torch.diag(correlation.diag())
        assert off_diagonal.abs().max() < 6 / views.shape[1] ** 0.5


def test_a_batch_without_seeds_clears_the_previous_dropout_keys() -> None:
    keys = PositionKeys()
    routed = torch.tensor([0, 2, 1])
    keys.put(torch.tensor([5, 7, 9], dtype=torch.int32), routed, num_text=2)
    assert [part.tolist() for part in (keys.all, keys.text, keys.audio) if part is not None] == [
        *([5, 7, 9], [5, 9], [7])
    ]
    keys.put(None, routed, num_text=2)
    assert (keys.all, keys.text, keys.audio) == (None, None, None)
