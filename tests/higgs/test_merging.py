"""Merged weights, against PEFT's own merge; shards, against the library's reader."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import edit_result
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus
from transformers import AutoTokenizer

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.family import model_shapes
from higgs_pipe.higgs.float32 import float32_arithmetic
from higgs_pipe.higgs.lora import (
    adapter_state,
    add_lora,
    load_adapter_exactly,
    merge_by_peft,
    save_adapter,
)
from higgs_pipe.higgs.merging import Merge, read_changes
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.shards import Shards, write_shards
from higgs_pipe.higgs.v2.original_form import native_name, original_name


def load(base: Path) -> Any:
    return load_base(Pretrained("base_model", str(base)), torch.float32)


def trained_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter whose tensors have all moved, as training saves it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = add_lora(load(base), LoraSettings(**{"r": 5, "alpha": 7, **settings}), 0, tokenizer)
    initial = adapter_state(model)
    generator = torch.Generator().manual_seed(1)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial.items()
        if "base_layer" not in name
    }
    pinned = PinnedModel.of(Pretrained("base_model", str(base)))
    save_adapter(model, initial | state, initial, folder, pinned)
    return folder


EVERY_KIND = [
    {},
    {"target_modules": "attention", "use_rslora": True},
    {"target_modules": "audio", "use_dora": True},
    {"init": "pissa"},
    {"init": "olora"},
    {"init": "orthogonal", "r": 6},
    {"train_in_full": ["audio_head", "audio_embeddings"]},
    {"trainable_tokens": ["<|recipient|>", "<|scene_desc_start|>"]},
    {"target_modules": ["embed_tokens", "text_lm_head"], "use_dora": True},
    {
        "target_modules": ["embed_audio_tokens.embed_audio_tokens", "audio_lm_head"],
        "use_rslora": True,
    },
]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("settings", EVERY_KIND, ids=str)
def test_merged_weights_match_pefts_own_merge(
    tiny_base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = trained_adapter(tiny_base, tmp_path / "adapter", **settings)
    merged = PeftModel.from_pretrained(load(tiny_base), adapter).merge_and_unload().state_dict()
    with Shards(tiny_base) as weights:
        merge = Merge(weights, read_changes(adapter), torch.float32)
        merge.check({name: tuple(tensor.shape) for name, tensor in merged.items()})
        for name, expected in merged.items():
            torch.testing.assert_close(merge[name], expected, rtol=1e-6, atol=1e-6)
        changed = {name for name in merged if not torch.equal(merge[name], weights[name])}
    assert changed == set(merge.changes)
    in_place = merge_by_peft(load_adapter_exactly(load(tiny_base), adapter), torch.bfloat16)
    assert in_place.keys() == merged.keys()
    assert all(torch.equal(in_place[name], merged[name].bfloat16()) for name in merged)


def test_rounding_is_measured_over_all_weights(tiny_base: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_base, tmp_path / "adapter")
    with Shards(tiny_base) as weights:
        changes = read_changes(adapter)
        exact, merge = (Merge(weights, changes, d) for d in (torch.float32, torch.bfloat16))
        values = [(exact[n], merge[n].float(), weights[n], n) for n in weights.shapes]
    errors = torch.cat([(rounded - value).flatten() for value, rounded, _, _ in values])
    whole = torch.cat([value.flatten() for value, _, _, _ in values])
    moved = [(a, b, w) for a, b, w, name in values if name in changes]
    lost = torch.cat([(b - a).flatten() for a, b, _ in moved]).norm()
    change = torch.cat([(a - w).flatten() for a, _, w in moved]).norm()
    rounding = merge.rounding
    assert rounding.max_error == errors.abs().max()
    assert rounding.relative_error == pytest.approx(float(errors.norm() / whole.norm()), rel=1e-4)
    assert rounding.error_of_change == pytest.approx(float(lost / change), rel=1e-4)
    assert exact.rounding.relative_error == 0


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(
    tiny_base: Path, tmp_path: Path
) -> None:
    changes = read_changes(trained_adapter(tiny_base, tmp_path / "adapter"))
    merged = []
    for name, dtype in (("narrow", torch.bfloat16), ("wide", torch.float32)):
        shutil.copytree(tiny_base, tmp_path / name)
        weights = load_file(tiny_base / "model.safetensors")
        values = {n: tensor.bfloat16().to(dtype) for n, tensor in weights.items()}
        save_file(values, tmp_path / name / "model.safetensors", {"format": "pt"})
        with Shards(tmp_path / name) as base:
            merge = Merge(base, changes, torch.bfloat16)
            merged.append({key: merge[key] for key in changes})
    narrow, wide = merged
    assert changes
    assert all(torch.equal(narrow[key], wide[key]) for key in changes)


def test_merging_changes_neither_the_base_nor_the_adapter(tiny_base: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_base, tmp_path / "adapter", train_in_full=["audio_head"])
    before = load_file(tiny_base / "model.safetensors")
    with Shards(tiny_base) as weights:
        merge = Merge(weights, read_changes(adapter), torch.bfloat16)
        first, again = ([merge[name] for name in weights.shapes] for _ in range(2))
        assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_adapter_with_an_unsupported_tensor_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith("q_proj.lora_B.weight"))
    tensors[key.replace("lora_B.weight", "lora_B.bias")] = torch.zeros(4)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: changed"):
        read_changes(adapter)  # it changed since training
    edit_result(adapter / BASE_FILE)
    with pytest.raises(UserError, match=r"model.layers.0.self_attn.q_proj.lora_B.weight: bias"):
        read_changes(adapter)


def test_an_adapter_that_does_not_fit_the_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_base, tmp_path / "adapter")
    with Shards(tiny_base) as weights:
        shapes = weights.shapes
        merge = Merge(weights, read_changes(adapter), torch.float32)
        name = "model.layers.1.mlp.up_proj.weight"
        with pytest.raises(UserError, match=rf"(?s){name}: the base .*{name}: the adapter has"):
            merge.check(shapes | {name: (3, 64)})
        others = {other: shape for other, shape in shapes.items() if other != name}
        with pytest.raises(UserError, match=rf"{name}: the adapter has .*, the model \(\)"):
            merge.check(others)


def test_written_shards_can_be_read_by_the_library(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(3 + i, 7).bfloat16() for i in range(5)}  # 42 to 98 bytes
    tensors["vector"] = torch.randn(5).bfloat16()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_shards(tmp_path, shapes, torch.bfloat16, tensors.__getitem__, max_shard_bytes=160)
    files = sorted(tmp_path.glob("*.safetensors"))
    names = [list(load_file(path)) for path in files]
    assert names == [["t0", "t1"], ["t2", "t3"], ["t4", "vector"]]  # 98, 154 and 108 bytes
    assert files[2].name == "model-00003-of-00003.safetensors"
    read = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert read.keys() == tensors.keys()
    with Shards(tmp_path) as shards:
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor)
            assert torch.equal(shards[name], tensor)
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_native_and_original_tensor_names_map_one_to_one(tiny_base: Path) -> None:
    names = list(model_shapes(Pretrained("base_model", str(tiny_base))))
    originals = [original_name(name) for name in names]
    assert len(set(originals)) == len(names) == 33
    assert [native_name(name) for name in originals] == names
    # As Boson AI's published index lists them.
    assert {
        "audio_codebook_embeddings.weight",
        "audio_decoder_proj.audio_lm_head.weight",
        "audio_decoder_proj.text_lm_head.weight",
        "embed_tokens.weight",
        "layers.0.audio_input_layernorm.weight",
        "layers.1.audio_mlp.down_proj.weight",
        "norm.weight",
    } < set(originals)


def test_float32_arithmetic_upcasts_each_weight_when_it_is_used(
    tiny_base: Path, corpus: PackedCorpus
) -> None:
    narrow = DualLossModel(load(tiny_base).bfloat16()).eval()
    wide = DualLossModel(load(tiny_base).bfloat16().float()).eval()
    batch = collate([PackedRows(corpus.eval_rows)[0]], wide.shape)
    with torch.inference_mode():
        expected = wide.logits(batch)
        with float32_arithmetic(narrow):
            found = narrow.logits(batch)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}


def test_a_tensor_of_an_unexpected_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a: \(3,\) torch.float32"):
        write_shards(tmp_path, {"a": (2,)}, torch.float32, lambda _: torch.zeros(3))


def test_a_tensor_outside_the_model_has_no_original_name() -> None:
    with pytest.raises(KeyError, match=r"codec\.weight"):
        original_name("codec.weight")
