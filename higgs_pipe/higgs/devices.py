"""Which device and number type to use."""

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from higgs_pipe.config.settings import Device, Dtype
from higgs_pipe.errors import UserError


def pick_device(setting: Device) -> torch.device:
    """The device of this process; ``auto`` is CUDA where there is a GPU.

    Raises:
        UserError: ``cuda`` is asked for and there is no GPU.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda' but PyTorch sees no GPU here; set it to auto or cpu.")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(setting: Dtype, device: torch.device) -> torch.dtype:
    """The type of the base model; ``auto`` is bfloat16 on a GPU that has it, else float32."""
    if setting == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype: torch.dtype = getattr(torch, setting)
    return dtype


@contextmanager
def own_device(setting: Device) -> Iterator[torch.device]:
    """As :func:`pick_device`, and of several GPUs the one that fewest of our jobs have.

    Snakemake counts GPUs but does not hand them out, so jobs of one machine agree among
    themselves. Where a scheduler hands them out, a job sees its own alone and takes that.

    Raises:
        UserError: ``cuda`` is asked for and there is no GPU.
    """
    device = pick_device(setting)
    if device.type == "cpu":
        yield device
        return
    indices = range(torch.cuda.device_count())
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in indices]
    lock_dir = Path(tempfile.gettempdir()) / f"higgs-pipe-{os.getuid()}"
    with least_taken(uuids, lock_dir) as index:
        yield torch.device("cuda", index)


@contextmanager
def least_taken(names: Sequence[str], lock_dir: Path) -> Iterator[int]:
    """Take one of ``names``, the first of those that fewest other processes have taken.

    A name is taken by a lock on the file of its first free slot. The system drops the lock when
    the process ends, however it ends, so nothing is ever left taken.

    Args:
        names: What there is to take, the same words in every process.
        lock_dir: Folder of this machine, where the locks lie.

    Yields:
        The index of the name, ours until the block ends.
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
