"""The packed forward of Higgs TTS 3 against its native model, sample by sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_v3 import IGNORED, PLACEHOLDER, audio_loss, codebook_losses, delayed_rows, row_labels

from higgs_pipe.config.settings import LoraSettings, LossWeights
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow, collate
from higgs_pipe.higgs.lora import add_lora, trainable_parameters
from higgs_pipe.higgs.loss import label_weights, named_accuracies, named_losses, objective
from higgs_pipe.higgs.model import DualLossModel, load_base

DTYPE = torch.float64
TTS, AUDIO, TEXT, REF_AUDIO, REF_TEXT = 280, 283, 285, 292, 293  # in the miniature
BOTH_ENDS = LoraSettings(dropout=0.0, train_in_full=["audio_head", "audio_embeddings"])


def packed_row(seed: int) -> PackedRow:
    """Three samples by V3's definition, the second with a reference."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    frames: list[list[int]] = []
    labels: list[list[int]] = []
    lengths = []
    for has_reference in (False, True, False):
        start = len(ids)
        codes, heard = (rng.integers(0, 1024, (n, 8)).tolist() for n in rng.integers(9, 20, 2))
        text, said = (rng.integers(0, 256, 7).tolist() for _ in range(2))
        ids.append(TTS)
        if has_reference:
            rows = delayed_rows(heard)
            ids += [REF_TEXT, *said, REF_AUDIO, *[PLACEHOLDER] * len(rows)]
            frames += rows
            labels += [[IGNORED] * 8] * len(rows)
        ids += [TEXT, *text, AUDIO, *[PLACEHOLDER] * (len(codes) + 7)]
        frames += delayed_rows(codes)
        labels += row_labels(codes)
        lengths.append(len(ids) - start)
    return PackedRow(
        input_ids=np.array(ids, np.int32),
        labels=np.full(len(ids), IGNORED, np.int32),
        audio_input_ids=np.array(frames, np.int16),
        audio_labels=np.array(labels, np.int16),
        sample_ids=tuple(f"{seed}-{i}" for i in range(3)),
        sample_lengths=np.array(lengths, np.int32),
    )


def adapted(v3_base: Path, settings: LoraSettings = BOTH_ENDS, dtype: Any = DTYPE) -> Any:
    """The native model with an adapter whose B is not zero, so that every tensor has a gradient."""
    model = add_lora(load_base(Pretrained("base_model", str(v3_base)), dtype), settings, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def learn(model: DualLossModel, rows: list[PackedRow], **options: Any) -> tuple[float, Any]:
    """The loss of a step, and its gradients."""
    batch = collate(rows, model.shape, **options)
    weights = label_weights(batch.label_counts(), has_text=False)
    loss = model(batch, weights)[0].objective
    loss.backward()
    return loss.item(), gradients_of(model.model)


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Any], expected: dict[str, Any], relative: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < relative, f"{name}: {error}"


def test_packed_loss_and_gradients_match_plain_loops_over_samples(v3_base: Path) -> None:
    row, reference = packed_row(0), adapted(v3_base)
    sums, counts = codebook_losses(reference.get_base_model(), row)
    expected = audio_loss(sums, counts)
    expected.backward()
    model = DualLossModel(adapted(v3_base))
    found, gradients = learn(model, [row])
    assert found == pytest.approx(expected.item(), rel=1e-9)
    assert_equal(gradients, gradients_of(reference))
    assert sum("lora" in name for name in gradients) == 2 * 7 * 2
    assert [name for name in gradients if "lora" not in name] == [
        "base_model.model.tied.embedding.modality_embeddings.0.embedding.modules_to_save.default.weight"
    ]
    totals = model(collate([row], model.shape))[0].total()
    assert totals.count.tolist()[1:-1] == counts
    assert totals.loss[1:-1].tolist() == pytest.approx([s.item() for s in sums])


def test_rows_give_the_same_losses_together_and_apart(v3_base: Path) -> None:
    rows = [packed_row(seed) for seed in (1, 2)]
    model = DualLossModel(adapted(v3_base))
    together = model(collate(rows, model.shape))[0]
    apart = [model(collate([row], model.shape))[0] for row in rows]
    assert torch.allclose(together.loss, torch.cat([one.loss for one in apart]))
    assert torch.equal(together.count, torch.cat([one.count for one in apart]))


@pytest.mark.parametrize("change", ["recomputed", "chunks", "both"])
def test_recomputation_and_chunks_change_no_gradient(v3_base: Path, change: str) -> None:
    options: dict[str, Any] = {}
    if change != "chunks":
        options["recomputed_layers"] = 2
    if change != "recomputed":
        options["max_logits_mb"] = 1.0  # three positions
    rows = [packed_row(seed) for seed in (1, 2)]
    plain = learn(DualLossModel(adapted(v3_base)).train(), rows)
    saving = learn(DualLossModel(adapted(v3_base), **options).train(), rows)
    assert saving[0] == pytest.approx(plain[0], rel=1e-12)
    assert_equal(saving[1], plain[1])


def test_dropout_of_a_row_is_the_same_in_any_batch(v3_base: Path) -> None:
    rows, settings = [packed_row(1), packed_row(2)], LoraSettings(dropout=0.3)
    models = [DualLossModel(adapted(v3_base, settings)).train() for _ in range(3)]
    sums = [
        models[0](collate(rows, models[0].shape, [5, 6]))[0].loss,
        models[1](collate(rows[::-1], models[1].shape, [6, 5]))[0].loss[[3, 4, 5, 0, 1, 2]],
    ]
    assert torch.allclose(*sums)
    other = models[2](collate(rows, models[2].shape, [6, 5]))[0].loss
    assert not torch.allclose(sums[0], other, rtol=1e-3)


def test_no_metric_contains_a_text_loss(v3_base: Path) -> None:
    model = DualLossModel(adapted(v3_base))
    batch = collate([packed_row(3)], model.shape)
    sums, predictions = model(batch)
    total = sums.total()
    assert not total.has_text
    assert total.count[0] == 0
    assert predictions.text is None
    names = [*named_losses(total), *named_accuracies(total)]
    assert len(names) == 3 + 8 + 8
    assert not [name for name in names if "text" in name]
    means = (total.loss / total.count)[1:]
    found = named_losses(total)
    assert found["loss"] == pytest.approx(means[:-1].mean().item()) == found["audio_loss"]
    weights = LossWeights(audio=2.0, eos=0.5)
    weighted = objective(total.loss, total.count, weights, has_text=False)
    assert weighted.item() == pytest.approx((2 * means[:-1].mean() + 0.5 * means[-1]).item())
    of_labels = label_weights(total.count, weights, has_text=False)
    assert of_labels[0] == 0
    assert (of_labels * total.loss).sum().item() == pytest.approx(weighted.item())
    weighted.backward()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model.model).values())


@pytest.mark.parametrize("target", ["0.embedding", "modality_embeddings.0.embedding"])
def test_lora_on_the_tied_matrix_is_refused(v3_base: Path, target: str) -> None:
    native = load_base(Pretrained("base_model", str(v3_base)), torch.float32)
    settings = LoraSettings(target_modules=["q_proj", target])
    with pytest.raises(UserError, match=r"target_modules.*one matrix.*train_in_full"):
        add_lora(native, settings, seed=0)


def test_the_tied_matrix_is_one_part_and_trained_in_float32(v3_base: Path) -> None:
    native = adapted(v3_base, dtype=torch.bfloat16)
    assert trainable_parameters(native)["audio embeddings and head"] == 8 * 1026 * 64
    model = DualLossModel(native).train()
    loss, gradients = learn(model, [packed_row(0)])
    [trained] = [g for name, g in gradients.items() if "modules_to_save" in name]
    assert trained.dtype == torch.float32
    assert trained.norm() > 0
    plain, _ = learn(DualLossModel(adapted(v3_base)).train(), [packed_row(0)])
    assert loss == pytest.approx(plain, rel=0.02)
