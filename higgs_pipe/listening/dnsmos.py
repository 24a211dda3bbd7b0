"""DNSMOS P.835: quality of speech as listeners would rate it, 1 to 5, without a reference."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from higgs_pipe.errors import UserError

# As of version 1.29, it reports each process and each model to Microsoft, and keeps an ID of the
# machine, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
)

RATE_HZ = 16_000
WINDOW_SAMPLES = 144_160  # 9.01 s, what the model was trained on
# From the model's overall score to that of listeners, highest power first: Reddy, Gopal and Cutler
# (2022), as in the DNS Challenge's dnsmos_local.py.
OVERALL = (-0.06766283, 1.11546468, 0.04602535)


class Dnsmos:
    """The model ``sig_bak_ovr.onnx`` of the DNS Challenge.

    Args:
        setting: The config key that names it, for messages.
        path: The file.

    Raises:
        UserError: The file is not this model.
    """

    def __init__(self, setting: str, path: Path) -> None:
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise UserError(
                f"{setting} {str(path)!r} cannot be loaded: {error}\n{_ADVICE}"
            ) from None
        shapes = [node.shape for node in self._session.get_inputs()]
        if [shape[1:] for shape in shapes] != [[WINDOW_SAMPLES]]:
            raise UserError(f"{setting} {str(path)!r} takes inputs of {shapes}\n{_ADVICE}")

    def score(self, mono: npt.NDArray[np.float32]) -> float:
        """Return the overall quality of (N,), N > 0, at 16 kHz: mean over windows, one each second.

        Shorter audio is repeated to fill a window.
        """
        mono = np.clip(mono, -1, 1)
        while len(mono) < WINDOW_SAMPLES:
            mono = np.concatenate([mono, mono])
        num_windows = len(mono) // RATE_HZ - WINDOW_SAMPLES // RATE_HZ
        starts = RATE_HZ * np.arange(max(num_windows, 1))
        windows = [mono[start : start + WINDOW_SAMPLES] for start in starts]
        name = self._session.get_inputs()[0].name
        scores = [self._session.run(None, {name: window[None]})[0][0, 2] for window in windows]
        return float(np.polyval(OVERALL, np.array(scores, np.float64)).mean())


_ADVICE = "Give sig_bak_ovr.onnx, from DNSMOS/DNSMOS of the DNS Challenge's repository."
