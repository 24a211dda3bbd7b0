"""The processes of a training run: how they join, and the message when one is lost."""

import importlib.util
import os
import re
import shutil
import signal
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import LostProcessError, SilentProcessError, UserError
from higgs_pipe.higgs.devices import pick_device
from higgs_pipe.planning.interruption import SAME_SIGNAL_SECONDS

LOGS = "logs"
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")

# Messages of gloo and NCCL when the other side is gone or silent; gloo has no exception class.
TIMED_OUT = re.compile(r"timed ?out", re.IGNORECASE)
EXCHANGE_FAILED = re.compile(r"gloo|NCCL|TCPStore|Connection (closed|reset)|Timed out waiting")


def make_accelerator(settings: TrainConfig, output_dir: Path) -> Accelerator:
    """Join the other processes that ``accelerate launch`` started.

    Raises:
        UserError: The launch shards the model or mixes precisions, or the tracker's package is
            not installed.
    """
    _refuse_sharding_and_mixed_precision()
    tracker = None if settings.tracker == "none" else settings.tracker
    if tracker is not None and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"train.tracker: {tracker} is not installed. Run: pip install {tracker}, or set "
            "train.tracker: none."
        )
    device = pick_device(settings.device)
    return Accelerator(
        cpu=device.type == "cpu",
        log_with=tracker,
        project_dir=output_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=settings.timeout_seconds))
        ],
    )


def _refuse_sharding_and_mixed_precision() -> None:
    """Check the launcher's environment before Accelerate reads it."""
    for kind in SHARDING:
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true":
            raise UserError(
                f"the launch asks for {kind}, which shards the model; here each process holds "
                "all of it. In train.accelerate_config set distributed_type to MULTI_GPU or 'NO'; "
                "if memory is short, leave train.rows_per_micro_batch at auto."
            )
    mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed_precision != "no":
        raise UserError(
            f"the launch asks for mixed precision {mixed_precision}; here train.dtype casts the "
            "base once and the adapter stays in float32. In train.accelerate_config set "
            "mixed_precision: 'no'."
        )


def start_tracker(
    accelerator: Accelerator, settings: TrainConfig, output_dir: Path, done: int
) -> None:
    """Start the curves after step ``done``, in ``output_dir/logs``; a new run clears it."""
    if done == 0 and accelerator.is_main_process:
        shutil.rmtree(output_dir / LOGS, ignore_errors=True)
    if settings.tracker == "tensorboard":
        options: dict[str, Any] = {"purge_step": done + 1}  # redraw steps that a kill lost
        accelerator.init_trackers(LOGS, init_kwargs={"tensorboard": options})
    elif settings.tracker == "wandb":
        (output_dir / LOGS).mkdir(exist_ok=True)
        options = {"dir": str(output_dir / LOGS), "name": output_dir.parent.name}
        config = settings.model_dump(mode="json")
        accelerator.init_trackers("higgs-pipe", config, init_kwargs={"wandb": options})


def from_main_process(value: Any) -> Any:
    """Return the main process's ``value`` on every process."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


@contextmanager
def lost_process_named(accelerator: Accelerator, timeout_seconds: float) -> Iterator[None]:
    """Turn a failed exchange with another process into a message.

    Raises:
        LostProcessError: Instead of gloo's or NCCL's error.
        SilentProcessError: Instead of a timeout.
    """
    try:
        yield
    except RuntimeError as error:
        is_exchange = isinstance(error, torch.distributed.DistError) or EXCHANGE_FAILED.search(
            str(error)
        )
        if accelerator.num_processes == 1 or not is_exchange:
            raise
        reason = str(error).strip().splitlines()[0]
        remedy = "Run snakemake again: training resumes from its last checkpoint, which is intact."
        if TIMED_OUT.search(reason):
            raise SilentProcessError(
                "another process did not answer for train.timeout_seconds = "
                f"{timeout_seconds:g} s ({reason}). {remedy}"
            ) from error
        raise LostProcessError(f"another process ended ({reason}). {remedy}") from error


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGHUP in a list; they no longer end the process.

    SIGHUP stays ignored under ``nohup``.

    A second signal within 10 seconds counts as the first: a launcher passes on signals that Slurm
    or a terminal also sends to every process. A later one ends the process at once.
    """
    caught: list[int] = []
    first_at = 0.0

    def catch(number: int, _: types.FrameType | None) -> None:
        nonlocal first_at
        if not caught:
            first_at = time.monotonic()
        elif time.monotonic() - first_at > SAME_SIGNAL_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)
        caught.append(number)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous: dict[int, Any] = {number: signal.signal(number, catch) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
