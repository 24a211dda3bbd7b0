"""Choice of device and dtype."""

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from higgs_pipe.config.settings import Device, Dtype
from higgs_pipe.errors import UserError


def pick_device(setting: Device) -> torch.device:
    """Return the device of this process; ``auto`` is CUDA if there is a GPU.

    Raises:
        UserError: The setting is ``cuda`` and PyTorch sees no GPU, or there are fewer GPUs than
            processes on this machine.
    """
    if setting == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if setting == "cuda":
            raise UserError("device is 'cuda' but PyTorch sees no GPU here; set it to auto or cpu.")
        return torch.device("cpu")
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    num_gpus = torch.cuda.device_count()
    if num_processes > num_gpus:
        plural = "" if num_gpus == 1 else "s"
        raise UserError(
            f"{num_processes} processes were started on this machine, and PyTorch sees "
            f"{num_gpus} GPU{plural}. Set num_processes of train or eval to the number of "
            "GPUs; it changes the speed, not the result."
        )
    return torch.device("cuda")


def pick_dtype(setting: Dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of a model; ``auto`` is bfloat16 on a GPU that has it, else float32."""
    if setting == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return cast("torch.dtype", getattr(torch, setting))


@contextmanager
def claim_device(setting: Device) -> Iterator[torch.device]:
    """Claim a device, as :func:`pick_device`; among several GPUs, the one with the fewest jobs.

    Snakemake counts GPUs but does not assign them, so the jobs of a machine coordinate by locks.
    Under a scheduler that assigns GPUs, a job sees only its own one.

    Raises:
        UserError: The setting is ``cuda`` and PyTorch sees no GPU.
    """
    device = pick_device(setting)
    if device.type == "cpu":
        yield device
        return
    indices = range(torch.cuda.device_count())
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in indices]
    lock_dir = Path(tempfile.gettempdir()) / f"higgs-pipe-{os.getuid()}"
    with claim_least_used(uuids, lock_dir) as index:
        yield torch.device("cuda", index)


@contextmanager
def claim_least_used(names: Sequence[str], lock_dir: Path) -> Iterator[int]:
    """Claim one of ``names``: the first of those that the fewest other processes have claimed.

    A claim is a lock on the file of the name's first free slot. The operating system releases it
    when the process ends, even by a kill.

    Args:
        names: The same in every process.
        lock_dir: Folder for the lock files, on this machine.

    Yields:
        The index of the name, claimed until the block ends.
    """
    lock_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = ((slot, index) for slot in itertools.count() for index in range(len(names)))
    for slot, index in places:
        with (lock_dir / f"{names[index]}.{slot}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield index
            return
