"""Adapters, as plain PEFT loads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from trainings import PackedCorpus
from transformers import AutoTokenizer

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedBatch, PackedRows, collate
from higgs_pipe.higgs.lora import (
    adapter_state,
    add_lora,
    check_base,
    load_adapter,
    load_adapter_exactly,
    save_adapter,
    trainable_parameters,
)
from higgs_pipe.higgs.loss import objective
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import PinnedModel

HIDDEN, NUM_LAYERS, R = 64, 2, 4


@pytest.fixture(scope="module")
def batch(corpus: PackedCorpus) -> PackedBatch:
    return collate([PackedRows(corpus.train_rows)[0]], load(corpus.base).config)


def load(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_base(Pretrained("base_model", str(base)), dtype)


def pinned(base: Path) -> PinnedModel:
    return PinnedModel.of(Pretrained("base_model", str(base)))


def moved(model: PeftModel, batch: PackedBatch) -> list[torch.Tensor]:
    """Move every trained tensor by a gradient step; returns the logits after it."""
    wrapped = DualLossModel(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(2):  # LoRA's A has no gradient before B has moved
        sums = wrapped(batch)[0].total()
        objective(sums.loss, sums.count).backward()
        optimizer.step()
    with torch.no_grad():
        return [logits.clone() for logits in wrapped.logits(batch)]


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("attention", {"attention"}),
        ("audio", {"attention", "audio FFN"}),
        ("all", {"attention", "audio FFN", "text FFN"}),
        (["audio_mlp.down_proj"], {"audio FFN"}),
    ],
)
def test_a_preset_trains_exactly_its_parts(tiny_base: Path, preset: Any, parts: Any) -> None:
    model = add_lora(load(tiny_base), LoraSettings(target_modules=preset), seed=0)
    assert set(trainable_parameters(model)) == parts


def test_parameter_counts_match_a_hand_count(tiny_base: Path) -> None:
    base = load(tiny_base)
    ffn = base.config.intermediate_size
    settings = LoraSettings(r=R, target_modules="audio", train_in_full=["audio_head"])
    counts = trainable_parameters(add_lora(base, settings, seed=0))
    # gate and up: (hidden + ffn) r each; down: as much.
    assert counts["audio FFN"] == NUM_LAYERS * 3 * R * (HIDDEN + ffn)
    head = base.config.num_codebooks * base.config.codebook_size * HIDDEN
    assert counts["audio head"] == head


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"init": "olora"},
        {"init": "pissa"},
        {"train_in_full": ["audio_head", "audio_embeddings"]},
        {"trainable_tokens": ["<|audio_eos|>"]},
    ],
    ids=str,
)
def test_plain_peft_reproduces_the_trained_logits_from_the_saved_adapter(
    tiny_base: Path, batch: PackedBatch, tmp_path: Path, settings: dict[str, Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    lora = LoraSettings(r=R, dropout=0, **settings)
    model = add_lora(load(tiny_base), lora, 0, tokenizer)
    initial = adapter_state(model)
    trained = moved(model, batch)
    save_adapter(model, adapter_state(model), initial, tmp_path / "adapter", pinned(tiny_base))

    fresh = DualLossModel(PeftModel.from_pretrained(load(tiny_base), tmp_path / "adapter").eval())
    base = DualLossModel(load(tiny_base))
    for found, expected, untrained in zip(
        fresh.logits(batch), trained, base.logits(batch), strict=True
    ):
        assert torch.allclose(found, expected, atol=2e-3)
        assert (expected - untrained).abs().max() > 0.05


def test_the_adapter_file_holds_every_trained_tensor(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    settings = LoraSettings(
        r=R,
        train_in_full=["audio_head", "audio_embeddings"],
        trainable_tokens=["<|audio_eos|>", "<|eot_id|>"],
    )
    model = add_lora(load(tiny_base), settings, 0, tokenizer)
    save_adapter(model, adapter_state(model), {}, tmp_path / "adapter", pinned(tiny_base))
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == sum(
        trainable_parameters(model).values()
    )


def test_pissa_starts_from_the_logits_of_the_base(tiny_base: Path, batch: PackedBatch) -> None:
    base = DualLossModel(load(tiny_base)).logits(batch)
    model = add_lora(load(tiny_base), LoraSettings(r=R, init="pissa", dropout=0), seed=0)
    start = DualLossModel(model).logits(batch)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(base, start, strict=True))


def test_a_pissa_adapter_is_saved_as_plain_lora_of_twice_the_rank(
    tiny_base: Path, tmp_path: Path
) -> None:
    model = add_lora(load(tiny_base), LoraSettings(r=R, alpha=6, init="pissa"), seed=0)
    state = adapter_state(model)
    save_adapter(model, state, state, tmp_path / "adapter", pinned(tiny_base))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (2 * R, 12, True)


def test_fully_trained_parts_of_a_bfloat16_base_keep_float32_weights(
    tiny_base: Path, batch: PackedBatch, tmp_path: Path
) -> None:
    settings = LoraSettings(r=R, dropout=0, train_in_full=["audio_head", "audio_embeddings"])
    model = add_lora(load(tiny_base, torch.bfloat16), settings, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    trained = moved(model, batch)
    save_adapter(model, adapter_state(model), {}, tmp_path / "adapter", pinned(tiny_base))
    loaded = load_adapter(load(tiny_base, torch.bfloat16), tmp_path / "adapter")
    found = DualLossModel(loaded).logits(batch)
    assert all(
        (a - b).abs().max() < 0.1 * b.abs().max() for a, b in zip(found, trained, strict=True)
    )


def test_an_unknown_trainable_token_is_a_user_error(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    settings = LoraSettings(trainable_tokens=["<|eot_id|>", "<|no_such|>"])
    with pytest.raises(UserError, match=r"trainable_tokens.*\n +<\|no_such\|>\n"):
        add_lora(load(tiny_base), settings, 0, tokenizer)


def test_target_modules_that_match_nothing_are_a_user_error(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"train.lora.target_modules: .*no_such_layer"):
        add_lora(load(tiny_base), LoraSettings(target_modules=["no_such_layer"]), seed=0)


def test_the_adapter_config_is_deterministic_and_names_the_revision(
    tiny_base: Path, tmp_path: Path
) -> None:
    """PEFT orders the layers like a set, so their order differs between processes."""
    base = pinned(tiny_base).model_copy(update={"revision": "0123abc"})
    model = add_lora(load(tiny_base), LoraSettings(r=R), seed=0)
    save_adapter(model, adapter_state(model), {}, tmp_path / "adapter", base)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    ffn = [
        f"{kind}.{name}_proj" for kind in ("audio_mlp", "mlp") for name in ("down", "gate", "up")
    ]
    attention = [f"{name}_proj" for name in "koqv"]
    assert config["target_modules"] == sorted([*ffn, *attention])
    assert config["revision"] == "0123abc"


def test_an_adapter_records_the_base_weights_and_refuses_others(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = pinned(tiny_base)
    model = add_lora(load(tiny_base), LoraSettings(r=R), seed=0)
    save_adapter(model, adapter_state(model), {}, tmp_path / "adapter", base)
    assert PinnedModel.read(tmp_path / "adapter/base_model.json") == base
    check_base(tmp_path / "adapter", base)
    other = base.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(UserError, match=f"adapter .*{base.fingerprint[:12]}.*{'0' * 12}.*forcerun"):
        check_base(tmp_path / "adapter", other)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_file_changed_since_training_is_refused(
    tiny_base: Path, tmp_path: Path, name: str
) -> None:
    model = add_lora(load(tiny_base), LoraSettings(r=R), seed=0)
    save_adapter(model, adapter_state(model), {}, tmp_path, pinned(tiny_base))
    file = tmp_path / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{name}.*--forcerun train_adapter"):
        load_adapter(load(tiny_base), tmp_path)


def test_the_merge_proof_reads_fully_trained_parts_without_rounding(
    tiny_base: Path, tmp_path: Path
) -> None:
    settings = LoraSettings(r=R, train_in_full=["audio_head"])
    model = add_lora(load(tiny_base, torch.bfloat16), settings, seed=0)
    state = {name: tensor + 1e-4 for name, tensor in adapter_state(model).items()}
    save_adapter(model, state, {}, tmp_path, pinned(tiny_base))
    found = adapter_state(load_adapter_exactly(load(tiny_base, torch.bfloat16), tmp_path))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_fully_trained_parts_are_saved_unchanged_with_pissa(
    tiny_base: Path, tmp_path: Path
) -> None:
    settings = LoraSettings(r=R, init="pissa", train_in_full=["audio_head"])
    model = add_lora(load(tiny_base), settings, seed=0)
    initial = adapter_state(model)
    state = {name: tensor + 1 for name, tensor in initial.items()}
    save_adapter(model, state, initial, tmp_path / "adapter", pinned(tiny_base))
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    [head] = [name for name in state if "audio_lm_head" in name]
    assert torch.equal(saved[head], state[head])
