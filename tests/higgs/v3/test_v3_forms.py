"""A merged checkpoint of Higgs TTS 3 is the published bundle, with the adapter in its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.form_weights import check_bits, check_weights, load_form
from higgs_pipe.higgs.lora import (
    adapter_state,
    add_lora,
    load_adapter_exactly,
    merge_by_peft,
    save_adapter,
)
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.merge import write_form

CODEC = CodecInfo("codec", None, "0", 8, 1024, 25.0, 24_000, 960, "float32")
AUDIO = "tied.embedding.modality_embeddings.0.embedding.weight"
AUDIO_HEAD, TEXT_HEAD = "tied.head.modality_heads.0.weight", "tied.head.text_head.weight"
CODEC_TENSOR = "tied.embedding.modality_embeddings.0.model.fc.weight"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def adapter(v3_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of attention and the tied audio matrix, whose tensors have all moved."""
    folder = tmp_path_factory.mktemp("adapter")
    base = Pretrained("base_model", str(v3_base))
    settings = LoraSettings(r=4, target_modules="attention", train_in_full=["audio_head"])
    tokenizer = AutoTokenizer.from_pretrained(v3_base)
    model = add_lora(load_base(base, torch.float32), settings, 0, tokenizer)
    initial = adapter_state(model)
    torch.manual_seed(1)
    moved = {name: tensor + 0.05 * torch.randn(tensor.shape) for name, tensor in initial.items()}
    save_adapter(model, moved, initial, folder, PinnedModel.of(base))
    return folder


@pytest.fixture(scope="module")
def merged(v3_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    pinned = PinnedModel.of(Pretrained("base_model", str(v3_base)))
    write_form("merged", folder, pinned, CODEC, adapter, torch.float32)
    return folder


def by_peft(v3_base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    base = load_base(Pretrained("base_model", str(v3_base)), torch.float32)
    return merge_by_peft(load_adapter_exactly(base, adapter), torch.float32)


def test_a_merged_checkpoint_has_the_files_and_tensors_of_a_bundle(
    v3_base: Path, merged: Path
) -> None:
    before, after = tensors_of(v3_base), tensors_of(merged)
    assert before.keys() == after.keys()
    assert torch.equal(after[CODEC_TENSOR], before[CODEC_TENSOR])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (merged / name).is_file()


def test_tied_heads_follow_the_changed_matrices(v3_base: Path, merged: Path) -> None:
    before, after = tensors_of(v3_base), tensors_of(merged)
    assert not torch.equal(after[AUDIO], before[AUDIO])
    assert torch.equal(after[AUDIO_HEAD], after[AUDIO])
    assert torch.equal(after[TEXT_HEAD], before[TEXT_HEAD])


def test_merged_weights_match_pefts_own_merge(v3_base: Path, adapter: Path, merged: Path) -> None:
    expected, base = by_peft(v3_base, adapter), Pretrained("base_model", str(v3_base))
    assert check_weights(merged, expected, "merged", base) == 0
    loaded = load_form("merged", merged, base).state_dict()
    assert loaded.keys() == expected.keys()
    torch.testing.assert_close(loaded, expected)


@pytest.mark.parametrize("name", [AUDIO_HEAD, CODEC_TENSOR])
def test_a_wrong_head_or_codec_tensor_is_named(
    v3_base: Path, adapter: Path, merged: Path, tmp_path: Path, name: str
) -> None:
    tensors = tensors_of(merged)
    tensors[name] = tensors[name] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    expected, base = by_peft(v3_base, adapter), Pretrained("base_model", str(v3_base))
    with pytest.raises(UserError, match=f"1 tensors are not those .*\n.*{name}: 100.00%"):
        check_weights(tmp_path, expected, "merged", base)


def test_a_form_of_another_family_is_refused(v3_base: Path, adapter: Path, tmp_path: Path) -> None:
    pinned = PinnedModel.of(Pretrained("base_model", str(v3_base)))
    with pytest.raises(UserError, match="original is not a form of Higgs TTS 3, which has merged"):
        write_form("original", tmp_path, pinned, CODEC, adapter, torch.float32)


def test_the_weight_check_names_a_tensor_of_another_shape(
    v3_base: Path, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    tensors = tensors_of(merged)
    tensors[AUDIO] = tensors[AUDIO][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    expected, base = by_peft(v3_base, adapter), Pretrained("base_model", str(v3_base))
    with pytest.raises(UserError, match=f"1 tensors are not those .*\n.*{AUDIO}: 100.00%"):
        check_weights(tmp_path, expected, "merged", base)


def test_the_bit_check_names_a_tensor_with_a_changed_bit(
    v3_base: Path, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    base, tensors = Pretrained("base_model", str(v3_base)), tensors_of(merged)
    assert check_bits(merged, "merged", base, adapter) == len(tensors)
    tensors[AUDIO].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"1 tensors are not those .*\n.*{AUDIO}"):
        check_bits(tmp_path, "merged", base, adapter)
