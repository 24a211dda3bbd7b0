"""Interrupted training: real processes, real signals, the adapter of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import PackedCorpus, write_stage_config
from safetensors.torch import load_file

import higgs_pipe.train
from higgs_pipe.higgs.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "device": "cpu",
    "learning_rate": 5e-3,
    "rows_per_step": 2,
    "num_epochs": 10,
    "log_steps": 1,
    "eval_steps": 7,
    "save_steps": 4,
}
NUM_STEPS = 30


def start(corpus: PackedCorpus, output: Path, **settings: object) -> subprocess.Popen[str]:
    config = write_stage_config(
        output / "train.json", base_model=str(corpus.base), train=SETTINGS | settings
    )
    command = [sys.executable, "-m", "higgs_pipe.train", "--config", str(config)]
    command += ["--train-rows", str(corpus.train_rows), "--eval-rows", str(corpus.eval_rows)]
    command += ["--output-dir", str(output), "--log", str(output / "train.log")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, cwd=output, text=True, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stderr


def wait_for_step(output: Path, step: int) -> None:
    """Until metrics.jsonl has a line of that step."""
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if metrics.is_file() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)
    raise TimeoutError(f"no step {step} in {metrics}")


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def losses(output: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line.get("loss", line.get("eval_loss"))) for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    finish(start(corpus, output))
    return output


def assert_same_run(output: Path, expected: Path) -> None:
    """Bit for bit: the adapter, and every logged loss."""
    found = adapter(output)
    for key, tensor in adapter(expected).items():
        assert torch.equal(found[key], tensor), key
    assert losses(output) == losses(expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_the_next_run_goes_on_exactly(
    corpus, uninterrupted, tmp_path, number
):
    process = start(corpus, tmp_path)
    wait_for_step(tmp_path, 6)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "checkpoint saved; run snakemake again to go on" in stderr
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "metrics.jsonl").unlink()  # as Snakemake does with a declared output

    stderr = finish(start(corpus, tmp_path))
    assert "going on after step" in stderr
    assert_same_run(tmp_path, uninterrupted)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_kill_9_loses_at_most_save_steps_and_a_cut_off_checkpoint_is_passed_over(
    corpus, uninterrupted, tmp_path
):
    process = start(corpus, tmp_path)
    wait_for_step(tmp_path, 14)
    process.kill()
    process.communicate(timeout=60)
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    assert newest.name >= "step-00000012.pt"
    newest.write_bytes(newest.read_bytes()[:-2000])

    stderr = finish(start(corpus, tmp_path))
    assert f"{newest} is damaged" in stderr
    assert "going on after step" in stderr
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_checkpoints_of_other_settings_are_set_aside_and_training_starts_anew(
    corpus, uninterrupted, tmp_path
):
    process = start(corpus, tmp_path, learning_rate=1e-4)
    wait_for_step(tmp_path, 9)
    process.kill()
    process.communicate(timeout=60)
    stderr = finish(start(corpus, tmp_path))
    assert "checkpoints are of a run with other settings" in stderr
    assert "going on" not in stderr
    assert list((tmp_path / "checkpoints/set-aside").glob("*.pt"))
    assert_same_run(tmp_path, uninterrupted)


def test_a_signal_in_the_last_step_changes_nothing(corpus, tmp_path, monkeypatch):
    """The adapter is complete, so the stage must not fail: Snakemake would delete it."""

    @contextmanager
    def caught_in_the_last_step():
        yield LastStepSignal()

    class LastStepSignal(list):
        def __bool__(self) -> bool:
            return '"step": 1,' in (tmp_path / "metrics.jsonl").read_text()

    monkeypatch.setattr(higgs_pipe.train, "caught_signals", caught_in_the_last_step)
    one_step = {"device": "cpu", "rows_per_step": 16, "num_epochs": 1}
    config = write_stage_config(
        tmp_path / "train.json", base_model=str(corpus.base), train=one_step
    )
    higgs_pipe.train.run(config, corpus.train_rows, corpus.eval_rows, tmp_path)
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[..., Checkpoints]:
    def make(total_limit: int = 2, **identity: str) -> Checkpoints:
        return Checkpoints(tmp_path / "checkpoints", identity, total_limit)

    return make


def test_the_newest_checkpoint_is_loaded_and_old_ones_are_dropped(checkpoints, tmp_path):
    mine = checkpoints(data="a")
    for step in (5, 10, 100):
        mine.save(step, {"step": step, "weight": torch.tensor([float(step)])})
    assert mine.load_latest() == {"step": 100, "weight": torch.tensor([100.0])}
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010.pt", "step-00000100.pt"]


@pytest.mark.parametrize("num_bytes", [0, 1, 100, -1])
def test_a_cut_off_checkpoint_is_passed_over(checkpoints, tmp_path, caplog, num_bytes):
    mine = checkpoints(data="a")
    for step in (1, 2):
        mine.save(step, {"step": step, "weight": torch.zeros(1000)})
    newest = tmp_path / "checkpoints/step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:num_bytes])
    state = mine.load_latest()
    assert state is not None
    assert state["step"] == 1


def test_a_checkpoint_of_other_data_is_never_resumed(checkpoints, tmp_path):
    checkpoints(data="a", settings="s").save(1, {"step": 1})
    assert checkpoints(data="b", settings="s").load_latest() is None
    assert [p.name for p in (tmp_path / "checkpoints/set-aside").iterdir()] == ["step-00000001.pt"]


def test_no_checkpoint_is_no_error(checkpoints):
    assert checkpoints().load_latest() is None
    checkpoints().clear()
