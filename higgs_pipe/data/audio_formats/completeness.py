"""Completeness of files: one may hold more or less than libsndfile reads of it.

libsndfile reads what a header declares, as far as it is there, and the first of several streams in
a file. In some formats it reads everything after the header, whatever was declared.
"""

import re
import struct
from functools import lru_cache
from pathlib import Path

import soundfile as sf

from higgs_pipe.data.audio_formats.chunks import AudioChunk, audio_chunk
from higgs_pipe.data.audio_formats.flac import flac_fault
from higgs_pipe.data.audio_formats.mp3 import mp3_fault
from higgs_pipe.data.audio_formats.ogg import ogg_fault

# Those of libsndfile whose end is known, from what a header declares or from the stream.
FORMATS = frozenset(
    {"WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "NIST", "FLAC", "OGG", "MP3"}
)
# Some writers are a few bytes off: so much, and such a share of the audio, may be too many or few.
MAX_NUM_BYTES_OFF = 1024
MAX_SHARE_OFF = 0.1
MAX_NUM_SAMPLES_OFF = 256

NUM_HEAD_BYTES = 4096
NUM_FILES_REMEMBERED = 4096
# The byte order, as ``struct`` writes it, by the first four bytes of a file.
BYTE_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"FORM": ">", b".snd": ">", b"dns.": "<"}
# Of encodings whose samples all have one size.
SAMPLE_NUM_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
WAV_FORMAT = struct.Struct("<HHIIHH")
UNCOMPRESSED = (1, 3, 0xFFFE)  # integers, floating point, either with more about the channels
NIST_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)


def end_fault(path: Path, file: sf.SoundFile) -> str | None:
    """Return what is missing or left over at the end of a file, as a predicate; None if nothing.

    Args:
        path: The file.
        file: The same file, open.
    """
    if file.format not in FORMATS or (
        file.format == "W64" and file.subtype not in SAMPLE_NUM_BYTES
    ):
        kind = f"{file.format_info}, {file.subtype_info}"
        return f"is {kind}, which does not show whether it is complete; convert it to WAV or FLAC"
    state = path.stat()
    return _end_fault(path, file.format, file.frames, state.st_size, state.st_mtime_ns)


def num_bytes_off(declared: int) -> float:
    """Return by how many bytes audio may differ from what is declared."""
    return min(MAX_NUM_BYTES_OFF, MAX_SHARE_OFF * declared)


def num_samples_of(path: Path, file: sf.SoundFile) -> int:
    """Return the samples per channel; libsndfile counts what follows the audio of a Wave64 file."""
    if file.format != "W64" or (audio := audio_chunk(path)) is None or audio.num_bytes <= 0:
        return int(file.frames)
    num_bytes = SAMPLE_NUM_BYTES[file.subtype] * file.channels
    return int(min(file.frames, audio.num_bytes // num_bytes))


@lru_cache(maxsize=NUM_FILES_REMEMBERED)  # a long recording is opened once per segment
def _end_fault(
    path: Path, container: str, num_samples: int, _num_bytes: int, _mtime_ns: int
) -> str | None:
    match container:
        case "WAV" | "WAVEX" if num_samples and b"data\0\0\0\0" in _head(path):
            return None  # ``repairs`` fills it in
        case "WAV" | "WAVEX" | "AIFF":
            return _chunks_fault(path, num_samples, checks_cut=False)
        case "RF64" | "W64" | "CAF":
            return _chunks_fault(path, num_samples, checks_cut=True)
        case "AU":
            return _behind_au_data(path)
        case "NIST":
            return _nist_fault(path, num_samples)
        case "FLAC":
            return flac_fault(path.read_bytes(), num_samples)
        case "OGG":
            return ogg_fault(path.read_bytes())
        case _:
            return mp3_fault(path, num_samples)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(NUM_HEAD_BYTES)


def _nist_fault(path: Path, num_samples: int) -> str | None:
    found = NIST_COUNT.search(_head(path))
    if found is None:
        return "does not say how long it is"
    declared = int(found[1])
    if abs(declared - num_samples) <= MAX_NUM_SAMPLES_OFF:
        return None
    cut_off = "is cut off: it " if num_samples < declared else ""
    return f"{cut_off}declares {declared:,} samples and holds {num_samples:,}"


def _behind_au_data(path: Path) -> str | None:
    with path.open("rb") as stream:
        order = BYTE_ORDERS[stream.read(4)]
        start, num_bytes = struct.unpack(f"{order}II", stream.read(8))
    return _behind(path, start + num_bytes, num_bytes)


def _chunks_fault(path: Path, num_samples: int, checks_cut: bool) -> str | None:
    """Check the format of a file of chunks, the end of its audio, and what follows its chunks.

    Args:
        path: The file.
        num_samples: What libsndfile would read.
        checks_cut: Whether libsndfile does not report audio that is cut off.
    """
    audio = audio_chunk(path)
    if audio is None or (audio.num_bytes <= 0 and num_samples):
        return None  # a tag, or a length that its writer did not know
    num_present = path.stat().st_size - audio.place
    if checks_cut and audio.num_bytes > num_present + num_bytes_off(audio.num_bytes):
        return (
            f"is cut off: it declares {audio.num_bytes:,} bytes of audio and holds {num_present:,}"
        )
    return _format_fault(audio) or _behind(path, audio.end, audio.num_bytes)


def _format_fault(audio: AudioChunk) -> str | None:
    """Return how a WAV header contradicts itself, if two values outvote a third; or None."""
    if len(audio.format) < WAV_FORMAT.size:
        return None
    kind, num_channels, rate_hz, byte_rate, frame_num_bytes, num_bits = WAV_FORMAT.unpack(
        audio.format
    )
    is_off = frame_num_bytes != num_channels * -(-num_bits // 8)
    if kind in UNCOMPRESSED and is_off and byte_rate == rate_hz * frame_num_bytes:
        return (
            f"contradicts itself: its header gives {num_bits} bits per sample, and "
            f"{frame_num_bytes} bytes to {num_channels} of them"
        )
    return None


def _behind(path: Path, place: int, num_audio_bytes: int) -> str | None:
    """Return how much follows the audio, from ``place`` on; None if it is little, or only zeros."""
    num_behind = path.stat().st_size - place
    if num_behind <= num_bytes_off(num_audio_bytes):
        return None
    with path.open("rb") as stream:
        stream.seek(place)
        while block := stream.read(2**20):
            if block.strip(b"\0"):
                return (
                    f"declares {num_audio_bytes:,} bytes of audio, and {num_behind:,} are behind "
                    "them"
                )
    return None
