"""The codec of Higgs TTS 3, read from the bundle of the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tone, write_stage_config
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe import tokenize_audio
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec import load_codec
from higgs_pipe.higgs.codec_checkpoint import num_codec_bytes, write_codec
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.v3.codec import codec_config
from higgs_pipe.planning.models import folder_fault

BUNDLED = "model-00002-of-00002.safetensors"
PREFIX = "tied.embedding.modality_embeddings.0.model."


def bundle(v3_base: Path) -> Pretrained:
    return Pretrained("codec", str(v3_base))


def without_codec(v3_base: Path, folder: Path, lacking: str) -> Path:
    """A copy of the miniature without these tensors, which are also missing from the index."""
    shutil.copytree(v3_base, folder)
    tensors = load_file(folder / BUNDLED)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lacking)}
    save_file(kept, folder / BUNDLED, metadata={"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"].items()
    index["weight_map"] = {n: file for n, file in places if not n.startswith(lacking)}
    path.write_text(json.dumps(index))
    return folder


def test_the_bundled_codec_gives_the_codes_of_the_v2_codec(
    corpus: PackedCorpus, v3_base: Path, tmp_path: Path
) -> None:
    config = write_stage_config(tmp_path / "tokenize.json", codec=str(v3_base))
    shard = "shard-00000.parquet"
    clips = corpus.directory / "data/shards" / shard
    tokenize_audio.run(config, clips, tmp_path / shard)
    found, others = (
        pq.read_table(folder / shard).column("codes").to_pylist()
        for folder in (tmp_path, corpus.directory / "codes")
    )
    assert len(found) > 3
    assert found == others


def test_a_bundle_without_a_codec_config_has_the_published_codec() -> None:
    """As SGLang-Omni's test of its copy of the published config counts them."""
    config = codec_config({"model_type": "higgs_multimodal_qwen3", "audio_encoder_config": {}})
    with torch.device("meta"):
        weights = HiggsAudioV2TokenizerModel(config).state_dict()
    assert len(weights) == 527
    assert sum(weight.numel() for weight in weights.values()) == 201_400_553
    assert weights["acoustic_encoder.block.0.conv1.weight"].shape == (128, 64, 16)
    assert weights["acoustic_decoder.block.0.conv_t1.weight"].shape == (1024, 512, 16)
    assert weights["quantizer.quantizers.0.codebook.embed"].shape == (1024, 64)
    assert (config.sample_rate, config.hop_length, config.num_quantizers) == (24_000, 960, 8)


def test_speak_uses_the_codec_bundled_with_the_base(v3_base: Path, tmp_path: Path) -> None:
    speaker = Speaker.load(str(v3_base), device="cpu")
    assert speaker.codec_info.codec == str(v3_base)
    assert speaker.voice(tone(tmp_path / "a.wav", 1.5), "So.").codes.shape == (38, 8)


def test_bundled_codec_weights_in_bfloat16_are_loaded_as_float32(
    v3_base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(v3_base, tmp_path / "base"))
    rounded = {name: t.bfloat16() for name, t in load_file(folder / BUNDLED).items()}
    save_file(rounded, folder / BUNDLED, metadata={"format": "pt"})
    model, info = load_codec(bundle(folder), torch.device("cpu"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert info.dtype == "float32"
    stored = rounded[f"{PREFIX}fc.weight"].float()
    assert torch.equal(model.state_dict()["fc.weight"], stored)


def test_the_bundled_codec_written_as_its_own_checkpoint_is_unchanged(
    v3_base: Path, tmp_path: Path
) -> None:
    write_codec(bundle(v3_base), tmp_path / "codec")
    wave = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 1, 9600))).float()
    codes = [
        model.encode(wave).audio_codes
        for model, _ in (
            load_codec(codec, torch.device("cpu"))
            for codec in (bundle(v3_base), Pretrained("codec", str(tmp_path / "codec")))
        )
    ]
    assert torch.equal(*codes)
    size = (tmp_path / "codec/model.safetensors").stat().st_size
    assert num_codec_bytes(bundle(v3_base)) == pytest.approx(size, rel=0.05)


LACKING: dict[str, tuple[str, str]] = {
    "all": (PREFIX, "has no codec in its bundle"),
    "one": (f"{PREFIX}fc.weight", ""),
}


@pytest.mark.parametrize("name", LACKING)
def test_missing_codec_weights_are_named_in_planning_and_on_loading(
    v3_base: Path, tmp_path: Path, name: Any
) -> None:
    lacking, fault = LACKING[name]
    folder = without_codec(v3_base, tmp_path / "base", lacking)
    assert (folder_fault("codec", str(folder)) or "").startswith(fault)
    with pytest.raises(UserError, match="weights are missing"):
        load_codec(bundle(folder), torch.device("cpu"))


def test_a_v2_base_given_as_a_codec_is_refused(tiny_base: Path, v3_base: Path) -> None:
    assert folder_fault("codec", str(v3_base)) is None
    assert "base_model" in (folder_fault("codec", str(tiny_base)) or "")
