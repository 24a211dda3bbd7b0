"""Audio embedded in the page: Ogg Opus as a data URI, and the outline of the waveform."""

import base64
import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile as sf

from higgs_pipe.data.audio_formats.ogg import CHECKSUM, ogg_checksum, ogg_pages
from higgs_pipe.errors import UserError

OPUS_COMPRESSION = 0.92  # about 32 kbit/s for mono at 24 kHz
NUM_BARS = 96  # of a waveform as long as the row's longest


@dataclass(frozen=True)
class Player:
    """A recording of the page; ``outline`` is an SVG path in a box of 96 x 32."""

    source: str
    seconds: float
    outline: str


def read_player(path: Path, longest_seconds: float | None, rule: str) -> Player:
    """Read a WAV for the page.

    Args:
        path: The file.
        longest_seconds: Length at the full width of the outline; None: that of the recording.
        rule: The rule that makes the file.

    Raises:
        UserError: The file is missing, unreadable or cut off.
    """
    return make_player(*read_wav(path, rule), longest_seconds)


def read_wav(path: Path, rule: str) -> tuple[npt.NDArray[np.float32], int]:
    """Return the samples (n,) of a mono WAV that a stage has written, and their rate.

    Args:
        path: The file.
        rule: The rule that makes it.

    Raises:
        UserError: The file is missing, unreadable or cut off.
    """
    try:
        samples, rate_hz = sf.read(path, dtype="float32", always_2d=True)
        with wave.open(str(path)) as file:
            num_declared = file.getnframes()
    except (sf.LibsndfileError, wave.Error, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_rerun(rule)}") from None
    if len(samples) != num_declared:
        fact = f"{path} is cut off: it declares {num_declared:,} samples and holds {len(samples):,}"
        raise UserError(f"{fact}; {_rerun(rule)}")
    return samples.mean(axis=1), rate_hz


def _rerun(rule: str) -> str:
    return f"run: snakemake --forcerun {rule}"


def make_player(
    mono: npt.NDArray[np.float32], rate_hz: int, longest_seconds: float | None
) -> Player:
    """Return samples (n,) for the page, at a rate that Opus has; see :func:`read_player`."""
    seconds = len(mono) / rate_hz
    return Player(
        source="data:audio/ogg;base64," + base64.b64encode(opus(mono, rate_hz)).decode(),
        seconds=seconds,
        outline=outline(mono, round(NUM_BARS * seconds / (longest_seconds or seconds or 1.0))),
    )


def opus(mono: npt.NDArray[np.float32], rate_hz: int) -> bytes:
    """Encode samples as Ogg Opus; equal samples give equal bytes.

    libsndfile draws a random serial number for the stream; it is replaced by 1 (RFC 3533, section
    6).
    """
    stream = io.BytesIO()
    sf.write(
        stream, mono, rate_hz, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION
    )
    encoded = stream.getvalue()
    pages = []
    for found in ogg_pages(encoded):
        page = bytearray(encoded[found.place : found.place + found.num_bytes])
        page[14:18] = (1).to_bytes(4, "little")
        page[CHECKSUM] = bytes(4)
        page[CHECKSUM] = ogg_checksum(page).to_bytes(4, "little")
        pages.append(page)
    return b"".join(pages)


def outline(mono: npt.NDArray[np.float32], num_bars: int) -> str:
    """Draw the peaks of a waveform as vertical bars, one unit apart, around y = 16."""
    peaks = [float(np.abs(part).max(initial=0)) for part in np.array_split(mono, max(num_bars, 1))]
    heights = [max(0.5, round(15 * min(1.0, peak), 1)) for peak in peaks]
    return "".join(f"M{x + 0.5:g} {16 - h:g}v{2 * h:g}" for x, h in enumerate(heights))
