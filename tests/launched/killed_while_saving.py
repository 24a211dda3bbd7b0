"""Train, and send SIGKILL to itself when half of the checkpoint of step 16 is written."""

import os
import signal
from pathlib import Path

import torch

from higgs_pipe import train
from higgs_pipe.cli import main

whole = torch.save


def half_of_one(content: dict, path: Path) -> None:
    whole(content, path)
    if content["state"]["progress"]["step"] == 16:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


torch.save = half_of_one  # type: ignore[assignment]  # as checkpoints call it
main(train.run)
