import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from helpers import ROOT, tone, write_stage_config
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus
from transformers import AutoProcessor, HiggsAudioV2TokenizerModel
from transformers.models.dac.modeling_dac import DacResidualUnit, Snake1d

from higgs_pipe import tokenize_audio
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.packing.codes_store import CodesStore
from higgs_pipe.data.specs import SHARD_CLIPS, codes_spec
from higgs_pipe.data.spool import Spool
from higgs_pipe.data.tables import read_codec_info, read_table, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec import (
    BlockedSnake,
    LeanResidualUnit,
    encode,
    load_codec,
    to_codec_input,
)
from higgs_pipe.higgs.devices import claim_least_used
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.v2 import miniature
from higgs_pipe.tokenize_audio import decode_ahead, encode_clips

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec(tiny_base: Path) -> Any:
    return load_codec(Pretrained("codec", str(tiny_base / miniature.AUDIO_TOKENIZER)), CPU)


def clip_of(path: Path) -> dict:
    return {
        "clip_id": path.stem,
        "audio_path": str(path),
        "start_seconds": None,
        "end_seconds": None,
        "channel": None,
        "audio_sha256": sha256_of_file(path),
        "duration_seconds": sf.info(path).duration,
    }


def write_inputs(
    paths: list[Path], output: Path, base: Path, **settings: object
) -> tuple[Path, Path]:
    """The stage's config and the shard's clips."""
    shard = output / "shard-00000.parquet"
    write_table(shard, SHARD_CLIPS, [clip_of(path) for path in paths])
    codec = str(base / miniature.AUDIO_TOKENIZER)
    return write_stage_config(output / "tokenize.json", codec=codec, tokenize=settings), shard


def encode_paths(paths: list[Path], output: Path, base: Path, **settings: object) -> dict:
    """The codes of some files, through the stage."""
    codes = output / "codes.parquet"
    config, shard = write_inputs(paths, output, base, **settings)
    tokenize_audio.run(config, shard, codes)
    table = read_table(codes, codes_spec(8))
    return {row["clip_id"]: row for row in table.to_pylist()}


def test_batched_codes_match_encoding_one_by_one(
    tmp_path: Path, tiny_base: Path, codec: Any
) -> None:
    model, info = codec
    seconds = [0.6, 0.6, 0.61, 0.64, 1.0, 1.0, 1.0, 1.5]
    paths = [tone(tmp_path / f"{i}.wav", s, 150 + 60 * i) for i, s in enumerate(seconds)]
    rows = encode_paths(paths, tmp_path, tiny_base, max_batch_seconds=2.5)
    for path in paths:
        samples, rate = sf.read(path, dtype="float32", always_2d=True)
        alone = encode(model, to_codec_input(samples, rate, info)[None], info)[0]
        assert rows[path.stem]["codes"] == alone.tolist()
        assert rows[path.stem]["num_frames"] == len(alone) == np.ceil(len(samples) / 960)


def test_a_codec_that_contradicts_its_config_is_named(codec: Any) -> None:
    model, info = codec
    with pytest.raises(UserError, match=r"\(2, 8, 10\).*\(2, 4, 10\)"):
        encode(model, torch.zeros(2, 9600), replace(info, num_codebooks=4))


def test_a_batch_out_of_memory_is_halved_without_changing_its_codes(
    codec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, info = codec
    waveforms = 0.1 * torch.randn(5, 9600, generator=torch.Generator().manual_seed(0))
    sizes = []

    def limited(model: Any, batch: torch.Tensor, info: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("pretended")
        return encode(model, batch, info)

    monkeypatch.setattr(tokenize_audio, "encode", limited)
    found = tokenize_audio.encode_in_memory(model, waveforms, info)
    assert sizes == [5, 3, 2, 1, 2]
    for codes, waveform in zip(found, waveforms, strict=True):
        assert np.array_equal(codes, encode(model, waveform[None], info)[0])


def test_a_single_clip_that_exceeds_memory_is_a_user_error(
    codec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(*_: Any) -> Any:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(tokenize_audio, "encode", limited)
    with pytest.raises(UserError, match=r"clip of 2 s.*validate\.max_clip_seconds"):
        tokenize_audio.encode_in_memory(codec[0], torch.zeros(2, 48_000), codec[1])


def test_batch_length_on_a_gpu_follows_its_memory() -> None:
    def card(available: float) -> Any:
        return SimpleNamespace(available_bytes=lambda: available)

    assert tokenize_audio.batch_seconds(None) == 0
    assert tokenize_audio.batch_seconds(card(4.5e9)) == pytest.approx(80)  # 45 MB a second
    assert tokenize_audio.batch_seconds(card(80e9)) == 240


def test_automatic_batches_fill_memory_without_changing_the_codes(
    tones: list[Path],
    one_by_one: dict[str, list],
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pretended card has memory for 2 s by the stage's estimate, and for 1.8 s in fact."""
    found: list[int] = []

    def limited(model: Any, batch: torch.Tensor, info: Any) -> Any:
        if batch.numel() > 1.8 * 24_000 and len(batch) > 1:
            raise torch.OutOfMemoryError("pretended")
        found.append(len(batch))
        return encode(model, batch, info)

    card = SimpleNamespace(available_bytes=lambda: 2.0 * 45e6 / 0.8)
    monkeypatch.setattr(tokenize_audio, "card_of", lambda _: card)
    monkeypatch.setattr(tokenize_audio, "encode", limited)
    rows = encode_paths(tones, tmp_path, tiny_base)
    assert {clip: row["codes"] for clip, row in rows.items()} == one_by_one
    # 2.4 s; 1.5 s; 1 s three times: of two at once each alone; 0.8 and 0.64 s twice; 0.6 s.
    assert found == [1, 1, 1, 1, 1, 2, 2, 3]


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tones")
    seconds = [0.6, 1.0, 1.0, 0.61, 0.64, 0.6, 1.0, 1.5, 2.4, 0.8, 0.8, 0.6]
    rates = [24_000, 16_000, 44_100]
    return [
        tone(folder / f"{i}.flac", s, 150 + 60 * i, rates[i % 3]) for i, s in enumerate(seconds)
    ]


@pytest.fixture(scope="module")
def one_by_one(tones: list[Path], codec: Any, tiny_base: Path) -> dict[str, list]:
    """The codes of each clip encoded alone, straight through the native codec."""
    model = HiggsAudioV2TokenizerModel.from_pretrained(tiny_base / miniature.AUDIO_TOKENIZER)
    info = codec[1]
    codes = {}
    for path in tones:
        samples, rate = sf.read(path, dtype="float32", always_2d=True)
        waveform = to_codec_input(samples, rate, info)[None, None]
        codes[path.stem] = model.encode(waveform).audio_codes[0].T.tolist()
    return codes


@pytest.mark.parametrize("max_batch_seconds", [0.0, 2.0, 100.0])
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_codes_do_not_depend_on_batches_threads_or_shards(
    tmp_path: Path,
    tones: list[Path],
    one_by_one: dict[str, list],
    codec: Any,
    max_batch_seconds: float,
    num_threads: int,
    num_shards: int,
) -> None:
    clips = [clip_of(path) for path in tones]
    shards = [clips[i::num_shards] for i in range(num_shards)]
    rows: list[dict[str, Any]] = []
    for shard in shards:
        with Spool(tmp_path, np.int16) as spool:
            encoded = encode_clips(shard, codec[0], codec[1], max_batch_seconds, num_threads, spool)
            rows += [clip.row(spool, codec[1].num_codebooks) for clip in encoded]
    assert {row["clip_id"]: row["codes"].tolist() for row in rows} == one_by_one


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 300_001), (2, 64, 9_999), (3, 2048, 25), (1, 5, 1)])
def test_the_blocked_activation_matches_the_native_one_bit_for_bit(
    shape: Any, in_place: bool
) -> None:
    torch.manual_seed(0)
    native = Snake1d(shape[1]).requires_grad_(False)
    native.alpha += 0.5 * torch.randn(native.alpha.shape)
    x = 3 * torch.randn(shape)
    expected, before = native(x), x.clone()
    assert torch.equal(BlockedSnake(native, in_place)(x), expected)
    assert torch.equal(x, expected if in_place else before)


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_the_lean_residual_unit_matches_the_native_one_and_keeps_its_input(
    dilation: int,
) -> None:
    torch.manual_seed(0)
    native = DacResidualUnit(16, dilation).requires_grad_(False)
    x = torch.randn(2, 16, 1_000)
    before = x.clone()
    assert torch.equal(LeanResidualUnit(native)(x), native(x))
    assert torch.equal(x, before)


def test_threads_and_batches_do_not_change_the_bytes_of_the_table(
    tmp_path: Path, tones: list[Path], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_audio, "CLIPS_PER_GROUP", 3)
    tables = []
    num_torch_threads = torch.get_num_threads()
    for num_threads, settings in [(1, {}), (2, {"max_batch_seconds": 30.0})]:
        config, shard = write_inputs(tones, tmp_path, tiny_base, **settings)
        tokenize_audio.run(config, shard, tmp_path / "codes.parquet", num_threads)
        tables.append((tmp_path / "codes.parquet").read_bytes())
    torch.set_num_threads(num_torch_threads)
    assert tables[0] == tables[1]
    groups = pq.ParquetFile(tmp_path / "codes.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert (sum(sizes), set(sizes[:-1])) == (len(tones), {3})
    assert pq.read_table(tmp_path / "codes.parquet")["clip_id"].to_pylist() == sorted(
        path.stem for path in tones
    )


def test_decoding_stays_within_the_look_ahead(tones: list[Path], codec: Any) -> None:
    one_second = clip_of(tones[1])
    clips = iter([one_second] * 10)
    decoded = decode_ahead(clips, codec[1], look_ahead_seconds=3.0, num_threads=2)
    next(decoded)
    assert len(list(clips)) == 10 - 4  # one is ours, two wait, one is next


@pytest.mark.slow
def test_a_job_killed_while_writing_leaves_no_table_and_a_rerun_is_identical(
    tmp_path: Path, tones: list[Path], tiny_base: Path
) -> None:
    config, shard = write_inputs(tones, tmp_path, tiny_base)
    codes, uninterrupted = tmp_path / "codes" / "shard-00000.parquet", tmp_path / "whole.parquet"
    # All bytes are written when the job is killed, and the table has no name yet.
    program = (
        "import os, signal; from pathlib import Path; from higgs_pipe import tokenize_audio\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"tokenize_audio.run(Path({str(config)!r}), Path({str(shard)!r}), Path({str(codes)!r}))"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(codes.parent.glob("*.parquet")) == []
    for path in (codes, uninterrupted):
        tokenize_audio.run(config, shard, path)
    assert codes.read_bytes() == uninterrupted.read_bytes()


def test_each_job_takes_a_free_gpu_while_there_is_one(tmp_path: Path) -> None:
    def take(jobs: ExitStack) -> int:
        return jobs.enter_context(claim_least_used(["gpu-a", "gpu-b", "gpu-c"], tmp_path))

    with ExitStack() as first, ExitStack() as others:
        assert [take(first), take(others), take(others)] == [0, 1, 2]
        assert [take(others), take(others)] == [0, 1]  # five jobs on three GPUs
        first.close()
        assert take(others) == 0


def test_a_gpu_is_free_again_after_its_job_is_killed(tmp_path: Path) -> None:
    program = (
        "import fcntl, os, sys, time; lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); print('taken', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "gpu.0.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        with claim_least_used(["gpu", "other"], tmp_path) as index:
            assert index == 1
        job.kill()
        job.wait()
    with claim_least_used(["gpu", "other"], tmp_path) as index:
        assert index == 0


def test_on_a_cpu_the_codec_runs_in_float32_and_the_table_records_it(
    tmp_path: Path, tones: list[Path], tiny_base: Path, one_by_one: dict[str, list]
) -> None:
    rows = encode_paths(tones[:2], tmp_path, tiny_base, dtype="bfloat16", device="cpu")
    assert {clip: row["codes"] for clip, row in rows.items()} == {
        clip: one_by_one[clip] for clip in ("0", "1")
    }
    assert read_codec_info(tmp_path / "codes.parquet").dtype == "float32"


def test_shards_encoded_in_different_dtypes_are_not_packed_together(
    tmp_path: Path, codec: Any
) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, dtype in zip(paths, ["float32", "bfloat16"], strict=True):
        metadata = replace(codec[1], dtype=dtype).as_metadata()
        write_table(path, codes_spec(8), [], metadata)
    with pytest.raises(UserError, match=r"b.parquet .*bfloat16.*float32"):
        CodesStore(paths, pa.array([]), tmp_path)


def test_codes_without_a_recorded_dtype_are_refused(tmp_path: Path, codec: Any) -> None:
    metadata = codec[1].as_metadata()
    del metadata["codec_info"]["dtype"]
    write_table(tmp_path / "old.parquet", codes_spec(8), [], metadata)
    with pytest.raises(UserError, match=r"old.parquet: .*--forcerun tokenize_shard"):
        read_codec_info(tmp_path / "old.parquet")


def test_codes_of_whole_frames_match_the_native_processor(
    tmp_path: Path, tiny_base: Path, codec: Any
) -> None:
    model, info = codec
    processor = AutoProcessor.from_pretrained(tiny_base)
    waveform = np.random.default_rng(0).normal(0, 0.1, 960 * 31).astype(np.float32)
    inputs = processor.feature_extractor(waveform, sampling_rate=24_000, return_tensors="pt")
    native = processor.audio_tokenizer.encode(inputs["input_values"]).audio_codes[0].T
    ours = encode(model, to_codec_input(waveform[:, None], 24_000, info)[None], info)[0]
    assert ours.tolist() == native.tolist()


@pytest.mark.parametrize("rate_hz", [16_001, 44_101])
def test_a_clip_at_an_odd_sample_rate_gives_nearly_the_same_codes(
    tmp_path: Path, tiny_base: Path, rate_hz: int
) -> None:
    paths = [tone(tmp_path / "odd.wav", 2.0, 220, rate_hz), tone(tmp_path / "even.wav", 2.0, 220)]
    rows = encode_paths(paths, tmp_path, tiny_base)
    odd, even = (np.array(rows[name]["codes"]) for name in ("odd", "even"))
    assert odd.shape == even.shape == (50, 8)
    assert (odd[2:-2, 0] == even[2:-2, 0]).mean() > 0.8


def test_codes_depend_on_the_audio(tmp_path: Path, tiny_base: Path) -> None:
    paths = [tone(tmp_path / "low.wav", 1.0, 110), tone(tmp_path / "high.wav", 1.0, 3000)]
    rows = encode_paths(paths, tmp_path, tiny_base)
    assert rows["low"]["codes"] != rows["high"]["codes"]
    assert len({code for frame in rows["low"]["codes"] for code in frame}) > 20


@pytest.mark.parametrize(("num_samples", "num_frames"), [(960, 1), (961, 2), (1079, 2), (1920, 2)])
def test_audio_is_padded_at_its_end_to_whole_frames(
    codec: Any, num_samples: int, num_frames: int
) -> None:
    padded = to_codec_input(np.ones((num_samples, 1), np.float32), 24_000, codec[1])
    assert len(padded) == num_frames * 960
    assert padded[:num_samples].eq(1).all()
    assert padded[num_samples:].eq(0).all()


def test_stereo_becomes_mono_at_the_sample_rate_of_the_codec(codec: Any) -> None:
    time = np.arange(44_100) / 44_100
    tone_left = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    mono = to_codec_input(np.stack([tone_left, -tone_left], axis=1), 44_100, codec[1])
    assert len(mono) == 25 * 960
    assert mono.abs().max() < 1e-6


def test_the_table_is_stamped_with_its_codec(corpus: PackedCorpus, tiny_base: Path) -> None:
    info = read_codec_info(corpus.codes_dir / "shard-00000.parquet")
    config = json.loads((tiny_base / "audio_tokenizer/config.json").read_text())
    assert (info.num_codebooks, info.codebook_size) == (8, config["codebook_size"])
    assert (info.frame_rate_hz, info.sample_rate_hz, info.hop_length) == (25.0, 24_000, 960)
    assert len(info.fingerprint) == 64


def test_a_segment_has_the_codes_of_only_its_own_frames(tmp_path: Path, tiny_base: Path) -> None:
    whole = tone(tmp_path / "whole.wav", seconds=2.0)
    samples, rate_hz = sf.read(whole)
    sf.write(tmp_path / "cut.wav", samples[rate_hz // 2 : rate_hz * 13 // 10], rate_hz)
    part = clip_of(whole) | {"start_seconds": 0.5, "end_seconds": 1.3, "duration_seconds": 0.8}
    clips = [part | {"clip_id": "part"}, clip_of(tmp_path / "cut.wav") | {"clip_id": "cut"}]
    config, shard = write_inputs([], tmp_path, tiny_base)
    write_table(shard, SHARD_CLIPS, clips)
    tokenize_audio.run(config, shard, tmp_path / "codes.parquet")
    cut, of_part = read_table(tmp_path / "codes.parquet", codes_spec(8)).to_pylist()
    assert of_part["num_frames"] == 20
    assert of_part["codes"] == cut["codes"]


def test_an_empty_shard_gives_an_empty_table(tmp_path: Path, tiny_base: Path) -> None:
    assert encode_paths([], tmp_path, tiny_base) == {}
    assert pq.read_metadata(tmp_path / "codes.parquet").num_rows == 0


def test_a_file_changed_since_validation_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    """The longest is decoded first, and the rows are sorted by their ids."""
    path, longer = tone(tmp_path / "a.wav", 1.0), tone(tmp_path / "b.wav", 1.1)
    encode_paths([path, longer], tmp_path, tiny_base)
    encoded = read_table(tmp_path / "codes.parquet", codes_spec(8), ["clip_id"])
    assert encoded["clip_id"].to_pylist() == ["a", "b"]
    tone(path, 1.2)
    config = tmp_path / "tokenize.json"
    with pytest.raises(UserError, match=r"'a': .*a.wav .*--forcerun measure_shard"):
        tokenize_audio.run(config, tmp_path / "shard-00000.parquet", tmp_path / "again.parquet")
    assert not (tmp_path / "again.parquet").exists()


def test_a_file_that_became_unreadable_since_validation_is_refused(
    tmp_path: Path, tiny_base: Path
) -> None:
    path = tone(tmp_path / "a.wav", 1.0)
    encode_paths([path], tmp_path, tiny_base)
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"'a': .*a.wav .*readable.* --forcerun measure_shard"):
        tokenize_audio.run(
            tmp_path / "tokenize.json", tmp_path / "shard-00000.parquet", tmp_path / "again.parquet"
        )


def test_a_codec_that_changed_since_it_was_pinned_is_refused(
    tmp_path: Path, tiny_base: Path, tones: list[Path]
) -> None:
    config, shard = write_inputs(tones[:1], tmp_path, tiny_base)
    pinned = PinnedModel.of(Pretrained("codec", str(tiny_base / miniature.AUDIO_TOKENIZER)))
    pinned.write(tmp_path / "codec.json")
    tokenize_audio.run(config, shard, tmp_path / "a.parquet", pinned_codec=tmp_path / "codec.json")
    pinned.model_copy(update={"fingerprint": "0"}).write(tmp_path / "codec.json")
    with pytest.raises(UserError, match=r"codec '.*--forcerun pin_model"):
        tokenize_audio.run(
            config, shard, tmp_path / "b.parquet", pinned_codec=tmp_path / "codec.json"
        )
    assert not (tmp_path / "b.parquet").exists()


def test_a_codec_with_missing_weights_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    source = tiny_base / miniature.AUDIO_TOKENIZER
    weights = load_file(source / "model.safetensors")
    del weights["fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(UserError, match=r"1 weights .* fc.weight"):
        load_codec(Pretrained("codec", str(tmp_path)), CPU)


def test_a_missing_codec_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"codec '.*nowhere'"):
        load_codec(Pretrained("codec", str(tmp_path / "nowhere")), CPU)


def test_loading_the_codec_turns_off_tf32_in_cudnn(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default
    load_codec(Pretrained("codec", str(tiny_base / miniature.AUDIO_TOKENIZER)), CPU)
    assert torch.backends.cudnn.allow_tf32 is False
