"""The table of codes: each clip's own codes and hash, of the mean of its channels."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from helpers import tone, write_stage_config

from higgs_pipe import tokenize_audio
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.packing.codes_store import CodesStore
from higgs_pipe.data.specs import SHARD_CLIPS, codes_spec
from higgs_pipe.data.tables import read_codec_info, write_table
from higgs_pipe.higgs.codec import encode, load_codec, to_codec_input
from higgs_pipe.higgs.v2 import miniature


def clip_of(path: Path, **values: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    found: dict[str, Any] = {"clip_id": path.stem, "audio_path": str(path), "audio_sha256": sha256}
    found |= {"start_seconds": None, "end_seconds": None, "channel": None}
    return found | {"duration_seconds": sf.info(path).duration} | values


def encoded(
    folder: Path, base: Path, clips: list[dict[str, Any]], **settings: Any
) -> dict[str, dict[str, Any]]:
    """The rows of the table of codes by clip."""
    write_table(folder / "shard.parquet", SHARD_CLIPS, clips)
    codec = str(base / miniature.AUDIO_TOKENIZER)
    config = write_stage_config(folder / "tokenize.json", codec=codec, tokenize=settings)
    tokenize_audio.run(config, folder / "shard.parquet", folder / "codes.parquet")
    return {row["clip_id"]: row for row in pq.read_table(folder / "codes.parquet").to_pylist()}


def test_each_clip_has_the_hash_of_its_own_file(tmp_path: Path, tiny_base: Path) -> None:
    paths = [tone(tmp_path / f"{n}.wav", 0.8, 150 + 90 * n) for n in range(3)]
    rows = encoded(tmp_path, tiny_base, [clip_of(path) for path in paths])
    for path in paths:
        row = rows[path.stem]
        assert row["audio_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["num_frames"] == len(row["codes"]) == 20


def test_a_segment_gets_the_codes_of_its_part_of_the_file(tmp_path: Path, tiny_base: Path) -> None:
    long = tone(tmp_path / "long.wav", 2.4)
    samples, rate = sf.read(long, dtype="int16")
    sf.write(tmp_path / "alone.wav", samples[rate : 2 * rate], rate)
    part = clip_of(long, clip_id="part", start_seconds=1.0, end_seconds=2.0, duration_seconds=1.0)
    rows = encoded(tmp_path, tiny_base, [part, clip_of(tmp_path / "alone.wav")])
    assert rows["part"]["codes"] == rows["alone"]["codes"]


def test_the_codec_gets_the_mean_of_the_channels_or_the_chosen_one(
    tmp_path: Path, tiny_base: Path
) -> None:
    left, right = (sf.read(tone(tmp_path / f"{n}.wav", 0.8, 150 * n))[0] for n in (1, 2))
    sf.write(tmp_path / "both.wav", np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
    sf.write(tmp_path / "mean.wav", (left + right) / 2, 24_000, subtype="FLOAT")
    both, mean = tmp_path / "both.wav", tmp_path / "mean.wav"
    chosen = clip_of(both, clip_id="chosen", channel=1)
    rows = encoded(tmp_path, tiny_base, [clip_of(both), clip_of(mean), chosen])
    assert rows["both"]["codes"] == rows["mean"]["codes"]
    assert rows["chosen"]["codes"] != rows["mean"]["codes"]
    alone = encoded(tmp_path, tiny_base, [clip_of(tmp_path / "2.wav")])
    assert rows["chosen"]["codes"] == alone["2"]["codes"]


def test_two_channels_at_once_are_averaged(tiny_base: Path) -> None:
    info = load_codec(
        Pretrained("codec", str(tiny_base / miniature.AUDIO_TOKENIZER)), torch.device("cpu")
    )[1]
    channels = np.random.default_rng(0).uniform(-1, 1, (960, 2)).astype(np.float32)
    expected = torch.from_numpy((channels[:, 0] + channels[:, 1]) / 2)
    assert torch.allclose(to_codec_input(channels, 24_000, info), expected)


def test_the_codec_revision_is_passed_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    class Asked(Exception):
        """In place of an answer of the Hub."""

    def from_pretrained(name: str, revision: str | None = None, **_: Any) -> Any:
        asked.append(revision)
        raise Asked

    def snapshot_download(name: str, revision: str | None = None, **_: Any) -> str:
        asked.append(revision)
        return str(tmp_path)

    (tmp_path / "config.json").write_text('{"model_type": "higgs_audio_v2_tokenizer"}')
    monkeypatch.setattr("higgs_pipe.higgs.pretrained.snapshot_download", snapshot_download)
    monkeypatch.setattr("higgs_pipe.higgs.pretrained.hub_answers", lambda: True)
    model_class = "higgs_pipe.higgs.codec.HiggsAudioV2TokenizerModel.from_pretrained"
    monkeypatch.setattr(model_class, from_pretrained)
    with pytest.raises(Asked):
        load_codec(Pretrained("codec", "acme/codec", "v1"), torch.device("cpu"))
    assert set(asked) == {"v1"}


def test_codes_at_offsets_beyond_16_bits_belong_to_the_right_clip(
    tmp_path: Path, tiny_base: Path
) -> None:
    """Two clips of 20,000 frames: the second begins beyond 32,767."""
    encoded(tmp_path, tiny_base, [clip_of(tone(tmp_path / "a.wav", 0.8))])
    info = read_codec_info(tmp_path / "codes.parquet")
    values = {name: np.full((20_000, 8), n, np.int16) for n, name in enumerate("xyz")}
    rows = [
        {"clip_id": name, "codes": codes, "num_frames": len(codes), "audio_sha256": ""}
        for name, codes in values.items()
    ]
    write_table(tmp_path / "long.parquet", codes_spec(8), rows, info.as_metadata())
    found = pq.read_table(tmp_path / "long.parquet")["codes"].to_pylist()
    assert [len(codes) for codes in found] == [20_000] * 3
    with CodesStore([tmp_path / "long.parquet"], pa.array(list("zyx")), tmp_path) as store:
        assert [set(store[n].flatten().tolist()) for n in range(3)] == [{2}, {1}, {0}]


def test_batches_hold_at_most_max_batch_seconds(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(model: Any, waveforms: torch.Tensor, info: Any) -> Any:
        sizes.append(len(waveforms))
        return encode(model, waveforms, info)

    monkeypatch.setattr(tokenize_audio, "encode", counted)
    clips = [clip_of(tone(tmp_path / f"{n}.wav", 0.8, 200 + 50 * n)) for n in range(5)]
    encoded(tmp_path, tiny_base, clips, max_batch_seconds=1.6)
    encoded(tmp_path, tiny_base, clips)
    assert sizes == [2, 2, 1, *[1] * 5]
