"""The held-out loss: the plain loops' numbers, whatever the batch, packing and processes."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers import PackedCorpus, launch, write_stage_config
from reference import row_losses

from higgs_pipe import evaluate
from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.model import load_base

KEYS = {
    "eval_loss",
    "eval_text_loss",
    "eval_audio_loss",
    "eval_stop_loss",
    "eval_text_accuracy",
    "num_clips",
    "num_text_labels",
    "num_audio_labels",
    *(f"eval_audio_loss_codebook_{k}" for k in range(8)),
    *(f"eval_audio_accuracy_codebook_{k}" for k in range(8)),
}


@pytest.fixture(scope="module")
def adapter(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the base: its B is random."""
    directory = tmp_path_factory.mktemp("adapter")
    model = add_lora(
        load_base(Pretrained("base_model", str(corpus.base)), torch.float32), LoraSettings(), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    return directory


def run(
    corpus: PackedCorpus,
    adapter: Path,
    output: Path,
    eval_rows: Path | None = None,
    **settings: Any,
) -> tuple[dict, list[dict]]:
    config = write_stage_config(
        output / "eval.json",
        base_model=str(corpus.base),
        eval={"device": "cpu", "dtype": "float64", **settings},
    )
    metrics, clips = output / "metrics.json", output / "clips.parquet"
    evaluate.run(config, eval_rows or corpus.eval_rows, adapter, metrics, clips)
    return json.loads(metrics.read_text()), pq.read_table(clips).to_pylist()


def test_the_metrics_are_the_plain_loops_sums_divided_once(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, _ = run(corpus, adapter, tmp_path)
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float64)
    rows = PackedRows(corpus.eval_rows)
    found = [row_losses(base, rows[i]) for i in range(len(rows))]
    text = sum(f[0] for f in found).item() / sum(f[1] for f in found)
    codebooks = [sum(f[2][k] for f in found).item() / sum(f[3][k] for f in found) for k in range(8)]
    of_base = metrics["base"]
    assert of_base.keys() == metrics["adapter"].keys() == KEYS
    assert of_base["eval_text_loss"] == pytest.approx(text, rel=1e-6)
    for k in range(8):
        assert of_base[f"eval_audio_loss_codebook_{k}"] == pytest.approx(codebooks[k], rel=1e-6)
    assert of_base["eval_audio_loss"] == pytest.approx(sum(codebooks) / 8, rel=1e-6)
    assert of_base["eval_loss"] == pytest.approx(text + sum(codebooks) / 8, rel=1e-6)
    assert of_base["num_text_labels"] == sum(f[1] for f in found) == 9
    assert of_base["num_audio_labels"] == sum(sum(f[3]) for f in found)
    assert of_base["num_clips"] == 3


def test_the_adapter_changes_the_loss_and_the_base_is_untouched_by_it(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, clips = run(corpus, adapter, tmp_path)
    assert metrics["adapter"]["eval_loss"] != metrics["base"]["eval_loss"]
    assert [clip["clip_id"] for clip in clips] == ["clip-03", "clip-06", "clip-09"]
    assert all(clip["adapter_loss"] != clip["base_loss"] for clip in clips)


def test_a_row_per_clip_adds_up_to_the_whole(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, clips = run(corpus, adapter, tmp_path)
    for model in ("adapter", "base"):
        total = sum(clip[f"{model}_text_loss"] * clip["num_text_labels"] for clip in clips)
        labels = sum(clip["num_text_labels"] for clip in clips)
        assert metrics[model]["eval_text_loss"] == pytest.approx(total / labels)


def test_batch_and_packing_change_no_number(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    expected, clips = run(corpus, adapter, tmp_path / "a")
    batched, _ = run(corpus, adapter, tmp_path / "b", rows_per_batch=8)
    corpus.pack(tmp_path / "packed", max_tokens=1024)
    rows = tmp_path / "packed/eval.parquet"
    repacked, same_clips = run(corpus, adapter, tmp_path / "c", eval_rows=rows)
    assert len(PackedRows(rows)) < len(PackedRows(corpus.eval_rows))
    for other in (batched, repacked):
        for model in ("adapter", "base"):
            assert other[model] == pytest.approx(expected[model], rel=1e-9)
    assert [c["adapter_loss"] for c in same_clips] == pytest.approx(
        [c["adapter_loss"] for c in clips], rel=1e-9
    )


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    expected, clips = run(corpus, adapter, tmp_path / "one")
    two = tmp_path / "two"
    two.mkdir()
    module = ["-m", "higgs_pipe.evaluate", "--config", str(tmp_path / "one/eval.json")]
    inputs = ["--eval-rows", str(corpus.eval_rows), "--adapter-dir", str(adapter)]
    outputs = ["--metrics", str(two / "metrics.json"), "--clips", str(two / "clips.parquet")]
    finished = launch(2, *module, *inputs, *outputs)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((two / "metrics.json").read_text())
    for model in ("adapter", "base"):
        assert found[model] == pytest.approx(expected[model], rel=1e-9)
    assert len(pq.read_table(two / "clips.parquet")) == len(clips)


def test_a_directory_without_an_adapter_is_a_sentence(corpus: PackedCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter for this base_model"):
        run(corpus, tmp_path / "nothing", tmp_path / "out")
