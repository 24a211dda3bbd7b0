"""Launching of jobs: processes, GPUs, the command and its environment."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from higgs_pipe.errors import UserError
from higgs_pipe.planning import bases, process_tree
from higgs_pipe.planning.bounds import MAX_CONFIG_BYTES
from higgs_pipe.planning.user_files import UnfitFileError, read_file

DEVICES = Path("/dev")


class Machines(NamedTuple):
    """Resources that a training requests from a scheduler; None: not requested.

    Attributes:
        gpu: GPUs of a training on one machine.
        gres: GPUs of each of several machines, as Slurm writes them: ``gpu:4``.
        nodes: Number of machines, if there are several.
        tasks: Launchers, one per machine.
        tasks_per_gpu: 0, or Snakemake's plugin would request all tasks for each GPU.
        mpi: ``srun``, because the job's own command starts its tasks, not the plugin.
    """

    gpu: int | None = None
    gres: str | None = None
    nodes: int | None = None
    tasks: int | None = None
    tasks_per_gpu: int | None = None
    mpi: str | None = None


def train_setting(config: Mapping[str, Any], experiment: str, key: str) -> Any:
    """Return a top-level key of ``train``, overridden by this experiment if it sets it."""
    return {**config["train"], **config["experiments"][experiment]}[key]


def overrides_text(config: Mapping[str, Any], experiment: str) -> str:
    """Return the overrides of ``train`` by an experiment, as JSON text."""
    changes = bases.without_base(config["experiments"][experiment])
    return json.dumps(changes, sort_keys=True, allow_nan=False)


def num_gpus(device: str, num_processes: int = 1) -> int | None:
    """Return the number of GPUs that a job requests, one per process; None without any.

    Snakemake drops a resource that is None. With 0, some of its executors would still send the job
    to a GPU queue.
    """
    return None if device == "cpu" or num_processes == 0 else num_processes


def num_gpus_here(devices: Path = DEVICES, variables: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs of this machine that jobs may use; 0 if it has none.

    Args:
        devices: The folder in which Nvidia's driver shows each GPU as a file, ``nvidia0`` ....
        variables: Environment variables, of which ``CUDA_VISIBLE_DEVICES`` may name fewer.
    """
    found = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.iterdir())
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    names = [name.strip() for name in visible.split(",")]
    return min(found, len([name for name in names if name not in ("", "-1")]))


def machines(device: str, num_processes: int, num_machines: int) -> Machines:
    """Return the resources that a training requests from a scheduler.

    Args:
        device: ``train.device``; with ``cpu`` it requests no GPU.
        num_processes: Processes over all machines, a multiple of their number.
        num_machines: Machines.
    """
    if num_machines == 1:
        return Machines(gpu=num_gpus(device, num_processes))
    return Machines(
        gres=None if device == "cpu" else f"gpu:{num_processes // num_machines}",
        nodes=num_machines,
        tasks=num_machines,
        tasks_per_gpu=0,
        mpi="srun",
    )


def runs_speech_models(config: Mapping[str, Any]) -> bool:
    """Return whether validation runs speech models, which need memory and may use a GPU."""
    models = config["validate"]["speech_models"]
    return any(models[name] is not None for name in ("asr", "quality", "speaker"))


def launch_settings(config: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """Return the launch settings of one experiment's training.

    Returns:
        ``num_processes`` and ``num_machines``, and the other settings of ``train`` that
        :func:`launch_command` takes. If ``accelerate_config`` is set, the numbers are from that
        file.

    Raises:
        UserError: That file cannot be read or does not give these numbers.
    """
    keys = ("num_processes", "num_machines", "main_process_ip", "main_process_port")
    settings = {key: train_setting(config, experiment, key) for key in keys}
    path = train_setting(config, experiment, "accelerate_config")
    if path is not None:
        try:
            given = yaml.safe_load(read_file(Path(path), MAX_CONFIG_BYTES))
            settings |= {key: int(given[key]) for key in ("num_processes", "num_machines")}
        except (OSError, UnfitFileError) as error:
            fact = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
            raise UserError(f"train.accelerate_config: {path} {fact}") from None
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"train.accelerate_config: {path} is not a file of `accelerate config` with "
                f"num_processes and num_machines ({error!r})"
            ) from None
    return settings | {"accelerate_config": path}


def check_launches(config: Mapping[str, Any]) -> None:
    """Check that the training of each experiment can be started.

    Raises:
        UserError: An ``accelerate config`` file cannot be used, the processes cannot be divided
            among the machines, or several machines are requested and ``srun`` is missing.
    """
    for experiment in config["experiments"]:
        settings = launch_settings(config, experiment)
        processes, machines = settings["num_processes"], settings["num_machines"]
        if processes % machines:
            raise UserError(
                f"train.num_processes is {processes} and train.num_machines is {machines} "
                f"(experiment {experiment}). Each machine runs the same number of processes: set "
                f"num_processes to a multiple of {machines}."
            )
        if machines > 1 and shutil.which("srun") is None:
            raise UserError(
                f"train.num_machines is {machines} (experiment {experiment}), and there is no "
                "srun here to start processes on other machines. Run the workflow on a Slurm "
                "cluster with --workflow-profile profiles/slurm, or set train.num_machines: 1."
            )


def check_slurm() -> None:
    """Check that Slurm responds; it does so within some 10 seconds, or never.

    Raises:
        UserError: It does not, or its commands are missing.
    """
    try:
        asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "Slurm's commands are not here (sinfo is missing). Run this on a machine that submits "
            "jobs, such as a login node."
        ) from None
    if asked.returncode != 0:
        fact = asked.stderr.strip().splitlines()[-1:] or [f"exit code {asked.returncode}"]
        raise UserError(
            f"Slurm does not answer: {fact[0]}. Nothing was submitted. When `sinfo` lists "
            "partitions again, run the same command; finished results are kept."
        )


def launch_command(
    num_processes: int,
    num_threads: int,
    config_path: Path,
    num_machines: int = 1,
    main_process_ip: str | None = None,
    main_process_port: int | None = None,
    accelerate_config: str | None = None,
) -> str:
    """Return the command of ``accelerate launch`` with its options, up to the module.

    It gives every option that Accelerate would otherwise guess, and a file of defaults: without it,
    one in the user's home folder would silently change the run. Mixed precision is "no" because the
    base is cast once, by ``train.dtype``; autocast would cast it, and the adapter, at every call.

    Args:
        num_processes: Processes to start, over all machines.
        num_threads: CPU threads of all processes on one machine.
        config_path: ``workflow/accelerate.yaml``.
        num_machines: Number of machines; with several, ``srun`` starts the launcher on each.
        main_process_ip: Address of the first machine; None: the launcher asks Slurm.
        main_process_port: Port of the first machine; None: any free one, or with several machines
            one that the launcher derives from Slurm's job number.
        accelerate_config: The user's own file, which replaces the other settings.
    """
    # A task of `srun` has one core unless it is told, whatever the job has.
    srun = (
        f"srun --nodes={num_machines} --ntasks={num_machines} --ntasks-per-node=1 "
        f"--cpus-per-task={num_threads}"
    )
    launcher = f"{srun} python" if num_machines > 1 else "python"
    threads_per_process = max(1, num_threads * num_machines // num_processes)
    options = [
        f"--config_file {shlex.quote(accelerate_config or str(config_path))}",
        f"--num_cpu_threads_per_process {threads_per_process}",
    ]
    if accelerate_config is None:
        options += [
            f"--num_processes {num_processes} --num_machines {num_machines}",
            "--mixed_precision no --dynamo_backend no",
        ]
        if num_processes > 1:
            options.append("--multi_gpu")  # which also starts CPU processes
            # Port 0 takes a free one, so that launches on one machine do not collide.
            port = 0 if main_process_port is None and num_machines == 1 else main_process_port
            if port is not None:
                options.append(f"--main_process_port {port}")
        if main_process_ip is not None:
            options.append(f"--main_process_ip {shlex.quote(main_process_ip)}")
    elif num_machines > 1:
        options.append(f"--num_machines {num_machines}")  # the launcher reads its rank from Slurm
    return " ".join([f"{launcher} -m higgs_pipe.training.launch", *options])


def environment(root: Path, in_own_environment: bool) -> str:
    """Return the prefix of every job's shell command, which sets its environment.

    Args:
        root: The checkout; jobs import ``higgs_pipe`` from it, even in a conda environment.
        in_own_environment: Jobs run in Snakemake's own environment rather than conda's. Its
            folder then comes first in PATH: ``.venv/bin/snakemake`` works without activation.
    """
    variables: dict[str, str] = {"PYTHONPATH": str(root)}
    process_tree.mark(variables)  # the job ends when this process does
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    # Bars of several jobs would overwrite each other; the stages log how far they are.
    words.append('HF_HUB_DISABLE_PROGRESS_BARS="${HF_HUB_DISABLE_PROGRESS_BARS:-1}"')
    if in_own_environment:
        words.append(f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    return f"export {' '.join(words)};"
