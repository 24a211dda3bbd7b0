"""Higgs TTS 3 through the real stages: pack, pre-flight, train, resume, processes, evaluate."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, write_stage_config
from launched.train_cases import run_cases
from peft import PeftModel
from reference_v3 import (
    EOC,
    IGNORED,
    PLACEHOLDER,
    audio_loss,
    codebook_losses,
    delayed_rows,
    row_labels,
)
from safetensors.torch import load_file
from trainings import PackedCorpus, end_in_step, evaluate_in, launch, train

from higgs_pipe import estimate
from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.generation import recorded_samples
from higgs_pipe.higgs.loss import objective
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.higgs.v3.native import HiggsV3Config, HiggsV3Model
from higgs_pipe.training.plan import micro_step_seconds
from higgs_pipe.training.preflight import model_checks, offset_checks

LEARNING: dict[str, Any] = {
    "rows_per_step": 2,
    "num_epochs": 20,
    "learning_rate": 1e-2,
    "log_steps": 1,
}
EXACT: dict[str, Any] = {"dtype": "float64", "max_grad_norm": 1e9, "lora": {"dropout": 0.0}}


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(v3_corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("v3-trained")
    train(v3_corpus, output, **LEARNING)
    return output


def test_packed_samples_match_plain_loops(v3_corpus: PackedCorpus) -> None:
    codes: dict[str, list[list[int]]] = {}
    for shard in v3_corpus.codes_dir.glob("*.parquet"):
        codes |= {row["clip_id"]: row["codes"] for row in pq.read_table(shard).to_pylist()}
    table, found = PackedRows(v3_corpus.train_rows), []
    for row in (table[i] for i in range(len(table))):
        frames, labels = row.audio_input_ids.tolist(), row.audio_labels.tolist()
        start = 0
        for name, length in zip(row.sample_ids, row.sample_lengths.tolist(), strict=True):
            ids = row.input_ids[start : start + length].tolist()
            target, num_frames = delayed_rows(codes[name]), ids.count(PLACEHOLDER)
            num_heard = num_frames - len(target)
            assert frames[num_heard:num_frames] == target
            assert labels[num_heard:num_frames] == row_labels(codes[name])
            assert labels[:num_heard] == [[IGNORED] * 8] * num_heard
            assert num_heard == 0 or frames[:num_heard] in map(delayed_rows, codes.values())
            frames, labels, start = frames[num_frames:], labels[num_frames:], start + length
            found.append(num_heard > 0)
        assert (row.labels == IGNORED).all()
    assert len(found) == 11
    assert 0 < sum(found) < 11


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_codes_of_target_and_references_are_recovered_from_samples(
    corpus: PackedCorpus, v3_corpus: PackedCorpus, family: str
) -> None:
    packed = {"v2": corpus, "v3": v3_corpus}[family]
    shape = renderer_of(Pretrained("base_model", str(packed.base))).shape
    rows = [row for p in packed.codes_dir.glob("*.parquet") for row in pq.read_table(p).to_pylist()]
    codes = {row["clip_id"]: row["codes"] for row in rows}
    table, num_references = PackedRows(packed.train_rows), 0
    for sample in (s for i in range(len(table)) for s in recorded_samples(table[i], shape)):
        assert sample.codes.tolist() == codes[sample.sample_id]
        assert all(reference.tolist() in codes.values() for reference in sample.references)
        num_references += len(sample.references)
    assert num_references > 1


def test_training_lowers_the_audio_loss_and_reports_no_text_loss(
    v3_corpus: PackedCorpus, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        folder = evaluate_in(tmp_path, v3_corpus, trained / "adapter", num_prompts=0)
    metrics = json.loads((folder / "metrics.json").read_text())
    found, base = metrics["adapter"], metrics["base"]
    assert found["eval_audio_loss"] < base["eval_audio_loss"] - 0.05
    assert found["eval_stop_loss"] < base["eval_stop_loss"] - 1
    assert found["eval_loss"] == found["eval_audio_loss"]
    assert len(found) == 3 + 2 + 8 + 8
    verdict = json.loads((folder / "verdict.json").read_text())
    assert "text_loss" not in {measure["name"] for measure in verdict["measures"]}
    clips = pq.read_table(folder / "clips.parquet").to_pylist()
    textual = ("adapter_text_loss", "base_text_loss", "num_text_labels")
    assert [[clip[name] for name in textual] for clip in clips] == [[None] * 3] * 3
    keys = {key for part in (metrics, *lines_of(trained)) for key in flat(part)}
    assert not [key for key in keys if "text" in key]
    assert not [record for record in caplog.messages if "  text " in record]


def flat(part: Any) -> list[str]:
    """All keys of nested objects."""
    if not isinstance(part, Mapping):
        return []
    return [*part, *(key for value in part.values() for key in flat(value))]


def test_the_held_out_loss_matches_plain_loops(v3_corpus: PackedCorpus, trained: Path) -> None:
    base = load_base(Pretrained("base_model", str(v3_corpus.base)), torch.float64)
    with torch.no_grad():
        expected = audio_loss(*codebook_losses(base, PackedRows(v3_corpus.eval_rows)[0]))
    [first] = [line for line in lines_of(trained) if line["step"] == 0 and "eval_loss" in line]
    assert first["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_plain_peft_loads_the_adapter(v3_corpus: PackedCorpus, trained: Path) -> None:
    plain = HiggsV3Model.from_pretrained(v3_corpus.base)
    row = PackedRows(v3_corpus.eval_rows)[0]
    with torch.no_grad():
        before = codebook_losses(plain, row)
        adapted = PeftModel.from_pretrained(plain, trained / "adapter")
        after = audio_loss(*codebook_losses(adapted, row))
    kept = next(line["kept_step"] for line in lines_of(trained) if "kept_step" in line)
    losses = {line["step"]: line["eval_loss"] for line in lines_of(trained) if "eval_loss" in line}
    assert after.item() == pytest.approx(losses[kept], rel=1e-5)
    assert after.item() < audio_loss(*before).item()


@pytest.mark.parametrize("max_tokens", [512, 2048])
def test_the_adapter_does_not_depend_on_packing(
    v3_corpus: PackedCorpus, tmp_path: Path, max_tokens: int
) -> None:
    settings: dict[str, Any] = EXACT | {"rows_per_step": 100, "max_steps": 3, "learning_rate": 5e-3}
    train(v3_corpus, tmp_path / "one", **settings, rows_per_micro_batch=1)
    v3_corpus.pack(tmp_path / "packed", max_tokens=max_tokens)
    rows = tmp_path / "packed/train.parquet"
    train(v3_corpus, tmp_path / "other", rows, **settings, gradient_checkpointing=True)
    assert_close(adapter(tmp_path / "other"), adapter(tmp_path / "one"))


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(tensor.norm()) for tensor in expected.values())
    for key, tensor in expected.items():
        assert (found[key] - tensor).norm() <= 1e-5 * scale, key


@pytest.mark.slow
@pytest.mark.usefixtures("processes_as_forks")
def test_two_processes_give_the_same_adapter_as_one(
    v3_corpus: PackedCorpus, tmp_path: Path
) -> None:
    def case(name: str) -> dict[str, str]:
        settings: dict[str, Any] = EXACT | {
            "device": "cpu",
            "tracker": "none",
            "rows_per_step": 3,
            "max_steps": 3,
        }
        config = write_stage_config(
            tmp_path / name / "train.json", base_model=str(v3_corpus.base), train=settings
        )
        rows = {"train_rows": str(v3_corpus.train_rows), "eval_rows": str(v3_corpus.eval_rows)}
        return {"config": str(config), "output_dir": str(tmp_path / name), **rows}

    run_cases([case("one")])
    (tmp_path / "cases.json").write_text(json.dumps([case("two")]))
    script = ROOT / "tests/launched/train_cases.py"
    finished = launch(2, str(script), str(tmp_path / "cases.json"))
    assert finished.returncode == 0, finished.stderr
    assert_close(adapter(tmp_path / "two"), adapter(tmp_path / "one"))


def test_resumed_training_gives_the_adapter_of_an_uninterrupted_run(
    v3_corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"rows_per_step": 2, "max_steps": 6, "lora": {"dropout": 0.1}}
    train(v3_corpus, tmp_path / "whole", **settings)
    steps = end_in_step(monkeypatch, 3)
    with pytest.raises(SystemExit, match="143"):
        train(v3_corpus, tmp_path / "resumed", **settings)
    train(v3_corpus, tmp_path / "resumed", **settings)
    assert len(steps) == 6
    found, expected = (adapter(tmp_path / name) for name in ("resumed", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_rows_of_the_other_family_are_refused(
    corpus: PackedCorpus, v3_corpus: PackedCorpus, tmp_path: Path
) -> None:
    for rows, base, family in (
        (corpus, v3_corpus, "Higgs Audio v2"),
        (v3_corpus, corpus, "Higgs TTS 3"),
    ):
        with pytest.raises(UserError, match=f"packed for .*{family}.*--forcerun pack_rows"):
            train(replace(rows, base=base.base), tmp_path)


def test_a_folder_that_became_another_family_is_noticed(
    v3_corpus: PackedCorpus, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(v3_corpus.base, tmp_path / "base")
    of_copy = replace(v3_corpus, base=base)
    of_copy.pack(tmp_path / "packed", max_tokens=512)
    shutil.copy(tiny_base / "config.json", base)
    with pytest.raises(UserError, match=r"packed for Higgs TTS 3, .* is now Higgs Audio v2"):
        train(of_copy, tmp_path, tmp_path / "packed/train.parquet")


def test_a_text_loss_weight_is_refused(v3_corpus: PackedCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.loss_weights\.text is 0\.5.*no text loss"):
        train(v3_corpus, tmp_path, loss_weights={"text": 0.5})


def test_the_preflight_passes_every_check_that_random_weights_allow(trained: Path) -> None:
    checks = json.loads((trained / "preflight.json").read_text())["checks"]
    status = {check["name"]: check["status"] for check in checks}
    unknown = {"audio offset", "shuffled text"}
    assert {name for name, found in status.items() if found == "no evidence"} == unknown
    assert {found for name, found in status.items() if name not in unknown} == {"passed"}
    [labels] = [check["found"] for check in checks if check["name"] == "labels"]
    num_eos = sum(row.count(EOC) for row in row_labels([[0] * 8] * 9))
    assert f" {num_eos} EOS labels per target" in labels
    assert "text" not in labels


@pytest.fixture(scope="module")
def knowing(v3_corpus: PackedCorpus) -> DualLossModel:
    """A base that knows the held-out clips: all of its weights were fitted to them."""
    base = load_base(Pretrained("base_model", str(v3_corpus.base)), torch.float32)
    fitted = DualLossModel(base.requires_grad_(True))
    optimizer = torch.optim.Adam(fitted.parameters(), lr=3e-3)
    batch = collate([PackedRows(v3_corpus.eval_rows)[0]], fitted.shape)
    for _ in range(40):
        total = fitted(batch)[0].total()
        objective(total.loss, total.count, has_text=False).backward()
        optimizer.step()
        optimizer.zero_grad()
    return fitted.eval()


@pytest.mark.parametrize(("shift", "status"), [(0, "passed"), (1, "failed"), (-1, "failed")])
def test_a_base_that_knows_the_clips_reveals_labels_shifted_by_a_frame(
    v3_corpus: PackedCorpus, knowing: DualLossModel, shift: int, status: str
) -> None:
    row = PackedRows(v3_corpus.eval_rows)[0]
    labels = np.roll(row.audio_labels, shift, axis=0)
    batch = collate([replace(row, audio_labels=labels)], knowing.shape)
    hidden = model_checks.seen_in_forward(knowing, batch).hidden
    losses = offset_checks.audio_losses_by_offset(knowing.native, hidden, batch)
    repeated = offset_checks.repeated_codes(batch)
    assert offset_checks.check_offsets(losses, repeated, 1026).status == status


def test_an_alarm_stops_a_run_that_learns_nothing_after_naming_the_licence(
    v3_corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {
        "rows_per_step": 1,
        "max_steps": 60,
        "learning_rate": 1e-30,
        "log_steps": 1,
    }
    with pytest.raises(UserError, match=r"adapter_unchanged|stop_loss_not_falling"):
        train(v3_corpus, tmp_path, **settings, stop_on_alarm=True)
    assert "licensed for research and non-commercial use" in caplog.messages[0]


def test_the_estimate_is_close_to_what_pack_makes(v3_corpus: PackedCorpus, tmp_path: Path) -> None:
    codec = v3_corpus.directory / "no-codec"
    sections = {"codec": str(codec), "pack": {"max_tokens": 512}}
    config = write_stage_config(tmp_path / "c.json", base_model=str(v3_corpus.base), **sections)
    data = v3_corpus.directory / "data"
    estimate.run(config, data / "validation.json", v3_corpus.clips, tmp_path / "out.json")
    [base] = json.loads((tmp_path / "out.json").read_text())["bases"]
    packed = json.loads((v3_corpus.directory / "packed/packing.json").read_text())["train"]
    found = base["train"]
    tokens = found["num_audio_frames"] + found["num_text_tokens"]
    assert tokens == pytest.approx(packed["num_tokens"], rel=0.1)
    assert base["experiments"]["default"]["parameters"]["base"] > 0


def test_the_published_model_shape_has_the_published_size(v3_base: Path) -> None:
    config = json.loads((v3_base / "config.json").read_text())
    config["text_config"] |= {
        **{"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        "vocab_size": 151_936,
    }
    native = HiggsV3Config(**config)
    parameters = count_parameters(native, TrainConfig())
    # The index has 399 tensors of the model; with the codec's 201.4 million and both heads the
    # checkpoint has 4,654,850,537 values.
    heads = (151_936 + 8 * 1026) * 2560
    assert parameters.base + heads == pytest.approx(4_654_850_537 - 201_400_553, abs=768)
    formula = memory_formula(native, TrainConfig(), parameters.trainable, is_compiled=True)
    assert formula.weights == 2 * parameters.base
    assert formula.num_layers == 36
    # Two norms and their outputs, queries and attention, keys and values, both before their norms,
    # the FFN, LoRA.
    kept = 4 * 2560 + 2 * 4096 + 2 * 1024 + (4096 + 1024) + 4 * 9728 + 7 * 16
    assert formula.layer_kept == 0.58 * kept * 2
    # q and o of 4096, k and v of 1024, three matrices of the FFN; v2 has 3072, 1024 and 8192.
    products = 36 * 2560 * (2 * 4096 + 2 * 1024 + 3 * 9728)
    of_v2 = 28 * 3072 * (2 * 3072 + 2 * 1024 + 3 * 8192)
    assert formula.relative_work == pytest.approx(products / of_v2)
    plain = micro_step_seconds(formula, 16_384, 0, is_compiled=True)
    assert plain == pytest.approx(0.012 + 16_384 * 27.5e-6 * products / of_v2)
    assert micro_step_seconds(formula, 1, 36, is_compiled=True) == pytest.approx(0.28 * 36 / 28)
