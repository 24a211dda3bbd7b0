"""The training loop: exact on any number of processes, and loud when something is wrong."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from conftest import PackedCorpus, write_stage_config
from reference import dual_loss, row_losses
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import higgs_pipe.train
from higgs_pipe.config import LoraSettings
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.held_out import held_out_sums, total_of
from higgs_pipe.higgs.lora import add_lora, load_adapter
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.train import combined_seed, epoch_steps

ROOT = Path(__file__).parents[1]
# max_grad_norm keeps clipping, which would hide a wrong scale, out of the comparison.
EXACT = {"device": "cpu", "dtype": "float64", "max_grad_norm": 1e9, "lora": {"dropout": 0.0}}


def launch(num_processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A real ``accelerate launch``, as the rule does it."""
    options = ["--num_processes", str(num_processes), "--num_machines", "1", "--quiet"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if num_processes > 1:
        options += ["--multi_gpu", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT
    )


def train(
    corpus: PackedCorpus,
    output: Path,
    train_rows: Path | None = None,
    base: Path | None = None,
    **settings: object,
) -> list[dict[str, float]]:
    """Train in this process; returns the lines of metrics.jsonl."""
    config = write_stage_config(
        output / "train.json",
        base_model=str(base or corpus.base),
        train={"device": "cpu", **settings},
    )
    higgs_pipe.train.run(config, train_rows or corpus.train_rows, corpus.eval_rows, output)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def reference_gradients(corpus: PackedCorpus, rows: list[int]) -> dict[str, torch.Tensor]:
    """Gradients of a step by plain loops over single samples on the native model."""
    table = PackedRows(corpus.train_rows)
    lora = LoraSettings(dropout=0.0)
    model = add_lora(load_base(str(corpus.base), None, torch.float64), lora, seed=0)
    found = [row_losses(model.get_base_model(), table[row]) for row in rows]
    text = sum(f[0] for f in found)
    audio = [sum(f[2][k] for f in found) for k in range(8)]
    num_text, num_audio = sum(f[1] for f in found), [sum(f[3][k] for f in found) for k in range(8)]
    dual_loss(text, num_text, audio, num_audio).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_gradients_of_a_step_are_the_plain_ones_on_any_number_of_processes(
    corpus: PackedCorpus, tmp_path: Path, num_processes: int
):
    config = write_stage_config(tmp_path / "train.json", base_model=str(corpus.base), train=EXACT)
    cases = {
        "uneven": {"rows": [3, 0, 2, 1, 4], "settings": {}},
        "micro_batches_of_two": {
            "rows": [3, 0, 2, 1, 4],
            "settings": {"rows_per_micro_batch": 2},
        },
        "fewer_rows_than_processes": {"rows": [1], "settings": {}},
    }
    script = str(ROOT / "tests/launched/dump_gradients.py")
    paths = [str(p) for p in (config, corpus.train_rows, corpus.eval_rows, tmp_path)]
    finished = launch(num_processes, script, *paths, json.dumps(cases))
    assert finished.returncode == 0, finished.stderr

    for name, case in cases.items():
        expected = reference_gradients(corpus, case["rows"])
        found = torch.load(tmp_path / f"{name}.pt")
        found = {key.removeprefix("model."): gradient for key, gradient in found.items()}
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            scale = max(float(g.norm()) for g in expected.values())
            assert (found[key] - gradient).norm() <= 1e-6 * scale, f"{name}: {key}"


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(corpus: PackedCorpus, tmp_path: Path):
    settings = {"device": "cpu", "dtype": "float64", "rows_per_step": 3, "num_epochs": 2}
    config = write_stage_config(
        tmp_path / "train.json", base_model=str(corpus.base), train=settings
    )
    adapters = []
    for num_processes in (1, 2):
        output = tmp_path / f"on-{num_processes}"
        output.mkdir()
        module = ["-m", "higgs_pipe.train", "--config", str(config), "--output-dir", str(output)]
        rows = ["--train-rows", str(corpus.train_rows), "--eval-rows", str(corpus.eval_rows)]
        finished = launch(num_processes, *module, *rows)
        assert finished.returncode == 0, finished.stderr
        assert f"on {num_processes} x cpu" in finished.stderr
        adapters.append(load_file(output / "adapter/adapter_model.safetensors"))
    for key, tensor in adapters[0].items():
        assert torch.allclose(tensor, adapters[1][key], rtol=1e-6, atol=1e-9), key


def test_training_lowers_every_loss_and_keeps_the_best_adapter(corpus, tmp_path):
    metrics = train(
        corpus, tmp_path, num_epochs=15, rows_per_step=3, learning_rate=5e-3, eval_steps=10
    )
    held_out = [line for line in metrics if "eval_loss" in line]
    steps = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in held_out] == [0, 10, 20, 30]
    for name in ("loss", "text_loss", "stop_loss"):
        assert steps[-1][name] < steps[0][name]
        assert held_out[-1][f"eval_{name}"] < held_out[0][f"eval_{name}"]
    assert {"learning_rate", "grad_norm", "epoch", "seconds"} <= steps[0].keys()
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir() if p.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_adapter_is_the_best_one_and_not_the_last(corpus, tmp_path):
    """A learning rate that rises until it harms."""
    harmful = {"learning_rate": 0.1, "warmup_fraction": 0.5, "num_epochs": 8}
    metrics = train(corpus, tmp_path, rows_per_step=3, eval_steps=2, **harmful)
    held_out = [line["eval_loss"] for line in metrics if "eval_loss" in line and line["step"]]
    assert min(held_out) < held_out[-1] - 0.02
    base = load_base(str(corpus.base), None, torch.float32)
    model = DualLossModel(load_adapter(base, tmp_path / "adapter"))
    sums = held_out_sums(model, PackedRows(corpus.eval_rows), Accelerator(cpu=True))
    assert named_losses(total_of(sums))["loss"] == pytest.approx(min(held_out), rel=1e-5)


def test_the_first_training_loss_is_the_bases(corpus, tmp_path):
    """LoRA starts as the identity: step 1 sees the loss of the base on its rows."""
    metrics = train(corpus, tmp_path, num_epochs=1, rows_per_step=5, dtype="float64")
    base = load_base(str(corpus.base), None, torch.float64)
    table = PackedRows(corpus.train_rows)
    rows = epoch_steps(len(table), 5, seed=0, epoch=0)[0]
    found = [row_losses(base, table[row]) for row in rows]
    audio = [sum(f[2][k] for f in found) for k in range(8)]
    num_audio = [sum(f[3][k] for f in found) for k in range(8)]
    expected = dual_loss(sum(f[0] for f in found), sum(f[1] for f in found), audio, num_audio)
    assert metrics[1]["step"] == 1
    assert metrics[1]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_an_epoch_takes_every_row_once_in_an_order_that_the_seed_decides():
    steps = epoch_steps(10, 4, seed=0, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(row for step in steps for row in step) == list(range(10))
    assert steps == epoch_steps(10, 4, seed=0, epoch=0)
    assert steps != epoch_steps(10, 4, seed=0, epoch=1)
    assert steps != epoch_steps(10, 4, seed=1, epoch=0)


def test_seeds_differ_where_their_parts_do():
    seeds = {combined_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert combined_seed(1, 2) == combined_seed(1, 2) != combined_seed(2, 1)


def test_predictions_are_logged_beside_their_labels(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        logging.getLogger("higgs_pipe").propagate = True
        train(corpus, tmp_path, num_epochs=1, rows_per_step=16)
    row = PackedRows(corpus.train_rows)[epoch_steps(5, 16, seed=0, epoch=0)[0][0]]
    text = caplog.text
    num_frames = int((row.audio_labels != -100).any(axis=1).sum())
    num_text = 3 * len(row.sample_ids)
    assert f"text logits ({num_text}, 320), labels ({num_text},)" in text
    assert f"audio logits ({num_frames}, 8, 1026), labels ({num_frames}, 8)" in text
    assert all(f"  {sample_id}\n" in text for sample_id in row.sample_ids[:2])
    assert "label     [269, 268, 265] '<|audio_out_bos|><|audio_eos|><|eot_id|>'" in text
    codes = row.audio_labels[:, 0][row.audio_labels[:, 0] != -100].tolist()
    first_sample = codes[: codes.index(1025) + 1]
    assert f"(cb 0) label     {first_sample[:5] + first_sample[-5:]}" in text


def test_a_failure_to_show_predictions_warns_once_and_training_goes_on(
    corpus, tmp_path, caplog, monkeypatch
):
    def broken(*_: object) -> list[str]:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(higgs_pipe.train, "describe_predictions", broken)
    with caplog.at_level(logging.WARNING, logger="higgs_pipe"):
        logging.getLogger("higgs_pipe").propagate = True
        metrics = train(corpus, tmp_path, num_epochs=2, rows_per_step=2, log_steps=1)
    assert caplog.text.count("predictions cannot be shown") == 1
    assert metrics[-1]["step"] == 6


def changed_base(base: Path, output: Path, change: dict[str, float]) -> Path:
    """A copy of the base with some weights multiplied."""
    shutil.copytree(base, output)
    weights = load_file(output / "model.safetensors")
    for name, factor in change.items():
        weights[name] = weights[name] * factor
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    return output


def test_a_loss_that_is_not_finite_stops_with_what_to_check(corpus, tmp_path):
    broken = changed_base(corpus.base, tmp_path / "base", {"audio_lm_head.weight": float("inf")})
    with pytest.raises(UserError, match=r"held-out loss is nan\. Lower train\.learning_rate"):
        train(corpus, tmp_path / "out", base=broken)


def test_a_training_loss_that_is_not_finite_names_the_steps_clips(corpus, tmp_path):
    """Only clip-08 says an 8; the held-out clips do not."""
    shutil.copytree(corpus.base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    eight = AutoTokenizer.from_pretrained(corpus.base).convert_tokens_to_ids("8")
    weights["model.embed_tokens.weight"][eight] = float("nan")
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"step 1: the loss is nan\. .*clips: .*clip-08"):
        train(corpus, tmp_path / "out", base=tmp_path / "base")


def test_no_gradient_in_any_lora_tensor_stops_after_the_first_step(corpus, tmp_path):
    heads = {"audio_lm_head.weight": 0.0, "text_lm_head.weight": 0.0}
    blind = changed_base(corpus.base, tmp_path / "base", heads)
    with pytest.raises(UserError, match="gradient of every LoRA tensor is zero"):
        train(corpus, tmp_path / "out", base=blind)


@pytest.mark.parametrize(
    ("column", "missing"), [("labels", "text"), ("audio_labels", "audio codebook 0, ")]
)
def test_a_step_without_labels_of_a_kind_stops_with_what_to_check(
    corpus, tmp_path, column, missing
):
    rows = without_labels(corpus.train_rows, tmp_path / "train.parquet", column)
    with pytest.raises(UserError, match=f"step 1: no label of {missing}.* snakemake"):
        train(corpus, tmp_path / "out", train_rows=rows)


def without_labels(source: Path, output: Path, column: str) -> Path:
    """The packed rows with one kind of label taken out."""
    table = pq.read_table(source)
    index = table.column_names.index(column)

    def ignored(value: object) -> object:
        return [ignored(v) for v in value] if isinstance(value, list) else -100

    values = [ignored(value) for value in table[column].to_pylist()]
    field = table.schema.field(index)
    changed = table.set_column(index, field, pa.array(values, type=field.type))
    with pq.ParquetWriter(output, table.schema) as writer:
        writer.write_table(changed.cast(table.schema))
    return output


def test_cuda_without_a_gpu_is_a_sentence(corpus, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="device is 'cuda' but PyTorch sees no GPU"):
        train(corpus, tmp_path, device="cuda")
