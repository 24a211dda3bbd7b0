"""Checks meant for the published weights, run on a miniature."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from helpers import has_line_with, tone
from safetensors.torch import load_file, save_file

from higgs_pipe import check_v3
from higgs_pipe.check_v3 import (
    compare_codecs,
    compare_token_ids,
    offset_loss,
    without_evidence,
)
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.prompts import ModelPrompt
from higgs_pipe.higgs.v3.miniature import build_tokenizer
from higgs_pipe.training.preflight.data_checks import Check


@pytest.fixture
def codec(tiny_base: Path) -> Path:
    return tiny_base / "audio_tokenizer"


def test_each_check_logs_a_line_and_speech_is_written(
    v3_base: Path,
    codec: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random weights predict nothing and stop by chance: no evidence, and no failure."""
    recording = tone(tmp_path / "tone.wav", seconds=1.2)
    caplog.set_level("INFO", logger="higgs_pipe")
    monkeypatch.setattr(check_v3, "MAX_SECONDS", 1.0)
    check_v3.run(str(v3_base), str(codec), recording, "A tone.", tmp_path / "out.wav")
    for name in ("tensors", "codec", "token ids"):
        assert has_line_with(caplog.text, f"passed: {name}: ")
    assert has_line_with(caplog.text, "no evidence: loss by offset: ", "at 0", "at 1", "at 2")
    assert has_line_with(caplog.text, "no evidence: speech: ", "ran to the cap of 1 s")
    assert sf.info(tmp_path / "out.wav").samplerate == 24_000


def test_published_weights_must_pass_every_check(
    v3_base: Path, codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The miniature passed off as the published checkpoint: its special tokens have other ids."""
    recording = tone(tmp_path / "tone.wav", seconds=1.2)
    monkeypatch.setattr(check_v3, "PUBLISHED_NUM_TOKENS", len(build_tokenizer()))
    monkeypatch.setattr(check_v3, "MAX_SECONDS", 1.0)
    with pytest.raises(UserError, match="token ids, loss by offset, speech failed"):
        check_v3.run(str(v3_base), str(codec), recording, "A tone.", tmp_path / "out.wav")


def test_a_checkpoint_of_another_family_is_named(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a Higgs Audio v2 checkpoint"):
        check_v3.run(str(tiny_base), speech=tmp_path / "out.wav")


def test_another_codec_is_named_by_its_tensor(v3_base: Path, codec: Path, tmp_path: Path) -> None:
    other = shutil.copytree(codec, tmp_path / "codec")
    tensors = load_file(other / "model.safetensors")
    tensors["fc.weight"][0, 0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    bundle = Pretrained("base", str(v3_base))
    found = compare_codecs(bundle, Pretrained("codec", str(other)))
    assert found.status == "failed"
    assert "1 of " in found.found
    assert "fc.weight by " in found.found
    assert compare_codecs(bundle, Pretrained("codec", str(codec))).status == "passed"


def test_a_tensor_missing_from_the_bundle_is_named(
    v3_base: Path, codec: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(codec, tmp_path / "codec")
    tensors = load_file(other / "model.safetensors")
    tensors["fc.more"] = tensors["fc.weight"].clone()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = compare_codecs(Pretrained("base", str(v3_base)), Pretrained("codec", str(other)))
    assert found.status == "failed"
    assert found.found.startswith("1 of ")
    assert "fc.more" in found.found


def test_with_random_weights_a_failed_check_is_no_evidence_and_a_pass_stands() -> None:
    passed = Check("speech", "passed", "1.0 s")
    assert without_evidence(passed) == passed
    failed = without_evidence(Check("speech", "failed", "1.0 s"))
    assert failed.status == "no evidence"


def test_text_that_does_not_survive_a_tokenizer_round_trip_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = build_tokenizer()
    monkeypatch.setattr(tokenizer, "decode", lambda _: "The moon")
    found = compare_token_ids(tokenizer)
    assert found.status == "failed"
    assert "'The moon'" in found.found


def test_a_recording_other_than_the_demo_needs_a_transcript(
    v3_base: Path,
    codec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def compared(_: object, recording: Path, transcript: str) -> Check:
        heard.append(transcript)
        return Check("loss by offset", "passed", str(recording))

    monkeypatch.setattr(check_v3, "compare_offsets", compared)
    monkeypatch.setattr(check_v3, "MAX_SECONDS", 0.2)
    check_v3.run(str(v3_base), str(codec), speech=tmp_path / "out.wav")
    assert heard == [sentence_of_demo("ada-002")]
    with pytest.raises(UserError, match=r"tone\.wav: --transcript"):
        check_v3.run(str(v3_base), str(codec), tmp_path / "tone.wav", speech=tmp_path / "out.wav")


def sentence_of_demo(name: str) -> str:
    rows = map(json.loads, (check_v3.DEMO / "manifest.jsonl").read_text().splitlines())
    return next(str(row["text"]) for row in rows if Path(row["audio"]).stem == name)


def test_special_tokens_of_a_full_vocabulary_have_the_published_ids() -> None:
    tokenizer = build_tokenizer(full_vocab=True)
    assert compare_token_ids(tokenizer).status == "passed"
    assert len(tokenizer) == check_v3.PUBLISHED_NUM_TOKENS


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_the_loss_at_an_offset_matches_plain_loops(v3_base: Path, offset: int) -> None:
    model = load_base(Pretrained("base", str(v3_base)), torch.float64)
    codes = np.random.default_rng(0).integers(0, 1024, (9, 8)).astype(np.int16)
    prompt = ModelPrompt(np.array([5, 6, 7], np.int32), np.empty((0, 8), np.int16))
    rows = [[1024] * 8 for _ in range(16)]
    for k in range(8):
        for t in range(16):
            rows[t][k] = 1024 if t < k else int(codes[t - k, k]) if t < k + 9 else 1025
    ids = torch.tensor([[5, 6, 7, *[-100] * 16]])
    logits = model(ids, torch.tensor([rows]), use_cache=False)[0].log_softmax(-1)
    cells = [-logits[3 + k + t - offset, k, codes[t, k]].item() for k in range(8) for t in range(9)]
    assert offset_loss(model, prompt, codes, offset) == pytest.approx(np.mean(cells), rel=1e-5)
