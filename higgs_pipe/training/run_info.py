"""When, where and with which code an adapter is trained."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import higgs_pipe
from higgs_pipe.config.stages import TrainStage
from higgs_pipe.data.files import write_json
from higgs_pipe.data.results import write_hashed
from higgs_pipe.higgs.adapter_files import Ancestor
from higgs_pipe.training.results import RunInfo

PACKAGES = ("torch", "torchaudio", "transformers", "peft", "accelerate", "pyarrow", "soundfile")


def write_run(
    output_dir: Path,
    info: RunInfo,
    stage: TrainStage,
    trainable_parameters: Mapping[str, int],
    checked: Mapping[str, Any],
) -> None:
    """Write everything known about a run before its first step.

    Args:
        output_dir: Gets ``run.json``, ``config.json``, ``trainable_parameters.json`` and
            ``preflight.json``.
        info: When, where and with which code it runs.
        stage: The settings.
        trainable_parameters: Their number by part of the model.
        checked: The findings of the pre-flight.
    """
    info.write(output_dir / "run.json")
    write_hashed(output_dir / "config.json", stage.model_dump(by_alias=True))
    write_json(output_dir / "trainable_parameters.json", trainable_parameters)
    write_hashed(output_dir / "preflight.json", checked)


def run_info(device: torch.device, num_processes: int, ancestor: Ancestor | None = None) -> RunInfo:
    """Describe a run that starts now.

    Args:
        device: The device of this process.
        num_processes: Number of processes of the run.
        ancestor: The adapter that it continues from; None: a new one.
    """
    machine = processor()
    if device.type == "cuda":
        machine = f"{num_processes} × {torch.cuda.get_device_name(device)}"
    return RunInfo(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        num_processes=num_processes,
        higgs_pipe=higgs_pipe.__version__,
        git_commit=git_commit(),
        packages=package_versions(),
        ancestor=ancestor,
    )


def processor() -> str:
    """Return the processor's model and its number of cores."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    if not models:
        return platform.processor() or platform.machine()
    return f"{models[0]}, {len(models)} cores"


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect the numbers."""
    return {package: metadata.version(package) for package in PACKAGES}


def git_commit() -> str | None:
    """Return the commit of this code, with ``-dirty`` if modified; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None
