"""Recordings in containers that libsndfile lacks, decoded whole by FFmpeg's libraries (PyAV).

FFmpeg skips the samples that a container tells it to skip: the delay of an AAC or Opus encoder,
edit lists, the padding after the last frame. The result is what a player plays, from its first
sample on. A raw stream (``.aac``, ``.amr``) does not declare its delay and keeps it.
"""

import errno
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from higgs_pipe.errors import UserError
from higgs_pipe.planning.bounds import MAX_DECODED_BYTES

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

MAX_BYTES_IN_MEMORY = 2**24  # longer recordings go to a temporary file
# Temporary files of one process: 12 hours of mono at 48 kHz. They have no name, so that a killed
# process leaves none.
MAX_BYTES_ON_DISK = 2**33
MAX_FRAME_SAMPLES = 2048  # of AAC with spectral band replication
MAX_SECONDS_OFF = 0.1  # length and timestamps of some containers are only this exact


class Container(NamedTuple):
    """A kind of file: the bytes that identify it, its name, and FFmpeg's name for it."""

    place: int
    sign: bytes
    name: str
    demuxer: str
    declares_length: bool = True


CONTAINERS = (
    *(
        Container(4, sign, "MPEG-4 (.m4a, .mp4, .3gp)", "mov")
        for sign in (b"ftyp", b"moov", b"mdat", b"wide")
    ),
    Container(0, b"\x1aE\xdf\xa3", "WebM or Matroska", "matroska"),
    Container(0, b"0&\xb2u\x8ef\xcf\x11", "Windows Media (.wma)", "asf"),
    Container(0, b"#!AMR", "AMR", "amr", declares_length=False),
    *(
        Container(0, sign, "AAC", "aac", declares_length=False)
        for sign in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9")
    ),
    Container(0, b"caff", "Core Audio (.caf)", "caf"),
    Container(0, b"wvpk", "WavPack", "wv"),
    Container(8, b"AVI ", "AVI", "avi"),
)


FileKey = tuple[Path, int, int]  # path, size in bytes, modification time in ns


class DecodingError(Exception):
    """A file that cannot be decoded; the message is a predicate."""


@dataclass(frozen=True)
class Decoded:
    """All samples of a recording: (num_samples, num_channels), int16 or float32; full scale is 1.

    Those of a long recording are mapped from an unnamed temporary file.
    """

    samples: npt.NDArray[Any]
    sample_rate_hz: int
    encoding: str  # container and codec as FFmpeg names them: MOV AAC


def container_of(beginning: bytes) -> Container | None:
    """Return the kind of a file by its first 16 bytes, or None if another library reads it."""
    return next(
        (kind for kind in CONTAINERS if beginning.startswith(kind.sign, kind.place)),
        None,
    )


def decode_container(path: Path, kind: Container) -> Decoded:
    """Return a decoded recording; a long one is kept for later segments.

    Raises:
        DecodingError: PyAV is not installed; or the file holds no audio or several streams, is cut
            off or damaged, or its parts do not follow each other.
        UserError: The temporary folder is full.
    """
    state = path.stat()
    return _RECENT.get((path, state.st_size, state.st_mtime_ns), kind)


class _Recent:
    """The long recordings that were decoded last; each is decoded by one thread."""

    def __init__(self) -> None:
        self._lock = Lock()  # of the two dictionaries
        self._locks: WeakValueDictionary[FileKey, Lock] = WeakValueDictionary()
        self._kept: dict[FileKey, Decoded] = {}  # the oldest first

    def get(self, key: FileKey, kind: Container) -> Decoded:
        """Return a recording, decoded if it is not kept."""
        with self._lock:
            lock_of_file = self._locks.setdefault(key, Lock())
        with lock_of_file:
            with self._lock:
                kept = self._kept.pop(key, None)
            decoded = kept or _decode(key[0], kind)
            if decoded.samples.nbytes > MAX_BYTES_IN_MEMORY:
                with self._lock:
                    self._kept[key] = decoded
                    self._drop_oldest()
        return decoded

    def _drop_oldest(self) -> None:
        while len(self._kept) > 1 and self._num_bytes() > MAX_BYTES_ON_DISK:
            del self._kept[next(iter(self._kept))]

    def _num_bytes(self) -> int:
        return sum(decoded.samples.nbytes for decoded in self._kept.values())


_RECENT = _Recent()


def _decode(path: Path, kind: Container) -> Decoded:
    try:
        import av
    except ImportError:
        raise DecodingError(
            f"is {kind.name}, which libsndfile cannot read and PyAV can (pip install av); or "
            f"convert it: ffmpeg -i {quote(path.name)} {quote(path.stem + '.wav')}"
        ) from None
    try:
        with (
            av.open(str(path), format=kind.demuxer, metadata_errors="replace") as container,
            tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY) as samples,
        ):
            stream = _only_stream(container)
            first, num_bytes = _write_frames(container, stream, samples)
            array = _as_array(samples, num_bytes, first)
            rate = first.sample_rate
            if kind.declares_length:
                array = _checked(array, _declared_samples(container, stream, rate), rate, kind)
            encoding = f"{kind.demuxer} {stream.codec_context.name}".upper()
            return Decoded(array, rate, encoding)
    except av.FFmpegError as error:
        raise DecodingError(
            f"is {kind.name} and cannot be decoded to its end ({error.strerror})"
        ) from None
    except OSError as error:  # of the temporary file
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{tempfile.gettempdir()} has no room for the samples of {path}; free some, or name "
            "another folder for temporary files by the variable TMPDIR."
        ) from None


def _only_stream(container: "InputContainer") -> "AudioStream":
    if len(container.streams.audio) != 1:
        raise DecodingError(
            f"holds {len(container.streams.audio)} audio streams; save one as WAV or FLAC"
        )
    return container.streams.audio[0]


def _write_frames(
    container: "InputContainer", stream: "AudioStream", samples: IO[bytes]
) -> tuple["AudioFrame", int]:
    """Write the samples of all frames, and check that each frame follows the one before.

    Returns:
        The first frame, whose rate and channels are those of all, and the number of bytes.
    """
    first: AudioFrame | None = None
    num_samples, num_bytes = 0, 0
    for frame in _frames(container, stream):
        if first is None:
            first = frame
            _check_start(container, stream, first)
        if (frame.sample_rate, frame.layout.nb_channels) != (
            first.sample_rate,
            first.layout.nb_channels,
        ):
            raise DecodingError("changes its sample rate or channels midway")
        if frame.pts is not None and first.pts is not None:
            seconds = (frame.pts - first.pts) * float(stream.time_base or 0)
            gap_seconds = seconds - num_samples / first.sample_rate
            if abs(gap_seconds) > MAX_SECONDS_OFF:
                raise DecodingError(f"has a gap of {gap_seconds:.1f} s at {seconds:.1f} s")
        num_bytes += samples.write(_samples_of(frame).tobytes())
        num_samples += frame.samples
        if num_bytes > MAX_DECODED_BYTES:
            hours = num_samples / first.sample_rate / 3600
            raise DecodingError(f"takes more than {MAX_DECODED_BYTES:,} bytes in {hours:.1f} h")
    if first is None:
        raise DecodingError("holds no samples")
    return first, num_bytes


def _check_start(container: "InputContainer", stream: "AudioStream", first: "AudioFrame") -> None:
    """Check that audio starts where the file does, because segment times may refer to a video."""
    if first.pts is None or container.start_time is None:
        return
    late_seconds = first.pts * float(stream.time_base or 0) - container.start_time / 1e6
    if late_seconds > MAX_SECONDS_OFF:
        raise DecodingError(
            f"begins with a gap: its audio starts {late_seconds:.1f} s after its video"
        )


def _frames(container: "InputContainer", stream: "AudioStream") -> Iterator["AudioFrame"]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise DecodingError("is cut off or damaged")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DecodingError("is damaged")
            yield frame


def _samples_of(frame: "AudioFrame") -> npt.NDArray[Any]:
    """Return the samples of a frame: (num_samples, num_channels), int16 or float32."""
    if frame.format.name.startswith("s64"):
        raise DecodingError("holds integers of 64 bits; save it as WAV or FLAC")
    array = frame.to_ndarray()  # planar (num_channels, num_samples), or packed (1, all)
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    if array.dtype in (np.int16, np.float32):
        return cast("npt.NDArray[Any]", array)
    samples = array.astype(np.float32)
    if array.dtype == np.uint8:
        return samples / 128 - 1
    return samples if array.dtype == np.float64 else samples / np.float32(2**31)


def _as_array(samples: IO[bytes], num_bytes: int, first: "AudioFrame") -> npt.NDArray[Any]:
    dtype, num_channels = _samples_of(first).dtype, first.layout.nb_channels
    if num_bytes > MAX_BYTES_IN_MEMORY:
        samples.flush()
        return np.memmap(samples, dtype, mode="r").reshape(-1, num_channels)
    samples.seek(0)
    return np.frombuffer(samples.read(), dtype).reshape(-1, num_channels)


def _declared_samples(
    container: "InputContainer", stream: "AudioStream", rate_hz: int
) -> float | None:
    """Return the length that a container declares for its audio; None if it declares none."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base * rate_hz)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6 * rate_hz  # in microseconds
    return None


def _checked(
    samples: npt.NDArray[Any], declared: float | None, rate_hz: int, kind: Container
) -> npt.NDArray[Any]:
    """Return the samples that a container declares, without the padding of the last frame.

    Raises:
        DecodingError: There are fewer.
    """
    if declared is None:
        return samples
    if len(samples) < declared - MAX_SECONDS_OFF * rate_hz:
        raise DecodingError(
            f"is cut off: it declares {declared / rate_hz:.2f} s and holds "
            f"{len(samples) / rate_hz:.2f} s"
        )
    is_padding = 0 < len(samples) - declared <= MAX_FRAME_SAMPLES
    return samples[: round(declared)] if kind.demuxer == "mov" and is_padding else samples
