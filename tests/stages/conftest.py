"""What the tests of stages share."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from higgs_pipe.reporting import audio


@pytest.fixture(scope="session", autouse=True)
def _each_waveform_is_encoded_once() -> Iterator[None]:
    """Cache Opus encodings: they take half the time of a report, and reports share recordings."""
    encode = audio.opus
    made: dict[tuple[bytes, int], bytes] = {}

    def encode_once(mono: npt.NDArray[np.float32], rate_hz: int) -> bytes:
        key = mono.tobytes(), rate_hz
        if key not in made:
            made[key] = encode(mono, rate_hz)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "opus", encode_once)
        yield
