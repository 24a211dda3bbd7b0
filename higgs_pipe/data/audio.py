"""Audio files: headers, samples, and a hash that is equal for equal recordings."""

import hashlib
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile as sf

from higgs_pipe.data.audio_formats.completeness import end_fault, num_bytes_off, num_samples_of
from higgs_pipe.data.audio_formats.ffmpeg import (
    Decoded,
    DecodingError,
    container_of,
    decode_container,
)
from higgs_pipe.data.audio_formats.mp3 import MAX_FRAME_SAMPLES
from higgs_pipe.data.audio_formats.repairs import repaired
from higgs_pipe.planning.bounds import MAX_SEGMENT_SAMPLES

MAX_BLOCK_VALUES = 2**24  # samples of all channels that are read at once: 64 MiB
PCM_16_STEP = np.float32(2**-15)  # of 16-bit samples whose full scale is 1

# A file is cut off when it holds less than its header declares, by more than this. Some encoders
# of MP3 are a frame off, and the decoder may lack another.
MAX_SECONDS_MISSING = 0.01
MAX_MP3_SAMPLES_MISSING = 2 * MAX_FRAME_SAMPLES

# Lengths that writers to a pipe (ffmpeg, sox, espeak-ng) declare for an unknown length.
MIN_UNKNOWN_NUM_BYTES = 2**31 - 4096
MIN_UNKNOWN_NUM_SAMPLES = 2**62

# libsndfile's own log of a RIFF, AIFF or AU file whose data chunk ends early.
SHORT_CHUNK = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")

# How far a segment may reach beyond its file: times in manifests are rounded.
MAX_OVERHANG_SECONDS = 0.01


class AudioError(Exception):
    """An unusable audio file; the message states the fact."""


class AudioMissingError(AudioError):
    """A file that does not exist."""


class SegmentOutsideError(AudioError):
    """A segment that does not lie within its file."""


@dataclass(frozen=True)
class Header:
    """Header of an audio file; ``num_samples`` is per channel."""

    num_samples: int
    sample_rate_hz: int
    num_channels: int
    encoding: str  # container and encoding as libsndfile names them: WAV PCM_16

    @property
    def duration_seconds(self) -> float:
        """Declared length, in seconds."""
        return self.num_samples / self.sample_rate_hz

    def segment(self, start_seconds: float | None, end_seconds: float | None) -> tuple[int, int]:
        """Return the first sample of a segment and the one after its last; None is the file's own.

        Raises:
            SegmentOutsideError: It begins or ends outside the file, by more than rounding, or is
                shorter than a sample.
        """
        first = round((start_seconds or 0.0) * self.sample_rate_hz)
        end = self.num_samples
        if end_seconds is not None:
            end = round(end_seconds * self.sample_rate_hz)
        overhang = end - self.num_samples
        if first >= self.num_samples or overhang > MAX_OVERHANG_SECONDS * self.sample_rate_hz:
            shown_end = "its end" if end_seconds is None else f"{end_seconds:.3f} s"
            raise SegmentOutsideError(
                f"the segment from {start_seconds or 0:.3f} s to {shown_end} is not within the "
                f"{self.duration_seconds:.3f} s"
            )
        if end <= first:
            raise SegmentOutsideError(
                f"the segment from {start_seconds or 0:g} s to {end_seconds:g} s is shorter than a "
                f"sample at {self.sample_rate_hz:,} Hz"
            )
        return first, min(end, self.num_samples)


@dataclass(frozen=True)
class Audio:
    """Decoded audio: float32 (num_samples, num_channels); full scale is 1."""

    samples: npt.NDArray[np.float32]
    sample_rate_hz: int
    pcm_16: npt.NDArray[np.int16] | None = None  # the same samples, if the file holds 16 bits

    @property
    def duration_seconds(self) -> float:
        """Length of the samples, in seconds."""
        return len(self.samples) / self.sample_rate_hz

    @property
    def pcm_sha256(self) -> str:
        """Hash of the samples, by :func:`pcm_sha256`."""
        samples = self.samples if self.pcm_16 is None else self.pcm_16
        return pcm_sha256(samples, self.sample_rate_hz)


@dataclass
class AudioFile:
    """An open audio file: its header, and the samples of any segment."""

    path: Path
    header: Header
    file: sf.SoundFile | Decoded
    is_fresh: bool = True  # nothing read yet

    def decode(self, start_seconds: float | None = None, end_seconds: float | None = None) -> Audio:
        """Return the samples of the file or of a segment; nothing after it is decoded.

        Args:
            start_seconds: Start of the segment; None is the file's.
            end_seconds: End of the segment; None is the file's.

        Raises:
            SegmentOutsideError: The file does not hold the segment.
            AudioError: The file cannot be decoded to its end.
        """
        try:
            first, end = self.header.segment(start_seconds, end_seconds)
        except SegmentOutsideError as error:
            raise SegmentOutsideError(f"{self.path}: {error}") from None
        if (end - first) * self.header.num_channels > MAX_SEGMENT_SAMPLES:
            raise AudioError(
                f"{self.path} holds {end - first:,} samples in each of {self.header.num_channels} "
                f"channels, more than {MAX_SEGMENT_SAMPLES:,} in all"
            )
        if isinstance(self.file, Decoded):
            return self._audio(self.file.samples[first:end].copy())
        if not self.is_fresh:  # reopen: earlier reads change how an MP3 decodes
            return decode(self.path, start_seconds, end_seconds)
        self.is_fresh = False
        try:
            if first:
                self.file.seek(first)
            samples = self._read(self.file, end - first)
        except sf.LibsndfileError as error:
            detail = error.error_string.strip(" .") or f"libsndfile's error {error.code}"
            raise AudioError(f"{self.path} cannot be decoded to its end ({detail})") from None
        allowed = round(MAX_SECONDS_MISSING * self.header.sample_rate_hz)
        if self.file.format == "MP3":
            allowed = MAX_MP3_SAMPLES_MISSING
        _check_whole(self.path, len(samples), end - first, allowed, "samples")
        return self._audio(samples)

    def _audio(self, samples: npt.NDArray[Any]) -> Audio:
        rate = self.header.sample_rate_hz
        if samples.dtype == np.int16:
            return Audio(np.multiply(samples, PCM_16_STEP, dtype=np.float32), rate, samples)
        return Audio(samples, rate)

    def _read(self, file: sf.SoundFile, num_samples: int) -> npt.NDArray[Any]:
        """Read the next samples in blocks; a header may declare more than fits into memory."""
        # As 16 bits where the file holds those: the same samples, and WAV decodes faster.
        dtype = "int16" if file.subtype == "PCM_16" else "float32"
        max_block_samples = MAX_BLOCK_VALUES // self.header.num_channels
        blocks: list[npt.NDArray[Any]] = []
        while not blocks or (num_samples and len(blocks[-1]) == max_block_samples):
            block = file.read(min(num_samples, max_block_samples), dtype, always_2d=True)
            blocks.append(block)
            num_samples -= len(block)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


@contextmanager
def open_audio(path: Path) -> Iterator[AudioFile]:
    """Open an audio file, in any format, rate and number of channels.

    Raises:
        AudioMissingError: The file does not exist.
        AudioError: The file is empty, is not audio, is visibly cut off, or holds more audio than
            libsndfile would read of it.
    """
    file = _open(path)
    if isinstance(file, Decoded):
        num_samples, num_channels = file.samples.shape
        header = Header(num_samples, file.sample_rate_hz, num_channels, file.encoding)
        yield AudioFile(path, header, file)
        return
    with file:
        yield AudioFile(path, _header(path, file), file)


def read_header(path: Path) -> Header:
    """Return the header of an audio file without decoding; errors as for :func:`open_audio`."""
    with open_audio(path) as file:
        return file.header


def decode(
    path: Path, start_seconds: float | None = None, end_seconds: float | None = None
) -> Audio:
    """Return the samples of one segment; errors as for :meth:`AudioFile.decode`."""
    with open_audio(path) as file:
        return file.decode(start_seconds, end_seconds)


def pcm_sha256(
    samples: npt.NDArray[np.float32] | npt.NDArray[np.int16], sample_rate_hz: int
) -> str:
    """Return a hash of the sound itself, whatever the container.

    Args:
        samples: (num_samples, num_channels), finite; full scale is 1, or that of 16 bits.
        sample_rate_hz: Their rate.

    Returns:
        SHA-256, in hexadecimal, over the rate, the number of channels and the samples rounded to
        16 bits: equal for a recording as WAV and as FLAC.
    """
    if samples.dtype != np.int16:
        steps = samples / PCM_16_STEP
        np.rint(steps, out=steps)
        np.clip(steps, -32768, 32767, out=steps)
        samples = steps.astype(np.int16)
    digest = hashlib.sha256(f"{sample_rate_hz} {samples.shape[1]} ".encode())
    digest.update(samples.astype("<i2", order="C", copy=False).data)
    return digest.hexdigest()


def _open(path: Path) -> sf.SoundFile | Decoded:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise AudioError(f"{path} is not a file")
        with path.open("rb") as stream:
            beginning = stream.read(16)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioMissingError(f"{path} does not exist") from None
    except OSError as error:
        raise AudioError(f"{path} cannot be read ({error.strerror})") from None
    if not beginning:
        raise AudioError(f"{path} is empty (0 bytes)")
    if path.suffix.lower() == ".raw":  # soundfile would ask us for its rate and format
        raise AudioError(f"{path} has no header that gives its sample rate and format")
    try:
        file = sf.SoundFile(path)
        if content := repaired(path, file):
            file.close()
            file = sf.SoundFile(content)
        return file
    except sf.LibsndfileError:
        kind = container_of(beginning)
    if kind is None:
        # libsndfile's own message ("System error.") does not help; the first bytes do.
        raise AudioError(f"libsndfile cannot read {path} (it begins with {beginning!r})")
    try:
        return decode_container(path, kind)
    except DecodingError as error:
        raise AudioError(f"{path} {error}") from None


def _header(path: Path, file: sf.SoundFile) -> Header:
    if fault := end_fault(path, file):
        raise AudioError(f"{path} {fault}")
    if short_chunk := SHORT_CHUNK.search(file.extra_info):
        declared, present = (int(number) for number in short_chunk.groups())
        if declared < MIN_UNKNOWN_NUM_BYTES:
            _check_whole(path, present, declared, num_bytes_off(declared), "bytes of audio")
    if file.frames == 0:
        raise AudioError(f"{path} holds no samples")
    if file.frames >= MIN_UNKNOWN_NUM_SAMPLES:
        raise AudioError(f"{path} does not say how long it is (was it written to a pipe?)")
    encoding = f"{file.format} {file.subtype}"
    return Header(num_samples_of(path, file), file.samplerate, file.channels, encoding)


def _check_whole(path: Path, present: int, declared: int, allowed: float, unit: str) -> None:
    if present < max(declared - allowed, min(declared, 1)):
        raise AudioError(
            f"{path} is cut off: it declares {declared:,} {unit} and holds {present:,}"
        )
