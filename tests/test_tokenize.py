import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from conftest import PackedCorpus, tone, write_stage_config
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from higgs_pipe import tokenize_audio
from higgs_pipe.data.files import sha256_of_file
from higgs_pipe.data.tables import SHARD_CLIPS, codes_spec, read_codec_info, read_table, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import tiny
from higgs_pipe.higgs.codec import encode, load_codec, to_codec_input

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec(tiny_base: Path):
    return load_codec(str(tiny_base / tiny.AUDIO_TOKENIZER), None, CPU)


def encode_paths(paths: list[Path], output: Path, base: Path, **settings: float) -> dict:
    """The codes of some files, through the stage."""
    rows = [
        {
            "clip_id": path.stem,
            "audio_path": str(path),
            "start_seconds": None,
            "end_seconds": None,
            "audio_sha256": sha256_of_file(path),
            "duration_seconds": sf.info(path).duration,
        }
        for path in paths
    ]
    shard = output / "shard-00000.parquet"
    write_table(shard, SHARD_CLIPS, rows)
    config = write_stage_config(
        output / "tokenize.json", codec=str(base / tiny.AUDIO_TOKENIZER), tokenize=settings
    )
    codes = output / "codes.parquet"
    tokenize_audio.run(config, shard, codes)
    table, _ = read_table(codes, codes_spec(8))
    return {row["clip_id"]: row for row in table.to_pylist()}


def test_batched_codes_are_those_of_encoding_one_by_one(tmp_path, tiny_base, codec):
    model, info = codec
    seconds = [0.6, 0.6, 0.61, 0.64, 1.0, 1.0, 1.0, 1.5]
    paths = [tone(tmp_path / f"{i}.wav", s, 150 + 60 * i) for i, s in enumerate(seconds)]
    rows = encode_paths(paths, tmp_path, tiny_base, max_batch_seconds=2.5)
    for path in paths:
        samples, rate = sf.read(path, dtype="float32", always_2d=True)
        alone = encode(model, to_codec_input(samples, rate, info)[None], info)[0]
        assert rows[path.stem]["codes"] == alone.tolist()
        assert rows[path.stem]["num_frames"] == len(alone) == np.ceil(len(samples) / 960)


def test_codes_are_the_native_processors_for_whole_frames(tmp_path, tiny_base, codec):
    model, info = codec
    processor = AutoProcessor.from_pretrained(tiny_base)
    waveform = np.random.default_rng(0).normal(0, 0.1, 960 * 31).astype(np.float32)
    inputs = processor.feature_extractor(waveform, sampling_rate=24_000, return_tensors="pt")
    native = processor.audio_tokenizer.encode(inputs["input_values"]).audio_codes[0].T
    ours = encode(model, to_codec_input(waveform[:, None], 24_000, info)[None], info)[0]
    assert ours.tolist() == native.tolist()


def test_codes_depend_on_the_audio(tmp_path, tiny_base):
    paths = [tone(tmp_path / "low.wav", 1.0, 110), tone(tmp_path / "high.wav", 1.0, 3000)]
    rows = encode_paths(paths, tmp_path, tiny_base)
    assert rows["low"]["codes"] != rows["high"]["codes"]
    assert len({code for frame in rows["low"]["codes"] for code in frame}) > 20


@pytest.mark.parametrize(("num_samples", "num_frames"), [(960, 1), (961, 2), (1079, 2), (1920, 2)])
def test_audio_is_padded_at_its_end_to_whole_frames(codec, num_samples, num_frames):
    padded = to_codec_input(np.ones((num_samples, 1), np.float32), 24_000, codec[1])
    assert len(padded) == num_frames * 960
    assert padded[:num_samples].eq(1).all()
    assert padded[num_samples:].eq(0).all()


def test_stereo_at_another_rate_becomes_mono_at_the_codecs(codec):
    time = np.arange(44_100) / 44_100
    tone_left = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    mono = to_codec_input(np.stack([tone_left, -tone_left], axis=1), 44_100, codec[1])
    assert len(mono) == 25 * 960
    assert mono.abs().max() < 1e-6


def test_the_table_is_stamped_with_its_codec(corpus: PackedCorpus, tiny_base):
    info = read_codec_info(corpus.codes_dir / "shard-00000.parquet")
    config = json.loads((tiny_base / "audio_tokenizer/config.json").read_text())
    assert (info.num_codebooks, info.codebook_size) == (8, config["codebook_size"])
    assert (info.frame_rate_hz, info.sample_rate_hz, info.hop_length) == (25.0, 24_000, 960)
    assert len(info.fingerprint) == 64


def test_an_empty_shard_gives_an_empty_table(tmp_path, tiny_base):
    assert encode_paths([], tmp_path, tiny_base) == {}
    assert pq.read_metadata(tmp_path / "codes.parquet").num_rows == 0


def test_a_file_changed_since_validation_is_refused(tmp_path, tiny_base):
    path = tone(tmp_path / "a.wav", 1.0)
    encode_paths([path], tmp_path, tiny_base)
    tone(path, 1.2)
    config = tmp_path / "tokenize.json"
    with pytest.raises(UserError, match=r"a.wav changed since it was validated"):
        tokenize_audio.run(config, tmp_path / "shard-00000.parquet", tmp_path / "again.parquet")
    assert not (tmp_path / "again.parquet").exists()


def test_a_codec_with_missing_weights_is_refused(tmp_path, tiny_base):
    source = tiny_base / tiny.AUDIO_TOKENIZER
    weights = load_file(source / "model.safetensors")
    del weights["fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(UserError, match=r"1 weights are missing .* fc.weight"):
        load_codec(str(tmp_path), None, CPU)


def test_a_codec_that_is_nowhere_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"codec .*nowhere.* cannot be loaded"):
        load_codec(str(tmp_path / "nowhere"), None, CPU)
