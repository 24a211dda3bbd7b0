"""Files made of chunks, each with its name and size: WAV, RF64, Wave64, AIFF and Core Audio."""

import struct
from pathlib import Path
from typing import NamedTuple

SIZE_IN_DS64 = 0xFFFFFFFF
WAVE64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
TAGS = (b"ID3", b"TAG", b"APET")  # without a chunk around them


class ChunkLayout(NamedTuple):
    """Layout of the chunks in one kind of file."""

    first_place: int
    header: struct.Struct  # of a chunk: its name, its size
    audio_name: bytes  # of the chunk that holds the audio
    step: int = 2  # chunks begin at its multiples
    counts_header: bool = False  # the size counts name and size, too


RIFF = ChunkLayout(12, struct.Struct("<4sI"), b"data")
# By the first four bytes.
LAYOUTS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"RIFX": ChunkLayout(12, struct.Struct(">4sI"), b"data"),
    b"FORM": ChunkLayout(12, struct.Struct(">4sI"), b"SSND"),
    b"caff": ChunkLayout(8, struct.Struct(">4sq"), b"data", step=1),
    b"riff": ChunkLayout(40, struct.Struct("<16sq"), WAVE64_DATA, step=8, counts_header=True),
}


class AudioChunk(NamedTuple):
    """The chunk that holds the audio."""

    place: int  # of its first byte behind name and size
    num_bytes: int  # as declared; negative in a file that was written to a pipe
    end: int  # where the last chunk of the file ends
    format: bytes  # the beginning of the ``fmt `` chunk of a WAV, or empty


def audio_chunk(path: Path) -> AudioChunk | None:
    """Return where the audio of a file lies; None for a file without chunks, or with a tag."""
    num_file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        layout = LAYOUTS.get(stream.read(4))
        if layout is None:
            return None
        place, audio, wav_format = layout.first_place, None, b""
        num_bytes_64, is_padded = SIZE_IN_DS64, False
        while place + layout.header.size <= num_file_bytes:
            stream.seek(place)
            name, num_bytes = layout.header.unpack(stream.read(layout.header.size))
            start = place + layout.header.size
            if layout.counts_header:
                num_bytes -= layout.header.size
            if audio and name.startswith(TAGS):
                return None
            if audio and not _is_chunk(layout, name, start + num_bytes, num_file_bytes):
                if not is_padded:
                    break
                place, is_padded = place - 1, False  # some writers leave the padding out
                continue
            if name == b"fmt " and layout is RIFF:
                wav_format = stream.read(16)
            elif name == b"ds64":
                num_bytes_64 = int.from_bytes(stream.read(16)[8:], "little")
            elif name == layout.audio_name:
                num_bytes = num_bytes_64 if num_bytes == SIZE_IN_DS64 else num_bytes
                audio = (start, num_bytes)
            if num_bytes < 0:
                break
            is_padded = layout.step == 2 and num_bytes % 2 == 1
            place = start + num_bytes + -num_bytes % layout.step
    return None if audio is None else AudioChunk(*audio, place, wav_format)


def _is_chunk(layout: ChunkLayout, name: bytes, end: int, num_file_bytes: int) -> bool:
    if layout.counts_header:  # names are of any bytes
        return end < num_file_bytes + layout.step
    return all(32 <= byte < 127 for byte in name)
