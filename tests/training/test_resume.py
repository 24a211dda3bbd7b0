"""Interrupted training: real processes and signals, and the adapter of an uninterrupted run."""

import errno
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import trainings
from accelerate import Accelerator
from helpers import (
    ROOT,
    environment_with,
    files_of_at_most,
    has_ended,
    wait_until,
    write_stage_config,
)
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus
from transformers import AutoTokenizer
from workflow.forked_stages import Fork

import higgs_pipe.train
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.planning.launching import launch_command
from higgs_pipe.training.checkpoints import Checkpoints, write_errors_named
from higgs_pipe.training.lock import only_training_in
from higgs_pipe.training.step_inputs import epoch_steps

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "tracker": "none",
    "learning_rate": 5e-3,
    "rows_per_step": 2,
    "num_epochs": 10,
    "log_steps": 1,
    "eval_steps": 7,
    "save_steps": 4,
}


def start(
    corpus: PackedCorpus, output: Path, num_processes: int | None = None, **settings: object
) -> Fork:
    """Train in a process of its own, or under the launcher as the rule does."""
    words = ["higgs_pipe.train"]
    if num_processes is not None:
        launcher = launch_command(num_processes, num_processes, ROOT / "workflow/accelerate.yaml")
        words = [*shlex.split(launcher)[2:], "-m", "higgs_pipe.train"]
    words += arguments(corpus, output, **settings)
    return Fork(words, output, environment_with(OMP_NUM_THREADS="1"))


def arguments(corpus: PackedCorpus, output: Path, **settings: object) -> list[str]:
    config = write_stage_config(
        output / "train.json", base_model=str(corpus.base), train=SETTINGS | settings
    )
    options = {
        "config": config,
        "train-rows": corpus.train_rows,
        "eval-rows": corpus.eval_rows,
        "output-dir": output,
        "log": output / "train.log",
    }
    return [word for name, path in options.items() for word in (f"--{name}", str(path))]


def train(corpus: PackedCorpus, output: Path, base: Path | None = None, **settings: object) -> None:
    """In this process."""
    trainings.train(corpus, output, base=base, **SETTINGS | settings)


def finish(process: Fork) -> str:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stderr


def train_to_the_end(
    corpus: PackedCorpus, output: Path, num_processes: int | None = None, **settings: Any
) -> str:
    """Return what was said on stderr."""
    return finish(start(corpus, output, num_processes, **settings))


def wait_for_step(output: Path, step: int) -> None:
    """Wait until metrics.jsonl has a line for that step."""
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
    train_to_the_end(corpus, output)
    return output


def assert_same_run(output: Path, expected: Path) -> None:
    """Bit for bit: the adapter, and every logged loss."""
    found = adapter(output)
    for key, tensor in adapter(expected).items():
        assert torch.equal(found[key], tensor), key
    assert losses(output) == losses(expected)


@pytest.mark.slow
def test_a_signal_ends_training_after_a_step_and_the_next_run_resumes_exactly(
    corpus: PackedCorpus, uninterrupted: Path, tmp_path: Path
) -> None:
    for step, number in ((3, signal.SIGTERM), (7, signal.SIGINT), (11, signal.SIGHUP)):
        process = start(corpus, tmp_path)
        wait_for_step(tmp_path, step)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 128 + number
        assert "checkpoint saved" in stderr
        assert not (tmp_path / "adapter").exists()
        (tmp_path / "metrics.jsonl").unlink()  # as Snakemake does with a declared output

    stderr = train_to_the_end(corpus, tmp_path)
    assert "resuming after step" in stderr
    assert_same_run(tmp_path, uninterrupted)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_sigkill_while_saving_falls_back_to_the_previous_checkpoint(
    corpus: PackedCorpus, uninterrupted: Path, tmp_path: Path
) -> None:
    script = str(ROOT / "tests/launched/killed_while_saving.py")
    command = [sys.executable, script, *arguments(corpus, tmp_path)]
    environment = environment_with(OMP_NUM_THREADS="1")
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    assert newest.name == "step-00000012.pt"
    assert list((tmp_path / "checkpoints").glob(".step-00000016.pt.*.tmp"))
    newest.write_bytes(newest.read_bytes()[:-2000])

    stderr = train_to_the_end(corpus, tmp_path)
    assert f"{newest} is damaged" in stderr
    assert "resuming after step 8\n" in stderr
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert_same_run(tmp_path, uninterrupted)


def process_of_rank(launcher: Fork, rank: int) -> psutil.Process:
    """Return a process of a launcher by rank; the launcher starts them in order."""
    found = psutil.Process(launcher.pid).children()
    assert len(found) == 2
    return sorted(found, key=lambda process: (process.create_time(), process.pid))[rank]


def last_words(launcher: Fork) -> str:
    """The last line on stderr; that there is no traceback above it."""
    _, stderr = launcher.communicate(timeout=200)
    assert "Traceback" not in stderr, stderr
    return stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def uninterrupted_on_two(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted-on-two")
    train_to_the_end(corpus, output, 2, num_epochs=20)
    return output


@pytest.fixture
def session(corpus: PackedCorpus, tmp_path: Path) -> Callable[..., Fork]:
    """Goes on with one training by two processes, and returns once a step is done."""

    def go_on(step: int, **settings: Any) -> Fork:
        launcher = start(corpus, tmp_path, 2, num_epochs=20, **settings)
        wait_for_step(tmp_path, step)
        return launcher

    return go_on


@pytest.mark.slow
def test_two_stopped_processes_resume_and_match_an_uninterrupted_run(
    session: Callable[..., Fork],
    corpus: PackedCorpus,
    uninterrupted_on_two: Path,
    tmp_path: Path,
) -> None:
    """The launcher killed, and a SIGTERM to one process alone: three sessions, one training."""
    launcher = session(2, save_steps=1000)
    processes = [process_of_rank(launcher, rank) for rank in (0, 1)]
    launcher.kill()
    wait_until(lambda: all(map(has_ended, processes)))
    launcher.communicate()
    [saved] = (tmp_path / "checkpoints").iterdir()
    step = int(saved.stem.removeprefix("step-"))
    assert 2 <= step < 50  # of 60: the processes look once a second whether their launcher lives

    launcher = session(step + 5)
    process_of_rank(launcher, 1).terminate()
    assert "checkpoint saved" in last_words(launcher)
    assert launcher.returncode == 128 + signal.SIGTERM

    assert "resuming after step" in train_to_the_end(corpus, tmp_path, 2, num_epochs=20)
    assert_same_run(tmp_path, uninterrupted_on_two)


@pytest.mark.slow
def test_two_processes_resume_exactly_after_one_is_killed(
    session: Callable[..., Fork],
    corpus: PackedCorpus,
    uninterrupted_on_two: Path,
    tmp_path: Path,
) -> None:
    """Stopped, and one of them killed: three sessions, one training."""
    launcher = session(5)
    os.killpg(launcher.pid, signal.SIGINT)  # Ctrl-C: to the launcher and to every process
    assert "checkpoint saved" in last_words(launcher)
    assert launcher.returncode == 128 + signal.SIGINT

    launcher = session(15)
    process_of_rank(launcher, 1).kill()
    assert last_words(launcher).startswith("SIGKILL ended process 1.")
    assert launcher.returncode == 128 + signal.SIGKILL

    assert "resuming after step" in train_to_the_end(corpus, tmp_path, 2, num_epochs=20)
    assert_same_run(tmp_path, uninterrupted_on_two)


@pytest.mark.slow
def test_two_processes_resume_exactly_after_one_hangs(
    session: Callable[..., Fork],
    corpus: PackedCorpus,
    uninterrupted_on_two: Path,
    tmp_path: Path,
) -> None:
    launcher = session(5, timeout_seconds=10)
    hung = process_of_rank(launcher, 1)
    hung.suspend()
    answer = last_words(launcher)
    assert "train.timeout_seconds = 10 s" in answer
    assert launcher.returncode == 2
    assert not hung.is_running()

    assert "resuming after step" in train_to_the_end(corpus, tmp_path, 2, num_epochs=20)
    assert_same_run(tmp_path, uninterrupted_on_two)


@pytest.mark.slow
def test_a_second_training_waits_and_then_names_the_first(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """The second writes nothing, and the first, suspended meanwhile, continues."""
    first = start(corpus, tmp_path, num_epochs=1000)
    wait_for_step(tmp_path, 2)
    first.send_signal(signal.SIGSTOP)
    done = losses(tmp_path)
    second = start(corpus, tmp_path, 2)
    answer = last_words(second)
    assert second.returncode == 2
    assert f"process {first.pid} on {socket.gethostname()}" in answer
    assert losses(tmp_path) == done
    first.send_signal(signal.SIGCONT)
    wait_for_step(tmp_path, done[-1][0] + 2)
    first.kill()
    first.communicate()


@pytest.mark.slow
def test_a_waiting_training_continues_once_the_first_is_killed(
    corpus: PackedCorpus, uninterrupted: Path, tmp_path: Path
) -> None:
    first = start(corpus, tmp_path)
    wait_for_step(tmp_path, 6)
    first.send_signal(signal.SIGSTOP)
    second = start(corpus, tmp_path)
    wait_until(lambda: "waiting for process" in (tmp_path / "train.log").read_text())
    first.kill()
    first.communicate()
    assert "resuming after step 4\n" in finish(second)
    assert_same_run(tmp_path, uninterrupted)


def test_a_signal_in_the_last_step_changes_nothing(corpus: PackedCorpus, tmp_path: Path) -> None:
    """The adapter is complete, so the stage must not fail: Snakemake would delete it."""

    with signals_in_the_first_step():
        train(corpus, tmp_path, rows_per_step=16, num_epochs=1)
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


@contextmanager
def signals_in_the_first_step() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        caught = nullcontext([signal.SIGTERM])
        patch.setattr(higgs_pipe.train, "caught_signals", lambda: caught)
        yield


@pytest.fixture(scope="module")
def uninterrupted_here(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted-here")
    train(corpus, output)
    return output


def test_checkpoints_of_other_settings_are_set_aside_and_training_starts_over(
    corpus: PackedCorpus,
    uninterrupted_here: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with signals_in_the_first_step(), pytest.raises(SystemExit):
        train(corpus, tmp_path, learning_rate=1e-4)
    with caplog.at_level(logging.INFO, "higgs_pipe"):
        train(corpus, tmp_path)
    assert "other settings" in caplog.text
    assert "resuming" not in caplog.text
    assert list((tmp_path / "checkpoints/set-aside").glob("*.pt"))
    assert_same_run(tmp_path, uninterrupted_here)


def adapter_bytes(output: Path) -> int:
    return (output / "adapter/adapter_model.safetensors").stat().st_size


def test_a_full_disk_keeps_the_previous_checkpoint_and_a_rerun_resumes_from_it(
    corpus: PackedCorpus, uninterrupted_here: Path, tmp_path: Path
) -> None:
    """A checkpoint holds three times the adapter; from the first evaluation on, four times."""
    too_small = int(3.5 * adapter_bytes(uninterrupted_here))
    expected = r"step-00000008\.pt cannot be written"
    with files_of_at_most(too_small), pytest.raises(UserError, match=expected):
        train(corpus, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004.pt"]
    train(corpus, tmp_path)
    assert_same_run(tmp_path, uninterrupted_here)


def test_a_disk_too_full_for_the_adapter_keeps_the_last_checkpoint(
    corpus: PackedCorpus, uninterrupted_here: Path, tmp_path: Path
) -> None:
    assert adapter_bytes(uninterrupted_here) > 100_000
    with signals_in_the_first_step(), pytest.raises(SystemExit):
        train(corpus, tmp_path)
    expected = r"adapter cannot be written"
    with files_of_at_most(100_000), pytest.raises(UserError, match=expected):
        train(corpus, tmp_path, save_steps=1000)
    assert [p.name for p in tmp_path.iterdir() if "adapter" in p.name] == []
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.pt"]
    train(corpus, tmp_path)
    assert_same_run(tmp_path, uninterrupted_here)


def test_a_non_finite_batch_leaves_weights_and_checkpoint_unchanged(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """Only clip-08 says an 8; a row that holds it, as target or reference, comes third."""
    shutil.copytree(corpus.base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    eight = AutoTokenizer.from_pretrained(corpus.base).convert_tokens_to_ids("8")
    weights["model.embed_tokens.weight"][eight] = float("nan")
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    table = PackedRows(corpus.train_rows)
    has_eight = [eight in table[row].input_ids for row in range(len(table))]
    for seed in range(100):
        order = [row for [row] in epoch_steps(len(table), 1, seed, epoch=0)]
        if [has_eight[row] for row in order[:3]] == [False, False, True]:
            break
    expected = rf"step 3, packed rows {order[2]}: loss is nan; .*clip-"
    with pytest.raises(UserError, match=expected):
        train(corpus, tmp_path, tmp_path / "base", rows_per_step=1, save_steps=1, seed=seed)
    [_, newest] = sorted((tmp_path / "checkpoints").iterdir())
    state = torch.load(newest)["state"]
    assert state["progress"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["parameters"])
    assert all(tensor.isfinite().all() for tensor in state["optimizer"]["state"][0].values())


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 5, "schedule": "linear"},
        {"learning_rate": 0.1, "warmup_fraction": 0.5, "eval_steps": 1}
        | {"early_stopping_patience": 2},
        {"max_steps": 4, "sample_steps": 2, "keep_best_by": "length_ratio"}
        | {"sampling": {"max_seconds": 0.4}},
    ],
)
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    corpus: PackedCorpus, tmp_path: Path, settings: Any
) -> None:
    """Training ends by its number of steps or by partly used patience, or it has samples."""
    train(corpus, tmp_path / "whole", **settings)
    num_steps = max(step for step, _ in losses(tmp_path / "whole"))
    assert num_steps < 30
    for _ in range(num_steps - 1):
        with signals_in_the_first_step(), pytest.raises(SystemExit):
            train(corpus, tmp_path / "parts", **settings)
    train(corpus, tmp_path / "parts", **settings)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_resume_with_other_base_weights_of_the_same_name_starts_over(
    corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(corpus.base, tmp_path / "base")
    settings = {"max_steps": 3, "save_steps": 1}
    with signals_in_the_first_step(), pytest.raises(SystemExit):
        train(corpus, tmp_path / "run", base, **settings)
    weights = load_file(base / "model.safetensors")
    weights["audio_lm_head.weight"] *= 1.5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, "higgs_pipe"):
        train(corpus, tmp_path / "run", base, **settings)
    (record,) = [record for record in caplog.records if "set-aside" in record.getMessage()]
    assert "base weights" in record.getMessage()
    train(corpus, tmp_path / "anew", base, **settings)
    assert_same_run(tmp_path / "run", tmp_path / "anew")


def test_training_refuses_weights_that_changed_after_packing(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    base = shutil.copytree(corpus.base, tmp_path / "base")
    train(corpus, tmp_path / "run", base, max_steps=1)
    weights = load_file(base / "model.safetensors")
    weights["audio_lm_head.weight"] *= 1.5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config, packed = tmp_path / "run/train.json", tmp_path / "run/packed"
    with pytest.raises(UserError, match=r"base.*changed.*pin_model"):
        higgs_pipe.train.run(
            config, packed / "train.parquet", packed / "eval.parquet", tmp_path / "again"
        )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[..., Checkpoints]:
    def make(total_limit: int = 2, **identity: str) -> Checkpoints:
        return Checkpoints(tmp_path / "checkpoints", identity, total_limit)

    return make


def test_the_newest_checkpoint_is_loaded_and_old_ones_are_deleted(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    mine = checkpoints(data="a")
    for step in (5, 10, 100):
        mine.save(step, {"step": step, "weight": torch.tensor([float(step)])})
    (tmp_path / "checkpoints/.step-00000200.pt.7.tmp").touch()  # left behind by a kill
    assert mine.load_latest() == {"step": 100, "weight": torch.tensor([100.0])}
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010.pt", "step-00000100.pt"]


@pytest.mark.parametrize("num_bytes", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_skipped(
    checkpoints: Callable[..., Checkpoints],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    num_bytes: int,
) -> None:
    mine = checkpoints(data="a")
    for step in (1, 2):
        mine.save(step, {"step": step, "weight": torch.zeros(1000)})
    newest = tmp_path / "checkpoints/step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:num_bytes])
    state = mine.load_latest()
    assert state is not None
    assert state["step"] == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(newest) in caplog.text


def test_a_checkpoint_of_other_data_is_never_resumed(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    checkpoints(data="a", settings="s").save(1, {"step": 1})
    assert checkpoints(data="b", settings="s").load_latest() is None
    assert [p.name for p in (tmp_path / "checkpoints/set-aside").iterdir()] == ["step-00000001.pt"]
    checkpoints(data="b").save(2, {"step": 2})  # of the run that started over
    assert checkpoints(data="c").load_latest() is None
    assert [p.name for p in (tmp_path / "checkpoints/set-aside").iterdir()] == ["step-00000002.pt"]


def test_an_error_of_torch_is_a_failure_to_write_only_if_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is the disk full"), write_errors_named(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    with pytest.raises(RuntimeError, match=r"^a bug$"), write_errors_named(tmp_path):
        raise RuntimeError("a bug")


def test_a_missing_checkpoint_is_not_an_error(checkpoints: Callable[..., Checkpoints]) -> None:
    assert checkpoints().load_latest() is None
    checkpoints().clear()


def test_a_checkpoint_unreadable_on_another_process_is_named(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    mine = checkpoints(data="a")
    mine.save(1, {"step": 1})
    assert mine.load(1) == {"step": 1}
    (tmp_path / "checkpoints/step-00000001.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"step-00000001\.pt: .*another process cannot"):
        mine.load(1)


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("higgs_pipe.training.lock.fcntl.flock", refuse)
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    number = errno.ENOLCK
    with only_training_in(tmp_path, Accelerator(cpu=True)):
        assert ".lock cannot be locked" in caplog.text
