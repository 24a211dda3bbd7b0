"""Random bytes: readers of manifests and recordings read them or report what is wrong."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from helpers import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from higgs_pipe import measure
from higgs_pipe.config.settings import ManifestEntry, MeasureConfig
from higgs_pipe.data import audio
from higgs_pipe.data.audio import AudioError, decode
from higgs_pipe.data.manifests.formats import READERS
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.errors import UserError

MANIFESTS = ROOT / "examples" / "manifests"
FUZZ = settings(max_examples=40, deadline=None, derandomize=True)

# Where, as a share of the file; how many bytes go; what comes in their place.
SPLICES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff" * 8, b'"', b"\n"]
            ),
            st.sampled_from(
                [b"NaN", b"1e999", b"-1", b"null", b"[]", b"{", b"\\ud800", b"|", b"\t"]
            ),
        ),
    ),
    min_size=1,
    max_size=5,
)
Splices = list[tuple[float, int, bytes]]


def spliced(content: bytes, splices: Splices) -> bytes:
    changed = bytearray(content)
    for share, length, piece in splices:
        start = round(share * len(changed))
        changed[start : start + length] = piece
    return bytes(changed)


# --- Manifests ------------------------------------------------------------------------------------


@cache
def examples(name: str) -> dict[str, bytes]:
    """The files of a format's example, by their names."""
    if name == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"audio": ["a.wav", "b.wav"], "text": ["A.", "B."]}), sink)
        return {"m.parquet": sink.getvalue().to_pybytes()}
    paths = (path for path in (MANIFESTS / name).iterdir() if path.name != "twin.jsonl")
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def read(folder: Path, name: str) -> None:
    """Read every file of a folder, and the folder, as a format and by detection."""
    for path in (folder, *folder.iterdir()):
        for forced in (name, "auto"):
            try:
                manifest = read_manifests([ManifestEntry(path=str(path), format=forced)])
            except UserError as error:
                str(error).encode()
            else:
                json.dumps([row.text for row in manifest.rows]).encode()


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(splices=SPLICES, choice=st.integers(0, 9))
def test_a_corrupted_example_is_read_or_refused(name: str, splices: Splices, choice: int) -> None:
    files = examples(name)
    chosen = sorted(files)[choice % len(files)]
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            changed = spliced(content, splices) if file == chosen else content
            (Path(folder) / file).write_bytes(changed)
        read(Path(folder), name)


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file in examples(name):
            (Path(folder) / file).write_bytes(content)
        read(Path(folder), name)


# --- Recordings -----------------------------------------------------------------------------------

ENCODINGS = {
    "a.wav": ("WAV", "PCM_16"),
    "24.wav": ("WAVEX", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "adpcm.wav": ("WAV", "MS_ADPCM"),
    "gsm.wav": ("WAV", "GSM610"),
    "a.flac": ("FLAC", "PCM_16"),
    "a.ogg": ("OGG", "VORBIS"),
    "a.opus": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.aiff": ("AIFF", "PCM_16"),
}


@cache
def recording(name: str) -> bytes:
    """A fifth of a second of noise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        container, subtype = ENCODINGS[name]
        noise = 0.1 * np.random.default_rng(0).standard_normal(1600)
        sf.write(path, noise, 8000, format=container, subtype=subtype)
        return path.read_bytes()


def check(path: Path) -> None:
    """Measure the whole file, its beginning and a part of it."""
    recordings = [
        {"audio_path": str(path), "start_seconds": start, "end_seconds": end}
        for start, end in ((None, None), (0.0, 0.1), (0.05, 0.12))
    ]
    for row in measure._measure_file(recordings, MeasureConfig(), None):
        measures = [value for value in row.values() if isinstance(value, float)]
        assert (row["reason"] is None) == (row["peak"] is not None)
        assert np.isfinite(measures).all()


@pytest.mark.parametrize("name", ENCODINGS)
@settings(FUZZ, max_examples=100)
@given(splices=SPLICES, in_header=st.booleans())
@example(splices=[(0.15625, 1, b"\xff\xfe"), (0.03125, 0, b"\0")], in_header=True)  # an empty MP3
def test_a_corrupted_recording_is_measured_or_has_a_reason(
    name: str, splices: Splices, in_header: bool
) -> None:
    content = recording(name)
    num_changed = 100 if in_header else len(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(spliced(content[:num_changed], splices) + content[num_changed:])
        check(path)


@settings(FUZZ, max_examples=100)
@given(
    start=st.sampled_from(
        [b"", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]
    ),
    content=st.binary(max_size=300),
)
def test_arbitrary_bytes_are_measured_or_have_a_reason(start: bytes, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        path.write_bytes(start + content)
        check(path)


def test_a_segment_of_too_many_samples_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.flac").write_bytes(recording("a.flac"))
    monkeypatch.setattr(audio, "MAX_SEGMENT_SAMPLES", 1000)
    with pytest.raises(AudioError, match=r"1,600 .* 1,000"):
        decode(tmp_path / "a.flac")
    assert decode(tmp_path / "a.flac", 0.1).duration_seconds == pytest.approx(0.1)


def test_a_header_that_declares_terabytes_allocates_only_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "MAX_SEGMENT_SAMPLES", 2**62)
    content = bytearray(recording("a.flac"))
    # STREAMINFO: 20 bits of rate, 3 of channels, 5 of depth, 36 of samples.
    stream_info = int.from_bytes(content[18:26], "big")
    content[18:26] = (stream_info | (2**36 - 2)).to_bytes(8, "big")
    (tmp_path / "a.flac").write_bytes(content)
    assert sf.info(tmp_path / "a.flac").frames * 4 > 2**37
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"is cut off|cannot be decoded"):
        decode(tmp_path / "a.flac")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
