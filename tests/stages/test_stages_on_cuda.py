"""The stages on a GPU: what they give is what they give on a CPU."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from accelerate.state import AcceleratorState
from helpers import write_stage_config
from peft import PeftModel
from trainings import PackedCorpus, end_in_step, evaluate_in, launch, train

from higgs_pipe import speak, tokenize_audio
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.v2 import miniature

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

IN_FLOAT32: dict[str, Any] = {"dtype": "float32", "tf32": False, "lora": {"dropout": 0.2}}
TRAINING: dict[str, Any] = {"rows_per_step": 2, "max_steps": 6, "log_steps": 1}
IN_BFLOAT16: dict[str, Any] = {**TRAINING, "device": "cuda", "learning_rate": 1e-2}


def start_anew() -> None:
    """As in a process of its own: Accelerate keeps the device of the first training."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def each_as_in_a_process_of_its_own() -> Iterator[None]:
    start_anew()
    yield
    start_anew()


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line[key] for line in lines for key in ("loss", "eval_loss") if key in line]


@pytest.fixture(params=["corpus", "v3_corpus"])
def of_family(request: pytest.FixtureRequest) -> PackedCorpus:
    packed: PackedCorpus = request.getfixturevalue(request.param)
    return packed


def test_training_with_dropout_matches_the_losses_of_a_cpu(
    of_family: PackedCorpus, tmp_path: Path
) -> None:
    settings = TRAINING | IN_FLOAT32 | {"learning_rate": 1e-3}
    on_cpu = losses(train(of_family, tmp_path / "cpu", device="cpu", **settings))
    start_anew()
    on_gpu = losses(train(of_family, tmp_path / "gpu", device="cuda", **settings))
    assert len(on_gpu) == len(on_cpu) >= 6
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


def test_compiled_training_matches_the_losses_of_eager_training(
    of_family: PackedCorpus, tmp_path: Path
) -> None:
    settings = IN_BFLOAT16 | {"max_steps": 12, "lora": {"dropout": 0.2}}
    plain = losses(train(of_family, tmp_path / "plain", **settings, compile=False))
    compiled = losses(train(of_family, tmp_path / "compiled", **settings, compile=True))
    assert plain[-1] < 0.98 * plain[0]  # so that gradients decide
    assert compiled == pytest.approx(plain, rel=0.02)


def test_evaluation_matches_the_losses_of_a_cpu(of_family: PackedCorpus, tmp_path: Path) -> None:
    train(of_family, tmp_path, **TRAINING, learning_rate=1e-2)
    found = {}
    for device in ("cpu", "cuda"):
        start_anew()
        folder = evaluate_in(
            tmp_path / device,
            of_family,
            tmp_path / "adapter",
            device=device,
            dtype="float32",
            num_prompts=0,
        )
        found[device] = json.loads((folder / "metrics.json").read_text())
    for side in ("base", "adapter"):
        loss = found["cuda"][side]["eval_loss"]
        assert loss == pytest.approx(found["cpu"][side]["eval_loss"], rel=1e-4)
    assert found["cuda"]["adapter"]["eval_loss"] < found["cuda"]["base"]["eval_loss"]


def test_resumed_training_matches_uninterrupted_training(
    of_family: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = losses(train(of_family, tmp_path / "whole", **IN_BFLOAT16))
    steps = end_in_step(monkeypatch, 3)
    with pytest.raises(SystemExit, match="143"):
        train(of_family, tmp_path / "resumed", **IN_BFLOAT16)
    resumed = losses(train(of_family, tmp_path / "resumed", **IN_BFLOAT16))
    assert len(steps) == 6
    assert resumed == pytest.approx(whole, rel=0.01)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("setting", ["8bit", "4bit"])
def test_an_adapter_trained_on_a_quantized_base_improves_the_full_one(
    corpus: PackedCorpus, tmp_path: Path, setting: str
) -> None:
    settings: dict[str, Any] = IN_BFLOAT16 | {"max_steps": 20}
    full = losses(train(corpus, tmp_path / "full", **settings))
    quantized = losses(train(corpus, tmp_path / "quantized", quantization=setting, **settings))
    assert quantized != full  # the setting arrives
    assert quantized == pytest.approx(full, rel=0.05)
    assert quantized[-1] < quantized[0]
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float32)
    batch = collate([PackedRows(corpus.train_rows)[0]], base.config)
    weights = label_weights(batch.label_counts())
    with torch.no_grad():
        of_base = DualLossModel(base).eval()(batch, weights)[0].objective.item()
        adapted = PeftModel.from_pretrained(base, tmp_path / "quantized/adapter")
        of_adapter = DualLossModel(adapted).eval()(batch, weights)[0].objective.item()
    assert of_adapter < of_base


def test_tokenize_matches_the_codes_of_a_cpu(corpus: PackedCorpus, tmp_path: Path) -> None:
    config = write_stage_config(
        tmp_path / "tokenize.json",
        codec=str(corpus.base / miniature.AUDIO_TOKENIZER),
        tokenize={"device": "cuda"},
    )
    num_codes, num_same = 0, 0
    for shard in ("shard-00000", "shard-00001"):
        table = tmp_path / f"{shard}.parquet"
        tokenize_audio.run(config, corpus.directory / f"data/shards/{shard}.parquet", table)
        tables = [pq.read_table(path) for path in (table, corpus.codes_dir / f"{shard}.parquet")]
        assert tables[0]["clip_id"].equals(tables[1]["clip_id"])
        for found, expected in zip(*(each["codes"].to_pylist() for each in tables), strict=True):
            num_codes += np.size(expected)
            num_same += int(np.sum(np.asarray(found) == np.asarray(expected)))
    assert num_codes > 1000
    assert num_same / num_codes >= 0.99


def test_greedy_speech_matches_that_of_a_cpu(corpus: PackedCorpus, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        speak.run(
            text="Good morning",
            out=tmp_path / f"{device}.wav",
            base=str(corpus.base),
            temperature=0.0,
            max_seconds=1.0,
            device=device,
            dtype="float32",
        )
    (on_cpu, _), (on_gpu, _) = (sf.read(tmp_path / f"{name}.wav") for name in ("cpu", "cuda"))
    assert len(on_gpu) == len(on_cpu)
    assert np.abs(on_gpu - on_cpu).max() <= 1e-3


def test_launched_training_matches_training_in_process(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    expected = losses(train(corpus, tmp_path / "here", **IN_BFLOAT16))
    arguments = ["-m", "higgs_pipe.train", "--config", str(tmp_path / "here/train.json")]
    arguments += ["--train-rows", str(corpus.train_rows), "--eval-rows", str(corpus.eval_rows)]
    finished = launch(1, *arguments, "--output-dir", str(tmp_path / "launched"))
    assert finished.returncode == 0, finished.stderr
    lines = (tmp_path / "launched/metrics.jsonl").read_text().splitlines()
    assert losses([json.loads(line) for line in lines]) == pytest.approx(expected, rel=0.01)
