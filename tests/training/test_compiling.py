"""Compiled layers: when they are used, equal results, and code reused by the next process."""

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, python_path
from launched.compiled_losses import largest_error
from peft.tuners.lora import Linear as LoraLinear
from pretended_gpu import trace_only
from trainings import PackedCorpus, dropping_model, train

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs import compilation
from higgs_pipe.higgs.batch import PackedBatch, PackedRows, collate
from higgs_pipe.higgs.compilation import (
    CACHE_VARIABLE,
    choose_compilation,
    folder_of_compiled_code,
    keep_compiled_code,
    missing_tool,
)
from higgs_pipe.higgs.compilation_costs import SAVED_SECONDS_PER_POSITION
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.training.compiling import compute_gradients

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HOUR = 3600 / SAVED_SECONDS_PER_POSITION  # positions that save an hour


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a recent GPU, a compiler and Triton."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(compilation, "missing_tool", lambda: None)


def adapted(base: Path, **lora: Any) -> Any:
    model = load_base(Pretrained("base_model", str(base)), torch.float32)
    return add_lora(model, LoraSettings(**lora), seed=0)


def test_auto_compiles_long_enough_runs_on_a_gpu(tiny_base: Path, on_a_gpu: None) -> None:
    model = adapted(tiny_base)
    assert choose_compilation("auto", model, GPU, HOUR).is_on
    short = choose_compilation("auto", model, GPU, HOUR / 120)
    assert not short.is_on
    assert "takes about 32 s and saves about 30 s" in short.reason


def test_auto_compiles_a_short_run_if_compiled_code_is_cached(
    tiny_base: Path, on_a_gpu: None, tmp_path: Path
) -> None:
    model = adapted(tiny_base)
    assert not choose_compilation("auto", model, GPU, HOUR / 120, tmp_path).is_on
    (tmp_path / "fxgraph").mkdir()
    assert choose_compilation("auto", model, GPU, HOUR / 120, tmp_path).is_on


def test_auto_names_the_layer_it_cannot_compile(tiny_base: Path, on_a_gpu: None) -> None:
    dora = choose_compilation("auto", adapted(tiny_base, use_dora=True), GPU, HOUR)
    assert not dora.is_on
    assert "q_proj" in dora.reason
    assert not choose_compilation("auto", adapted(tiny_base), CPU, HOUR).is_on


def test_the_setting_overrides_what_auto_would_choose(tiny_base: Path, on_a_gpu: None) -> None:
    model = adapted(tiny_base)
    assert choose_compilation(True, model, CPU, 0).is_on
    assert not choose_compilation(False, model, GPU, HOUR).is_on


def test_a_resumed_run_compiles_if_it_did_before_and_still_can(
    tiny_base: Path, on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds however few steps remain, since compiled layers round differently."""
    model = adapted(tiny_base)
    assert choose_compilation("auto", model, GPU, 0, kept=True).is_on
    assert not choose_compilation("auto", model, GPU, HOUR, kept=False).is_on
    monkeypatch.setattr(compilation, "missing_tool", lambda: "no compiler")
    assert not choose_compilation("auto", model, GPU, HOUR, kept=True).is_on


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "C compiler" in str(missing_tool())


def test_the_cache_folder_variable_of_the_user_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "before")  # restored after the test
    monkeypatch.delenv(CACHE_VARIABLE)
    keep_compiled_code(tmp_path / "a")
    assert folder_of_compiled_code() == tmp_path / "a"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "b"))
    keep_compiled_code(tmp_path / "a")
    assert folder_of_compiled_code() == tmp_path / "b"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_training_with_compile_on_gives_the_same_losses(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: dict[str, Any] = {"dtype": "float64", "max_steps": 2, "rows_per_step": 2}
    plain = train(corpus, tmp_path / "plain", **settings)
    trace_only(monkeypatch)
    logging.getLogger("higgs_pipe").propagate = True
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        compiled = train(corpus, tmp_path / "compiled", compile=True, **settings)
    assert "compiled the layers in" in caplog.text
    found, expected = (
        [line[key] for line in lines for key in line if key.endswith("loss")]
        for lines in (compiled, plain)
    )
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_layers_are_correct_with_the_adapter_disabled(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_only(monkeypatch)
    peft_model = adapted(corpus.base)
    model = DualLossModel(peft_model).eval()
    batch = collate([PackedRows(corpus.eval_rows)[0]], model.native.config)
    assert any(type(part) is LoraLinear for part in model.modules())
    with torch.inference_mode(), peft_model.disable_adapter():
        expected = model(batch)[0].loss
        model.compile_layers()
        assert torch.allclose(model(batch)[0].loss, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_all_layers_share_the_code_compiled_for_one(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        traced.append(graph)
        return graph

    trace_only(monkeypatch, backend)
    model = dropping_model(corpus.base)
    assert model.num_layers == 2
    model.compile_layers()
    batch = collate([PackedRows(corpus.train_rows)[0]], model.shape, dropout_seeds=[7])
    compute_gradients(model, batch)
    assert len(traced) == 2  # before and after attention


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_compiled_layers_save_less_for_the_backward_pass(
    corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_only(monkeypatch, "aot_eager_decomp_partition")
    model = dropping_model(corpus.base).float()
    batch = collate([PackedRows(corpus.train_rows)[0]], model.shape, dropout_seeds=[7])
    plain = bytes_kept(model, batch)
    model.compile_layers()
    assert bytes_kept(model, batch) < 0.65 * plain  # 0.89 as PyTorch chooses


def bytes_kept(model: DualLossModel, batch: PackedBatch) -> int:
    """Return the bytes that the layers keep for the backward pass, without weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.backbone(batch)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.slow
def test_compiled_code_gives_eager_gradients_and_is_reused_by_the_next_process(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    found = [run_compiled(corpus, tmp_path, name) for name in ("first", "second")]
    for result in found:
        assert result["gradient_error"] < 1e-9
        assert result["gradient_error_padded"] < 1e-9
        assert result["files_for_padding"] == 0  # as a capture needs: nothing is left to compile
    assert found[0]["files"]
    assert found[1]["files"] == found[0]["files"]
    assert found[1]["seconds"] < found[0]["seconds"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_of_higgs_tts_3_give_the_eager_gradients(
    v3_corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_only(monkeypatch)
    plain = dropping_model(v3_corpus.base)
    compiled = copy.deepcopy(plain)
    compiled.compile_layers()
    batch = collate([PackedRows(v3_corpus.train_rows)[0]], plain.shape, dropout_seeds=[7])
    assert largest_error(compute_gradients(compiled, batch), compute_gradients(plain, batch)) < 1e-9


def run_compiled(corpus: PackedCorpus, folder: Path, name: str) -> dict[str, Any]:
    script = ROOT / "tests/launched/compiled_losses.py"
    output = folder / f"{name}.json"
    arguments = [sys.executable, *map(str, (script, corpus.base, corpus.train_rows, output))]
    environment = os.environ | {
        "PYTHONPATH": python_path(ROOT / "tests"),
        CACHE_VARIABLE: str(folder / "cache"),
    }
    subprocess.run(arguments, check=True, env=environment, capture_output=True)
    result: dict[str, Any] = json.loads(output.read_text())
    return result
