"""Higgs TTS 3 compared with a plain Qwen3Model, and what its checkpoint may contain."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.family import V3, family_of_base
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.prompts import ModelPrompt

BODY, BUNDLED = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
PREFIX = "tied.embedding."
AUDIO = f"{PREFIX}modality_embeddings.0.embedding.weight"
CODEC = f"{PREFIX}modality_embeddings.0.model."


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    return load_base(Pretrained("base_model", str(folder)), dtype)


def changed(v3_base: Path, folder: Path, file: str, change: Any) -> Path:
    """A copy of the miniature whose tensors of a file are changed."""
    shutil.copytree(v3_base, folder)
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def plain_logits(folder: Path, ids: list[int], frames: list[list[int]]) -> torch.Tensor:
    """(S, 8, 1026) by a plain Qwen3Model and loops, from the files and V3's names alone."""
    weights = {k: v.double() for k, v in load_file(folder / BODY).items()}
    body = Qwen3Model(
        Qwen3Config(**json.loads((folder / "config.json").read_text())["text_config"])
    )
    names = {k.removeprefix("body."): v for k, v in weights.items() if k.startswith("body.")}
    names["embed_tokens.weight"] = weights[f"{PREFIX}text_embedding.weight"]
    body.double().load_state_dict(names)
    audio, remaining, rows = weights[AUDIO], iter(frames), []
    for token in ids:
        if token == -100:
            codes = next(remaining)
            rows.append(audio[[1026 * k + code for k, code in enumerate(codes)]].sum(0))
        else:
            rows.append(names["embed_tokens.weight"][token])
    hidden = body(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0]
    logits = [[audio[1026 * k : 1026 * (k + 1)] @ h for k in range(8)] for h in hidden]
    return torch.stack([torch.stack(position) for position in logits])


def test_logits_match_a_plain_qwen3_model(v3_base: Path) -> None:
    ids = [256 + 24, 72, 105, -100, -100, 256 + 26, -100, 30]
    frames = torch.randint(0, 1026, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain_logits(v3_base, ids, frames.tolist())
        found = load(v3_base)(torch.tensor([ids]), frames[None])[0]
    assert expected.std() > 1
    assert torch.allclose(found, expected, atol=1e-9)


def test_next_frame_logits_are_those_of_the_last_position(v3_base: Path) -> None:
    native, ids = load(v3_base), [256 + 24, 72, 105, -100, -100]
    frames = np.random.default_rng(1).integers(0, 1026, (2, 8)).astype(np.int16)
    with torch.no_grad():
        expected = plain_logits(v3_base, ids, frames.tolist())[-1]
        found = V3.next_frame_logits(native, ModelPrompt(np.array(ids), frames))
    assert torch.allclose(found, expected, atol=1e-9)


def test_the_model_type_of_the_raw_config_names_the_family(v3_base: Path) -> None:
    assert family_of_base(Pretrained("base_model", str(v3_base))) is V3


def test_an_unknown_model_type_is_refused_with_the_known_ones(
    v3_base: Path, tmp_path: Path
) -> None:
    config = json.loads((v3_base / "config.json").read_text()) | {"model_type": "higgs_audio_v9"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"higgs_audio_v9.*higgs_audio_v2.*higgs_multimodal_qwen3"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["body.layers.1.self_attn.q_norm.weight", AUDIO])
def test_a_missing_tensor_is_named(v3_base: Path, tmp_path: Path, name: str) -> None:
    folder = changed(v3_base, tmp_path / "base", BODY, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=f"1 weights are missing.*{name}"):
        load(folder)


def test_an_unknown_tensor_is_named(v3_base: Path, tmp_path: Path) -> None:
    extra = {"body.layers.0.audio_mlp.up_proj.weight": torch.zeros(2)}
    folder = changed(v3_base, tmp_path / "base", BODY, lambda tensors: tensors.update(extra))
    with pytest.raises(UserError, match=r"1 tensors .*\n.*layers\.0\.audio_mlp\.up_proj"):
        load(folder)


def test_tied_heads_may_be_present_or_missing(v3_base: Path, tmp_path: Path) -> None:
    heads = ("tied.head.text_head.weight", "tied.head.modality_heads.0.weight")

    def without(tensors: dict[str, Any]) -> None:
        assert {tensors.pop(name).shape[1] for name in heads} == {64}

    folder = changed(v3_base, tmp_path / "base", BUNDLED, without)
    with_heads, without_heads = (load(base).state_dict() for base in (v3_base, folder))
    assert with_heads.keys() == without_heads.keys()
    assert not [name for name in with_heads if "head" in name]


def test_an_audio_head_that_differs_from_its_embedding_is_refused(
    v3_base: Path, tmp_path: Path
) -> None:
    def untie(tensors: dict[str, Any]) -> None:
        tensors["tied.head.modality_heads.0.weight"][0, 0] += 1

    with pytest.raises(UserError, match=r"modality_heads\.0.weight is not"):
        load(changed(v3_base, tmp_path / "base", BUNDLED, untie))


def test_the_bundled_codec_equals_that_of_the_v2_miniature(v3_base: Path, tiny_base: Path) -> None:
    codec = load_file(tiny_base / "audio_tokenizer" / "model.safetensors")
    bundled = load_file(v3_base / BUNDLED)
    found = {k.removeprefix(CODEC): v for k, v in bundled.items() if k.startswith(CODEC)}
    assert found.keys() - codec.keys() == {"semantic_model.masked_spec_embed"}
    assert all(torch.equal(found[name], tensor) for name, tensor in codec.items())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_missing_or_unknown_codec_tensor_is_named(
    v3_base: Path, tmp_path: Path, change: str
) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        tensor = tensors.pop(f"{CODEC}fc.weight")
        tensors |= {f"{CODEC}fc3.weight": tensor} if change == "unknown" else {}

    folder = changed(v3_base, tmp_path / "base", BUNDLED, rename)
    name = "fc3" if change == "unknown" else "fc"
    with pytest.raises(UserError, match=rf"1 .*tensors.*\n.*\.model\.{name}\.weight"):
        load(folder)


def test_only_layers_of_the_body_can_be_quantized(v3_base: Path) -> None:
    linear = [n for n, m in load(v3_base).named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 2 * 7
    assert all(name.startswith("body.layers.") for name in linear)
    assert V3.unquantized == ()  # the head is the embeddings
