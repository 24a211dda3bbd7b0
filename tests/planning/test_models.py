"""Folders that cannot be the base model or the codec are reported during planning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import config_of_base, has_line_with
from safetensors.torch import save_file

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.family import FAMILIES
from higgs_pipe.planning.checkpoint_files import size_fault
from higgs_pipe.planning.models import KINDS, check_folders, folder_fault, is_hub_id, weights_fault

BODY, HEAD = "model.embed_tokens.weight", "text_lm_head.weight"


def checkpoint(folder: Path, *tensors: str, model_type: str = "higgs_audio_v2") -> Path:
    """A folder with the files that planning looks at."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of_base(model_type)))
    save_file({name: torch.zeros(1) for name in tensors}, folder / "model.safetensors")
    return folder


def sharded(folder: Path, *tensors: str) -> Path:
    """The same with an index and a file for each tensor."""
    checkpoint(folder)
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i}.safetensors" for i, name in enumerate(tensors)}
    for name, place in places.items():
        save_file({name: torch.zeros(1)}, folder / place)
    index = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def config_of(base: Path, codec: Path, **experiments: dict[str, str]) -> dict[str, Any]:
    """The part of the config that names checkpoints."""
    return {"base_model": str(base), "codec": str(codec), "experiments": experiments}


@pytest.mark.parametrize("make", [checkpoint, sharded])
def test_a_complete_checkpoint_has_no_fault(tmp_path: Path, make: Callable[..., Path]) -> None:
    for folder, head in (("base", HEAD), ("original", f"audio_decoder_proj.{HEAD}")):
        assert folder_fault("base_model", str(make(tmp_path / folder, BODY, head))) is None


def test_the_miniature_and_its_codec_have_no_fault(tiny_base: Path) -> None:
    check_folders(config_of(tiny_base, tiny_base / "audio_tokenizer"), ["elsewhere"])


def test_faults_of_base_and_codec_come_in_one_error(tiny_base: Path) -> None:
    config = config_of(tiny_base / "audio_tokenizer", tiny_base)
    with pytest.raises(UserError) as caught:
        check_folders(config, ["elsewhere"])
    assert has_line_with(str(caught.value), "base_model ", "is that of codec")
    assert has_line_with(str(caught.value), "codec ", "is that of base_model")


def test_the_base_built_by_the_demo_may_be_missing(tmp_path: Path) -> None:
    demo = tmp_path / "tiny"
    check_folders(config_of(demo, demo / "codec"), [str(tmp_path / "tiny-v3"), str(demo)])
    with pytest.raises(UserError, match="does not exist"):
        check_folders(config_of(demo, tmp_path / "codec"), [str(demo)])


def test_the_base_of_an_experiment_is_named_by_its_key(tmp_path: Path) -> None:
    demo = tmp_path / "tiny"
    absent = {"base_model": str(tmp_path / "absent")}
    with pytest.raises(UserError) as caught:
        check_folders(config_of(demo, demo, own={}, big=absent), [str(demo)])
    assert has_line_with(str(caught.value), "experiments.big.base_model ", "does not exist")


@pytest.mark.parametrize("make", [checkpoint, sharded])
def test_a_merged_base_without_its_text_head_is_refused(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    fault = folder_fault("base_model", str(make(tmp_path / "base", BODY)))
    assert HEAD in str(fault)


def test_a_missing_weight_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "base", BODY, HEAD)
    (folder / "model-1.safetensors").unlink()
    assert "lacks the weights model-1.safetensors;" in str(folder_fault("base_model", str(folder)))
    (folder / "model-0.safetensors").unlink()
    told = "lacks the weights model-0.safetensors and 1 more;"
    assert told in str(folder_fault("base_model", str(folder)))


def test_weights_may_be_in_several_files_without_an_index(tmp_path: Path) -> None:
    for tensors in ((HEAD, BODY), (BODY, HEAD)):  # a folder lists its files in any order
        folder = sharded(tmp_path / tensors[0], *tensors)
        (folder / "model.safetensors.index.json").unlink()
        assert folder_fault("base_model", str(folder)) is None


def test_weights_may_be_those_of_pytorch(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", BODY)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert folder_fault("base_model", str(folder)) is None


def test_a_model_on_the_hub_is_checked_without_its_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", BODY, HEAD)
    (folder / "model.safetensors").unlink()
    assert weights_fault("base_model", folder, has_files=False) is None
    of_several_files = sharded(tmp_path / "large", BODY, HEAD)
    for file in of_several_files.glob("*.safetensors"):
        file.unlink()
    assert weights_fault("base_model", of_several_files, has_files=False) is None
    check_folders(config_of(Path("org/model"), Path("org/codec")), [])


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_a_weight_index_that_names_files_elsewhere_is_refused(tmp_path: Path, place: str) -> None:
    folder = sharded(tmp_path / "base", BODY, HEAD)
    (tmp_path / "other.safetensors").write_bytes(b"")
    index = json.dumps({"weight_map": {BODY: place}})
    (folder / "model.safetensors.index.json").write_text(index)
    fault = str(folder_fault("base_model", str(folder)))
    assert "elsewhere" in fault
    assert "copy" in fault


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0ab", b"\x02\0\0\0\0\0\0\0[]"),
        (2**26 + 1).to_bytes(8, "little") + b"{}",  # whose header is too long
    ],
)
def test_a_damaged_weights_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path / "base", BODY)
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged model.safetensors" in str(folder_fault("base_model", str(folder)))


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "null"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    folder = checkpoint(tmp_path / "base", BODY, HEAD)
    (folder / "config.json").write_text(text)
    assert "damaged config.json" in str(folder_fault("base_model", str(folder)))


def test_a_base_may_be_of_any_family(tmp_path: Path) -> None:
    assert KINDS["base_model"][1] == tuple(family.model_type for family in FAMILIES)
    base = checkpoint(tmp_path / "v3", "body.norm.weight", model_type="higgs_multimodal_qwen3")
    assert folder_fault("base_model", str(base)) is None


SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
MARKS = (
    *("audio_token_id", "audio_bos_token_id", "audio_delay_token_id"),
    *("audio_stream_bos_id", "audio_stream_eos_id"),
)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("higgs_audio_v2", (*SIZES, *MARKS, "num_codebooks", "codebook_size")),
        (
            "higgs_multimodal_qwen3",
            (
                *(f"text_config.{name}" for name in SIZES),
                *("audio_encoder_config.num_codebooks", "audio_encoder_config.vocab_size"),
            ),
        ),
    ],
)
def test_a_base_without_one_of_its_sizes_is_refused(
    tmp_path: Path, family: str, names: tuple[str, ...]
) -> None:
    base = checkpoint(tmp_path / "base", BODY, HEAD, model_type=family)
    for dotted in names:
        config = config_of_base(family)
        section, _, key = dotted.rpartition(".")
        del (config[section] if section else config)[key]
        if section:
            config[key] = 8  # elsewhere
        (base / "config.json").write_text(json.dumps(config))
        assert f"has no {dotted}" in str(folder_fault("base_model", str(base)))


def test_a_mark_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", BODY, HEAD)
    config = config_of_base() | {"audio_token_id": "7"}
    (base / "config.json").write_text(json.dumps(config))
    assert "audio_token_id" in str(folder_fault("base_model", str(base)))


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", BODY, model_type="llama")
    assert "is a 'llama'" in str(folder_fault("base_model", str(folder)))


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    fault = str(folder_fault("base_model", str(tmp_path)))
    assert "is an adapter" in fault
    assert fault.endswith("org/base")


def test_the_parent_folder_of_a_checkpoint_gets_a_hint(tmp_path: Path) -> None:
    checkpoint(tmp_path / "models" / "base", BODY, HEAD)
    fault = str(folder_fault("base_model", str(tmp_path / "models")))
    assert fault.endswith(f"did you mean {tmp_path / 'models' / 'base'}?")


def test_a_folder_without_weights_is_named_in_planning(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", BODY)
    (folder / "model.safetensors").unlink()
    assert "has no weights" in str(folder_fault("base_model", str(folder)))


def test_a_missing_folder_lists_its_siblings(tmp_path: Path) -> None:
    for name in ("higgs-3b", ".hidden", *(f"b{number}" for number in range(10))):
        (tmp_path / name).mkdir()
    fault = str(folder_fault("codec", str(tmp_path / "higgs-3B")))
    first_ten = "b0, b1, b2, b3, b4, b5, b6, b7, b8, b9"
    assert fault == f"does not exist; folders in {tmp_path}: {first_ten}"


def test_a_folder_name_that_looks_like_an_option_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "-base", BODY, HEAD)
    assert "begins with a dash" in str(folder_fault("base_model", "-base"))
    assert folder_fault("base_model", str(tmp_path / "-base")) is None


def test_a_name_too_long_for_a_file_is_refused() -> None:
    assert "cannot be read (" in str(folder_fault("codec", "c" * 300))


def test_a_weights_file_given_instead_of_its_folder_is_named(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "base", BODY) / "model.safetensors"
    assert str(folder_fault("base_model", str(file))).endswith(f"name its folder, {file.parent}")


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("org/model", True),
        ("model", True),
        ("org/model-3B.v2", True),
        ("./model", False),
        ("/models/base", False),
        ("~/base", False),
        ("a/b/c", False),
        ("here/base", False),
        ("here", False),
        ("org/my model", False),
        ("o" * 96 + "/" + "m" * 96, True),
        ("org/" + "m" * 300, False),  # no file can have this name either
    ],
)
def test_hub_ids_are_told_from_folders(
    tmp_path: Path, name: str, is_id: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_hub_id(name) == is_id
    shutil.rmtree(tmp_path / "here")
    assert is_hub_id("here/base")


@pytest.mark.parametrize(
    ("config", "fact"),
    [
        ({"vocab_size": 1, "num_codebooks": 64}, None),
        ({"vocab_size": 0}, "the vocab_size 0 "),
        ({"vocab_size": 2**22 + 1}, "the vocab_size 4194305 "),
        ({"codebook_size": 2**15}, "the codebook_size 32768 "),  # codes have 16 bits
        ({"text_config": [8], "audio_encoder_config": None}, None),
        ({"num_codebooks": 65}, "the num_codebooks 65 "),
        ({"num_hidden_layers": 1_001}, "the num_hidden_layers 1001 "),
        ({"num_codebooks": True}, "the num_codebooks True "),
        ({"text_config": {"hidden_size": 2**17 + 1}}, "the hidden_size 131073 "),
        ({"audio_encoder_config": {"num_codebooks": "8"}}, "the num_codebooks '8' "),
    ],
)
def test_an_impossible_size_is_named_in_any_section(config: Any, fact: str | None) -> None:
    found = size_fault(config)
    assert found is None if fact is None else fact in (found or "")
