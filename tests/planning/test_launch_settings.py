"""The launch settings of training, as words of the command that the rule runs."""

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from higgs_pipe.config.settings import Config
from higgs_pipe.errors import UserError
from higgs_pipe.planning import process_tree
from higgs_pipe.planning.launching import (
    Machines,
    check_launches,
    check_slurm,
    environment,
    launch_command,
    launch_settings,
    machines,
    num_gpus,
    num_gpus_here,
    overrides_text,
    runs_speech_models,
)


def test_a_job_asks_for_a_gpu_per_process_unless_it_uses_none() -> None:
    """None is what Snakemake drops; 0 would be sent to a queue of GPUs."""
    assert [num_gpus("cuda", number) for number in (0, 1, 3)] == [None, 1, 3]
    assert num_gpus("cpu", 3) is None


def command(experiment: dict[str, Any], **train: Any) -> list[str]:
    """The words of the command of an experiment."""
    config = Config(
        manifest="m", base_model="b", codec="c", train=train, experiments={"one": experiment}
    ).model_dump(by_alias=True)
    settings = launch_settings(config, "one")
    num_processes = settings.pop("num_processes")
    return shlex.split(launch_command(num_processes, 4, Path("own.yaml"), **settings))


def test_the_order_of_an_experiments_settings_does_not_matter() -> None:
    changes = {"learning_rate": 1e-4, "lora": {"r": 8, "alpha": 16}, "base_model": "x"}
    turned = {"lora": {"alpha": 16, "r": 8}, "learning_rate": 1e-4}
    texts = {overrides_text({"experiments": {"one": each}}, "one") for each in (changes, turned)}
    assert texts == {'{"learning_rate": 0.0001, "lora": {"alpha": 16, "r": 8}}'}


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_the_command_has_the_number_of_processes_of_the_experiment() -> None:
    words = command({"num_processes": 3}, num_processes=2)
    assert value(words, "--num_processes") == "3"
    assert value(words, "--config_file") == "own.yaml"
    assert words[0] == "python"
    assert value(words, "--main_process_ip") is None
    assert value(words, "--main_process_port") == "0"  # any that is free
    at = {"num_processes": 2, "main_process_ip": "node 1"}
    assert value(command({}, **at), "--main_process_ip") == "node 1"
    assert value(command({"main_process_ip": None}, **at), "--main_process_ip") is None


def test_several_machines_are_started_by_srun_with_address_and_port() -> None:
    machines = {"num_machines": 2, "main_process_ip": "node 1", "main_process_port": 3210}
    words = command({}, num_processes=4, **machines)
    assert words[:2] == ["srun", "--nodes=2"]
    assert value(words, "--num_machines") == "2"
    assert value(words, "--main_process_ip") == "node 1"
    assert value(words, "--main_process_port") == "3210"


def test_each_machine_divides_its_threads_among_its_processes(tmp_path: Path) -> None:
    words = shlex.split(launch_command(4, 8, tmp_path, num_machines=2))
    assert "--cpus-per-task=8" in words
    assert value(words, "--num_cpu_threads_per_process") == "4"
    few = shlex.split(launch_command(4, 2, tmp_path))
    assert value(few, "--num_cpu_threads_per_process") == "1"


def test_every_launch_option_is_given_to_accelerate(tmp_path: Path) -> None:
    words = shlex.split(launch_command(1, 1, tmp_path))
    given = ("--mixed_precision", "--dynamo_backend", "--num_machines")
    assert [value(words, option) for option in given] == ["no", "no", "1"]


@pytest.mark.parametrize("name", ["asr", "quality", "speaker"])
def test_any_speech_model_requests_the_memory_for_them(name: str) -> None:
    models = dict.fromkeys(("asr", "quality", "speaker"))
    assert not runs_speech_models({"validate": {"speech_models": models}})
    assert runs_speech_models({"validate": {"speech_models": models | {name: "org/model"}}})


@pytest.mark.parametrize(("own", "told"), [({}, "1"), ({"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, "0")])
def test_progress_bars_are_off_in_jobs_unless_the_user_enables_them(
    own: dict[str, str], told: str
) -> None:
    shown = f'{environment(Path(), in_own_environment=False)} echo "$HF_HUB_DISABLE_PROGRESS_BARS"'
    plain = {"PATH": os.environ["PATH"]}
    assert subprocess.check_output(["bash", "-c", shown], env=plain | own, text=True) == f"{told}\n"


@pytest.mark.parametrize("is_own", [True, False])
def test_jobs_import_the_checkout_and_watch_the_process_that_started_them(is_own: bool) -> None:
    root = Path("a folder")
    shown = f"{environment(root, in_own_environment=is_own)} env"
    plain = {"PATH": os.environ["PATH"]}
    lines = subprocess.check_output(["bash", "-c", shown], env=plain, text=True).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert found["PYTHONPATH"] == "a folder"
    [starter] = process_tree.marked(found)
    assert starter == process_tree.Process.of(os.getpid())
    first = f"{Path(sys.executable).parent}:" if is_own else ""
    assert found["PATH"] == first + plain["PATH"]


@pytest.mark.parametrize("name", ["accelerate.yaml", "my 'own' file.yaml"])
def test_the_users_accelerate_config_is_passed_on(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("num_processes: 2\nnum_machines: 1\n")
    words = command({}, accelerate_config=str(tmp_path / name))
    assert value(words, "--config_file") == str(tmp_path / name)
    assert "--num_processes" not in words


def test_the_users_accelerate_config_sets_processes_and_machines(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("num_processes: 4\nnum_machines: 2\n")
    words = command({}, num_processes=1, accelerate_config=str(tmp_path / "own.yaml"))
    assert words[:2] == ["srun", "--nodes=2"]
    assert value(words, "--num_machines") == "2"
    assert value(words, "--num_cpu_threads_per_process") == "2"  # 4 threads for 2 processes


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "device"])
def test_an_accelerate_config_that_is_not_a_file_is_named(tmp_path: Path, kind: str) -> None:
    """A pipe would hold the workflow, /dev/zero would fill the memory."""
    path = tmp_path / "own.yaml"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"train\.accelerate_config: {path} "):
        command({}, accelerate_config=str(path))


@pytest.mark.parametrize(("num_processes", "are_several"), [(1, False), (2, True)])
def test_multi_gpu_is_passed_for_several_processes(num_processes: int, are_several: bool) -> None:
    """Without --multi_gpu accelerate starts a single process."""
    assert ("--multi_gpu" in command({}, num_processes=num_processes)) == are_several


def test_a_single_machine_requests_a_gpu_per_process() -> None:
    assert machines("auto", num_processes=4, num_machines=1) == Machines(gpu=4)
    assert machines("cpu", num_processes=4, num_machines=1) == Machines()


def test_each_of_several_machines_requests_its_share_of_the_gpus() -> None:
    expected = Machines(None, gres="gpu:4", nodes=2, tasks=2, tasks_per_gpu=0, mpi="srun")
    assert machines("cuda", num_processes=8, num_machines=2) == expected
    assert machines("cpu", num_processes=8, num_machines=2).gres is None


def checked(monkeypatch: pytest.MonkeyPatch, srun: str | None, **train: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: srun)
    alone = {"num_processes": 1, "num_machines": 1}
    experiments: dict[str, Any] = {"alone": alone, "one": {}}
    config = Config(manifest="m", base_model="b", codec="c", train=train, experiments=experiments)
    check_launches(config.model_dump(by_alias=True))


def test_processes_that_do_not_divide_evenly_among_machines_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked(monkeypatch, "/usr/bin/srun", num_processes=4, num_machines=2)
    with pytest.raises(UserError, match=r"num_processes is 3 and train\.num_machines is 2"):
        checked(monkeypatch, "/usr/bin/srun", num_processes=3, num_machines=2)


def test_several_machines_need_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    checked(monkeypatch, None, num_processes=4)
    with pytest.raises(UserError, match="srun"):
        checked(monkeypatch, None, num_processes=4, num_machines=2)


@pytest.mark.parametrize(
    ("exit_code", "told"),
    [(None, "sinfo is missing"), (0, None), (1, "the controller is down"), (7, "exit code 7")],
)
def test_an_unresponsive_slurm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int | None, told: str | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if exit_code is not None:
        says = "echo more >&2; echo the controller is down >&2; " if exit_code == 1 else ""
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{says}exit {exit_code}\n")
        (tmp_path / "sinfo").chmod(0o755)
    with nullcontext() if told is None else pytest.raises(UserError, match=told):
        check_slurm()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, 3), ("", 0), ("-1", 0), ("1", 1), ("0, 2", 2), ("GPU-aa,GPU-bb,GPU-cc,GPU-dd", 3)],
)
def test_only_visible_gpus_of_the_driver_are_counted(
    tmp_path: Path, visible: str | None, expected: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert num_gpus_here(tmp_path, variables) == expected
