"""The packed forward against the native model, sample by sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PackedCorpus
from reference import dual_loss, row_losses
from safetensors.torch import load_file, save_file
from transformers import HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config import LoraSettings
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow, PackedRows, collate
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import objective
from higgs_pipe.higgs.model import DualLossModel, load_base

DTYPE = torch.float64


@pytest.fixture(scope="module")
def rows(corpus: PackedCorpus) -> list[PackedRow]:
    table = PackedRows(corpus.train_rows)
    return [table[i] for i in range(len(table))]


def base_with_lora(tiny_base: Path, dropout: float = 0.0) -> torch.nn.Module:
    """The native model with an adapter whose B is not zero, so that every tensor has a gradient."""
    model = add_lora(load_base(str(tiny_base), None, DTYPE), LoraSettings(dropout=dropout), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=DTYPE)
    return model


def lora_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_equal_gradients(found: dict, expected: dict, relative: float) -> None:
    for (name, gradient), reference in zip(found.items(), expected.values(), strict=True):
        error = (gradient - reference).norm() / reference.norm()
        assert error < relative, f"{name}: {error}"


def test_packed_loss_and_gradients_are_the_plain_loops_over_single_samples(tiny_base, rows):
    reference = base_with_lora(tiny_base)
    text, num_text, audio, num_audio = row_losses(reference.get_base_model(), rows[0])
    expected = dual_loss(text, num_text, audio, num_audio)
    expected.backward()

    model = base_with_lora(tiny_base)
    batch = collate([rows[0]], model.get_base_model().config)
    sums = DualLossModel(model)(batch)[0].total()
    loss = objective(sums.loss, sums.count)
    loss.backward()

    assert len(rows[0].sample_ids) > 1
    assert sums.count.tolist()[:-1] == [num_text, *num_audio]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_equal_gradients(lora_gradients(model), lora_gradients(reference), relative=1e-6)


def test_dual_loss_is_the_native_loss_where_the_two_must_agree(tiny_base, rows):
    """One sample: the native model sums its codebooks' means where ours averages them."""
    row = first_sample_of(rows[0], tiny_base)
    native = load_base(str(tiny_base), None, DTYPE)
    num_codebooks = row.audio_labels.shape[1]
    native_loss = native(
        input_ids=as_tensor(row.input_ids)[None],
        audio_input_ids=as_tensor(row.audio_input_ids)[None],
        audio_input_ids_mask=torch.ones(1, len(row.audio_input_ids), dtype=torch.bool),
        labels=as_tensor(row.labels)[None],
        audio_labels=as_tensor(row.audio_labels)[None],
    ).loss
    sums = DualLossModel(native)(collate([row], native.config))[0].total()
    means = sums.loss / sums.count
    ours = means[0] + num_codebooks * means[1:-1].mean()
    assert ours.item() == pytest.approx(native_loss.item(), rel=1e-6)


def first_sample_of(row: PackedRow, tiny_base: Path) -> PackedRow:
    length = int(row.sample_lengths[0])
    config = load_base(str(tiny_base), None, DTYPE).config
    ids = row.input_ids[:length]
    frames = int(np.isin(ids, (config.audio_token_id, config.audio_delay_token_id)).sum())
    return PackedRow(
        input_ids=ids,
        labels=row.labels[:length],
        audio_input_ids=row.audio_input_ids[:frames],
        audio_labels=row.audio_labels[:frames],
        sample_ids=row.sample_ids[:1],
        sample_lengths=row.sample_lengths[:1],
    )


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def test_routing_by_index_equals_the_native_dual_ffn_layer(tiny_base, rows):
    row = first_sample_of(rows[0], tiny_base)
    native = load_base(str(tiny_base), None, DTYPE)
    inputs = {
        "input_ids": as_tensor(row.input_ids)[None],
        "audio_input_ids": as_tensor(row.audio_input_ids)[None],
    }
    expected = native(**inputs).logits[0]
    batch = collate([row], native.config)
    text_logits, audio_logits = DualLossModel(native).logits(batch)
    assert torch.allclose(audio_logits.flatten(1), expected[batch.audio_predictors], atol=1e-10)
    assert text_logits.shape == (3, native.config.vocab_size)


def test_two_rows_in_a_micro_batch_give_the_sums_of_each_alone(tiny_base, rows):
    model = DualLossModel(base_with_lora(tiny_base))
    config = model.native.config
    together = model(collate(rows[:2], config))[0]
    apart = [model(collate([row], config))[0] for row in rows[:2]]
    assert torch.allclose(together.loss, torch.cat([sums.loss for sums in apart]), rtol=1e-9)
    assert torch.equal(together.count, torch.cat([sums.count for sums in apart]))


def test_gradient_checkpointing_changes_no_gradient(tiny_base, rows):
    gradients = []
    for checkpointing in (False, True):
        model = base_with_lora(tiny_base)
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        wrapped = DualLossModel(model).train()
        sums = wrapped(collate([rows[0]], wrapped.native.config))[0].total()
        objective(sums.loss, sums.count).backward()
        gradients.append(lora_gradients(model))
    assert_equal_gradients(gradients[1], gradients[0], relative=1e-12)


def test_every_lora_tensor_gets_a_gradient(tiny_base, rows):
    model = base_with_lora(tiny_base)
    wrapped = DualLossModel(model)
    sums = wrapped(collate([rows[0]], wrapped.native.config))[0].total()
    objective(sums.loss, sums.count).backward()
    norms = {name: gradient.norm().item() for name, gradient in lora_gradients(model).items()}
    assert len(norms) == 2 * 2 * 10  # A and B; two layers; attention 4, text FFN 3, audio FFN 3
    assert all(norm > 0 for norm in norms.values())


def test_a_base_without_its_text_head_is_refused(tiny_base, tmp_path):
    weights = load_file(tiny_base / "model.safetensors")
    del weights["text_lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    with pytest.raises(UserError, match=r"1 weights are missing .* text_lm_head.weight"):
        load_base(str(tmp_path), None, DTYPE)


def test_the_native_class_is_what_is_loaded(tiny_base):
    base = load_base(str(tiny_base), None, DTYPE)
    assert type(base) is HiggsAudioV2ForConditionalGeneration
    assert not any(parameter.requires_grad for parameter in base.parameters())
