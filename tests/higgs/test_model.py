"""The packed forward against the native model, sample by sample."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import dual_loss, row_losses
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import PackedCorpus
from transformers import HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedBatch, PackedRow, PackedRows, collate
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import label_weights, objective
from higgs_pipe.higgs.model import DualLossModel, load_base

DTYPE = torch.float64


@pytest.fixture(scope="module")
def rows(corpus: PackedCorpus) -> list[PackedRow]:
    table = PackedRows(corpus.train_rows)
    return [table[i] for i in range(len(table))]


def base_with_lora(
    tiny_base: Path,
    settings: LoraSettings = LoraSettings(dropout=0.0),  # noqa: B008 - frozen
) -> torch.nn.Module:
    """The native model with an adapter whose B is not zero, so that every tensor has a gradient."""
    model = add_lora(load_base(Pretrained("base_model", str(tiny_base)), DTYPE), settings, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=DTYPE)
    return model


def lora_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found: dict, expected: dict, relative: float) -> None:
    for (name, gradient), reference in zip(found.items(), expected.values(), strict=True):
        error = (gradient - reference).norm() / reference.norm()
        assert error < relative, f"{name}: {error}"


def test_packed_loss_and_gradients_match_plain_loops_over_samples(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    reference: Any = base_with_lora(tiny_base)
    text, num_text, audio, num_audio = row_losses(reference.get_base_model(), rows[0])
    expected = dual_loss(text, num_text, audio, num_audio)
    expected.backward()

    model: Any = base_with_lora(tiny_base)
    batch = collate([rows[0]], model.get_base_model().config)
    sums = DualLossModel(model)(batch)[0].total()
    loss = objective(sums.loss, sums.count)
    loss.backward()

    assert len(rows[0].sample_ids) > 1
    assert sums.count.tolist()[:-1] == [num_text, *num_audio]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_equal_gradients(lora_gradients(model), lora_gradients(reference), relative=1e-6)


def test_the_dual_loss_matches_the_native_loss_on_a_single_sample(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    """One sample: the native model sums its codebooks' means where ours averages them."""
    row = first_sample_of(rows[0], tiny_base)
    native = load_base(Pretrained("base_model", str(tiny_base)), DTYPE)
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
    config = load_base(Pretrained("base_model", str(tiny_base)), DTYPE).config
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


def test_routing_by_index_equals_the_native_dual_ffn_layer(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    row = first_sample_of(rows[0], tiny_base)
    native = load_base(Pretrained("base_model", str(tiny_base)), DTYPE)
    inputs = {
        "input_ids": as_tensor(row.input_ids)[None],
        "audio_input_ids": as_tensor(row.audio_input_ids)[None],
    }
    expected = native(**inputs).logits[0]
    batch = collate([row], native.config)
    text_logits, audio_logits = DualLossModel(native).logits(batch)
    assert torch.allclose(audio_logits.flatten(1), expected[batch.audio.predictors], atol=1e-10)
    assert text_logits.shape == (3, native.config.vocab_size)


def test_two_rows_in_a_micro_batch_give_the_same_sums_as_each_alone(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    model = DualLossModel(base_with_lora(tiny_base))
    config = model.native.config
    together = model(collate(rows[:2], config))[0]
    apart = [model(collate([row], config))[0] for row in rows[:2]]
    assert torch.allclose(together.loss, torch.cat([sums.loss for sums in apart]), rtol=1e-9)
    assert torch.equal(together.count, torch.cat([sums.count for sums in apart]))


def backward(model: torch.nn.Module, batch: PackedBatch) -> dict[str, torch.Tensor]:
    """The gradients of the objective, computed as training does."""
    weights = label_weights(batch.label_counts())
    model(batch, weights, predict=False)[0].objective.backward()
    adapted: Any = model.model
    return lora_gradients(adapted)


@pytest.mark.parametrize(
    "settings", [LoraSettings(dropout=0.0), LoraSettings(dropout=0, train_in_full=["audio_head"])]
)
def test_the_objective_with_precomputed_weights_equals_that_of_the_sums(
    tiny_base: Path, rows: list[PackedRow], settings: Any
) -> None:
    model = DualLossModel(base_with_lora(tiny_base, settings), max_logits_mb=1.0)
    batch = collate([rows[0]], model.native.config)
    sums = model(batch)[0].total()
    expected = objective(sums.loss, sums.count)
    expected.backward()
    of_sums = {name: gradient.clone() for name, gradient in lora_gradients(model).items()}
    model.zero_grad()
    ahead, _ = model(batch, label_weights(sums.count))
    ahead.objective.backward()
    assert ahead.objective.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(ahead.loss, model(batch)[0].loss, rtol=1e-12)
    assert_equal_gradients(lora_gradients(model), of_sums, relative=1e-10)


def test_predictions_are_not_computed_unless_requested(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    model = DualLossModel(base_with_lora(tiny_base))
    sums, predictions = model(collate([rows[0]], model.native.config), predict=False)
    assert predictions is None
    assert sums.correct is None  # not 0: nobody looked


@pytest.mark.parametrize(("number", "passes"), [(0, [1, 1]), (1, [2, 1]), (2, [2, 2])])
def test_recomputing_the_first_layers_changes_no_gradient(
    tiny_base: Path, rows: list[PackedRow], number: int, passes: Any
) -> None:
    plain = DualLossModel(base_with_lora(tiny_base)).train()
    batch = collate([rows[0]], plain.native.config)
    model = DualLossModel(base_with_lora(tiny_base), recomputed_layers=number).train()
    found = [0, 0]

    def count(module: Any, inputs: Any, layer: Any) -> None:
        found[layer] += 1

    for i, layer in enumerate(model.native.model.layers):
        layer.mlp.register_forward_pre_hook(partial(count, layer=i))
    assert_equal_gradients(backward(model, batch), backward(plain, batch), relative=1e-12)
    assert found == passes


def test_attention_dropout_of_the_base_is_on_only_in_training(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    plain, dropping, recomputing = (
        DualLossModel(base_with_lora(tiny_base), recomputed_layers=number).train()
        for number in (0, 0, 2)
    )
    batch = collate([rows[0]], plain.native.config)
    for layer in (*dropping.body.layers, *recomputing.body.layers):
        layer.self_attn.attention_dropout = 0.5
    gradients = []
    for model in (plain, dropping, recomputing):
        torch.manual_seed(1)
        gradients.append(backward(model, batch))
    assert_equal_gradients(gradients[2], gradients[1], relative=1e-12)
    assert any(not torch.equal(g, gradients[0][name]) for name, g in gradients[1].items())
    with torch.no_grad():
        losses = [model.eval()(batch)[0].loss for model in (plain, dropping)]
    assert torch.equal(*losses)


@pytest.mark.slow
# Dynamo instantiates the autograd functions that it traces, and looks at .grad of what flows by.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_have_no_graph_break_and_take_rows_of_any_length(
    tiny_base: Path, rows: list[PackedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_backend = partial(torch.compile, backend="eager")  # traces all, compiles nothing
    monkeypatch.setattr(torch, "compile", with_backend)
    torch._dynamo.reset()
    counters.clear()
    config = load_base(Pretrained("base_model", str(tiny_base)), DTYPE).config
    model = DualLossModel(base_with_lora(tiny_base)).train()
    model.compile_layers()
    plain = DualLossModel(base_with_lora(tiny_base)).train()
    single = [first_sample_of(row, tiny_base) for row in rows[:3]]
    for batch in (collate(chosen, config) for chosen in (single[:1], rows[:1], single, rows[:2])):
        assert_equal_gradients(backward(model, batch), backward(plain, batch), relative=1e-10)
    assert not counters["graph_break"]
    # Before and after attention, each where the input has a gradient and where it has none.
    assert counters["stats"]["unique_graphs"] <= 4


WAITS_FOR_THE_DEVICE = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "_unique2",
}


class Waits(TorchDispatchMode):
    """Operators whose result, or its size, the CPU would have to fetch from a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in WAITS_FOR_THE_DEVICE or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_micro_step_never_waits_for_the_device(tiny_base: Path, rows: list[PackedRow]) -> None:
    model = DualLossModel(base_with_lora(tiny_base), recomputed_layers=1).train()
    batch = collate(rows[:2], model.native.config)
    weights = label_weights(batch.label_counts())
    with Waits() as micro_step:
        model(batch, weights)[0].objective.backward()
    with Waits() as native:
        load_base(Pretrained("base_model", str(tiny_base)), DTYPE)(
            batch.input_ids, audio_input_ids=batch.audio_input_ids
        )
    assert micro_step.found == []
    assert len(native.found) >= 16  # so that the count is known to count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_a_micro_step_makes_no_synchronizing_call(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    device = torch.device("cuda")
    model = DualLossModel(base_with_lora(tiny_base).to(torch.bfloat16)).train().to(device)
    batch = collate(rows[:2], model.native.config).to(device)
    weights = label_weights(batch.label_counts())
    backward(model, batch)  # kernels are loaded, libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(batch, weights)[0].objective.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_over_a_bfloat16_base_lora_is_trained_in_float32(
    tiny_base: Path, rows: list[PackedRow]
) -> None:
    settings = LoraSettings(dropout=0.0)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = DualLossModel(
            add_lora(load_base(Pretrained("base_model", str(tiny_base)), dtype), settings, seed=0)
        )
        batch = collate([rows[0]], model.native.config)
        sums, _ = model.train()(batch, label_weights(batch.label_counts()))
        sums.objective.backward()
        losses.append(sums.objective.item())
        gradients = lora_gradients(model)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_every_lora_tensor_gets_a_gradient(tiny_base: Path, rows: list[PackedRow]) -> None:
    model = base_with_lora(tiny_base)
    wrapped = DualLossModel(model)
    sums = wrapped(collate([rows[0]], wrapped.native.config))[0].total()
    objective(sums.loss, sums.count).backward()
    norms = {name: gradient.norm().item() for name, gradient in lora_gradients(model).items()}
    assert len(norms) == 2 * 2 * 10  # A and B; two layers; attention 4, text FFN 3, audio FFN 3
    assert all(norm > 0 for norm in norms.values())


def test_a_base_without_its_text_head_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_base / "model.safetensors")
    del weights["text_lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    with pytest.raises(UserError, match=r"1 weights.* text_lm_head.weight"):
        load_base(Pretrained("base_model", str(tmp_path)), DTYPE)


def test_the_base_is_loaded_frozen_as_the_native_class(tiny_base: Path) -> None:
    base = load_base(Pretrained("base_model", str(tiny_base)), DTYPE)
    assert type(base) is HiggsAudioV2ForConditionalGeneration
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_bfloat16_forward_pass_uses_the_current_lora_matrices(
    tiny_base: Path, rows: list[PackedRow], is_replaced: bool
) -> None:
    """LoRA matrices are rounded in advance, so a change between two passes must be noticed."""
    base = load_base(Pretrained("base_model", str(tiny_base)), torch.bfloat16)
    model = DualLossModel(add_lora(base, LoraSettings(dropout=0.0), seed=0)).train()
    batch = collate([rows[0]], model.native.config)
    with torch.inference_mode():
        before = model(batch)[0]
    for name, parameter in model.named_parameters():
        if "lora_B" in name and is_replaced:
            parameter.data = torch.full_like(parameter, 0.1)
        elif "lora_B" in name:
            parameter.data.fill_(0.1)
    changed = model(batch)[0]
    changed.loss.sum().backward()
    assert torch.equal(DualLossModel(model.model).train()(batch)[0].loss, changed.loss)
    assert not torch.equal(changed.loss, before.loss)
