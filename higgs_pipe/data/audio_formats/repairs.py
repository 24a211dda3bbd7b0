"""Files with what their headers leave out filled in, so that libsndfile reads all of them."""

import io
import struct
from pathlib import Path

import soundfile as sf

from higgs_pipe.data.audio_formats.completeness import BYTE_ORDERS
from higgs_pipe.data.audio_formats.mp3 import mp3_length_is_a_guess, mp3_with_length
from higgs_pipe.data.audio_formats.ogg import opus_with_rate

MAX_CHUNK_NUM_BYTES = 2**32 - 2**16


def repaired(path: Path, file: sf.SoundFile) -> io.BytesIO | None:
    """Return a file with its length or rate in the header; None if libsndfile needs no help.

    Args:
        path: The file.
        file: The same file, open.
    """
    if file.format == "MP3" and mp3_length_is_a_guess(path, file.frames):
        return mp3_with_length(path)
    if file.format in ("WAV", "WAVEX") and file.frames == 0:
        return wav_with_length(path)
    if file.subtype == "OPUS":
        return opus_with_rate(path)
    return None


def wav_with_length(path: Path) -> io.BytesIO | None:
    """Return a WAV that declares no length, with its length filled in; None for any other file.

    Writers to a pipe cannot go back to their header and leave 0 there. What follows is audio to
    its end, unless it begins like another chunk.
    """
    content = path.read_bytes()
    place = content.find(b"data\0\0\0\0", 12)
    audio = content[place + 8 :]
    is_chunk = all(32 <= byte < 127 for byte in audio[:4])
    if place < 0 or place % 2 or is_chunk or not audio.strip(b"\0"):
        return None
    order = BYTE_ORDERS.get(content[:4], "<")  # an ID3 tag can be in front
    size = struct.pack(f"{order}I", min(len(audio), MAX_CHUNK_NUM_BYTES))
    return io.BytesIO(content[: place + 4] + size + audio)
