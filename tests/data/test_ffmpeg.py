"""Containers that libsndfile cannot read: every sample of the recording is decoded."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from data.test_bad_audio import measured, measured_file
from data.test_fuzz import FUZZ, SPLICES, Splices, spliced
from helpers import files_of_at_most
from hypothesis import given

from higgs_pipe.data.audio import AudioError, decode, read_header
from higgs_pipe.data.audio_formats import ffmpeg
from higgs_pipe.errors import UserError

Samples = npt.NDArray[np.float32]


def speech(rate_hz: int, seconds: float = 3.0, num_channels: int = 1) -> Samples:
    """Noise below 2 kHz in bursts, another one in each channel: (num_samples, num_channels)."""
    num_samples = round(seconds * rate_hz)
    noise = np.random.default_rng(0).standard_normal((num_samples, num_channels))
    spectrum = np.fft.rfft(noise, axis=0)
    spectrum[round(2000 * seconds) :] = 0
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * np.arange(num_samples) / rate_hz)
    smooth = np.fft.irfft(spectrum, num_samples, axis=0) * envelope[:, None]
    return np.asarray(0.3 * smooth / np.abs(smooth).max(), np.float32)


def write(
    path: Path,
    codec: str,
    samples: Samples,
    rate_hz: int,
    sample_format: str | None = None,
    gap_seconds: float = 0.0,
    options: dict[str, str] | None = None,
    title: str = "",
) -> Path:
    """Encode samples, with a gap in the frame timestamps after half of them."""
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update({"title": title} if title else {})
        stream = cast("av.AudioStream", container.add_stream(codec, rate_hz))
        stream.layout = layout
        if sample_format:
            stream.format = sample_format
        resampler = av.AudioResampler(stream.format, layout, rate_hz)
        stream.codec_context.open()
        step = stream.codec_context.frame_size or 1024
        for start in range(0, len(samples), step):
            block = np.ascontiguousarray(samples[start : start + step].T)
            frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
            frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
            leap = gap_seconds if 2 * start > len(samples) else 0
            frame.pts = start + round(leap * rate_hz)
            for resampled in resampler.resample(frame):
                container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return path


def lag_of(found: Samples, expected: Samples) -> int:
    """Return the delay in samples of ``found``, from the peak of the correlation."""
    num_bins = 2 * max(len(found), len(expected))
    spectrum = np.fft.rfft(found, num_bins) * np.conj(np.fft.rfft(expected, num_bins))
    lag = int(np.argmax(np.fft.irfft(spectrum, num_bins)))
    return lag if lag <= num_bins // 2 else lag - num_bins


# Name, codec, rate; the most by which the length may be off, and the delay that a raw stream keeps.
LOSSY = [
    ("a.m4a", "aac", 44_100, 45, 0),
    ("a.m4a", "aac", 16_000, 17, 0),
    ("a.mp4", "aac", 48_000, 49, 0),
    ("a.3gp", "aac", 22_050, 23, 0),
    ("a.mov", "aac", 32_000, 33, 0),
    ("a.webm", "libopus", 48_000, 0, 0),
    ("a.mka", "libopus", 48_000, 0, 0),
    ("a.mka", "libopus", 24_000, 0, 0),
    ("a.aac", "aac", 44_100, 2047, 1024),
    ("a.amr", "libopencore_amrnb", 8_000, 319, 40),
]


@pytest.mark.parametrize(("name", "codec", "rate_hz", "num_off", "delay"), LOSSY)
def test_lossy_recordings_start_and_end_where_their_source_does(
    tmp_path: Path, name: str, codec: str, rate_hz: int, num_off: int, delay: int
) -> None:
    samples = speech(rate_hz)
    path = write(tmp_path / name, codec, samples, rate_hz)
    with pytest.raises(sf.LibsndfileError):
        sf.info(path)
    found = decode(path)
    if codec == "libopus":  # which decodes to 48 kHz
        samples = speech(rate_hz).repeat(48_000 // rate_hz, axis=0)
        rate_hz = 48_000
    assert found.sample_rate_hz == rate_hz
    assert abs(len(found.samples) - len(samples)) <= num_off
    assert lag_of(found.samples[:, 0], samples[:, 0]) == pytest.approx(delay, abs=1)
    heard = found.samples[delay : delay + len(samples) - 2000, 0]
    likeness = np.corrcoef(heard, samples[: len(heard), 0])[0, 1]
    assert likeness > (0.5 if name == "a.amr" else 0.9)  # AMR is made for speech alone
    assert read_header(path).num_samples == len(found.samples)


@pytest.mark.parametrize(
    ("name", "codec", "sample_format"),
    [("a.m4a", "alac", "s16p"), ("a.mka", "flac", "s16"), ("a.wv", "wavpack", "s16p")],
)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_lossless_recording_has_the_samples_and_hash_of_its_wav(
    tmp_path: Path, name: str, codec: str, sample_format: str, num_channels: int
) -> None:
    samples = np.round(speech(24_000, num_channels=num_channels) * 2**15) / np.float32(2**15)
    sf.write(tmp_path / "a.wav", samples, 24_000, subtype="PCM_16")
    path = write(tmp_path / name, codec, samples, 24_000, sample_format)
    found = decode(path)
    assert np.array_equal(found.samples, samples)
    assert found.pcm_sha256 == decode(tmp_path / "a.wav").pcm_sha256
    assert found.samples.dtype == np.float32


def test_8_bit_samples_are_read(tmp_path: Path) -> None:
    samples = speech(24_000)
    found = decode(write(tmp_path / "a.mka", "pcm_u8", samples, 24_000)).samples
    assert np.abs(found - samples).max() < 1 / 127


@pytest.mark.parametrize("codec", ["libopus", "pcm_s16le"])
def test_a_recording_without_a_declared_length_is_read_whole(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path / "a.mka", codec, speech(48_000), 48_000, options={"live": "1"})
    assert decode(path).samples.shape == (144_000, 1)


@pytest.mark.parametrize("num_bytes_in_memory", [ffmpeg.MAX_BYTES_IN_MEMORY, 1000])
def test_a_segment_equals_that_part_of_the_whole(
    tmp_path: Path, num_bytes_in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ffmpeg, "MAX_BYTES_IN_MEMORY", num_bytes_in_memory)
    path = write(tmp_path / "a.m4a", "aac", speech(44_100, num_channels=2), 44_100)
    whole = decode(path).samples
    part = decode(path, 0.5, 1.25).samples
    assert part.shape == (33_075, 2)
    assert np.array_equal(part, whole[22_050:55_125])


def test_a_long_recording_is_decoded_once_for_all_its_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ffmpeg, "MAX_BYTES_IN_MEMORY", 1000)
    decoded: list[Path] = []

    def counted(path: Path, kind: ffmpeg.Container, of: Any = ffmpeg._decode) -> Any:
        decoded.append(path)
        return of(path, kind)

    monkeypatch.setattr(ffmpeg, "_decode", counted)
    path = write(tmp_path / "a.m4a", "aac", speech(16_000), 16_000)
    for start in range(4):
        decode(path, start / 2, start / 2 + 0.5)
    assert decoded == [path]
    write(path, "aac", speech(16_000, seconds=4), 16_000)
    assert decode(path).duration_seconds == pytest.approx(4, abs=0.01)


def test_a_kept_recording_is_that_of_the_same_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, keys = tmp_path / "a.m4a", []
    recent = SimpleNamespace(get=lambda key, _: keys.append(key))
    monkeypatch.setattr(ffmpeg, "_RECENT", recent)
    for content, time_ns in ((b"aa", 10**9), (b"aa", 10**9), (b"aa", 10**9 + 1), (b"a", 10**9)):
        path.write_bytes(content)
        os.utime(path, ns=(time_ns, time_ns))
        ffmpeg.decode_container(path, ffmpeg.CONTAINERS[0])
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_only_the_most_recent_long_recordings_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = ffmpeg._Recent()
    monkeypatch.setattr(ffmpeg, "_RECENT", recent)
    monkeypatch.setattr(ffmpeg, "MAX_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(ffmpeg, "MAX_BYTES_ON_DISK", 450_000)  # two of the recordings
    for name in ("a.m4a", "b.m4a", "c.m4a"):
        decode(write(tmp_path / name, "aac", speech(16_000), 16_000))
    assert [key[0].name for key in recent._kept] == ["b.m4a", "c.m4a"]


def test_a_recording_that_decodes_to_too_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.m4a", "aac", speech(16_000), 16_000)
    monkeypatch.setattr(ffmpeg, "MAX_DECODED_BYTES", 50_000)
    with pytest.raises(AudioError, match="50,000"):
        decode(path)


def test_a_full_temporary_folder_is_a_user_error_that_names_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.m4a", "aac", speech(16_000), 16_000)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda _: full)
        with pytest.raises(UserError, match=r"a\.m4a; .*TMPDIR"):
            decode(path)


def test_other_errors_of_the_temporary_file_are_not_blamed_on_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.m4a", "aac", speech(16_000), 16_000)
    monkeypatch.setattr(ffmpeg, "MAX_BYTES_IN_MEMORY", 1000)
    with files_of_at_most(10_000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        decode(path)


def test_a_title_that_is_not_utf_8_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.m4a", "aac", speech(16_000), 16_000, title="Größe")
    expected = decode(path).samples
    content = path.read_bytes()
    assert content.count("Größe".encode()) == 1
    path.write_bytes(content.replace("Größe".encode(), "Größe  ".encode("latin-1")))
    assert np.array_equal(decode(path).samples, expected)


FUZZED = [("a.m4a", "aac"), ("a.webm", "libopus"), ("a.mov", "alac")]


@pytest.mark.parametrize(("name", "codec"), FUZZED)
@FUZZ
@given(splices=SPLICES)
def test_arbitrary_bytes_in_a_container_raise_only_an_audio_error(
    name: str, codec: str, splices: Splices
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(spliced(sound(name, codec), splices))
        with suppress(AudioError):
            decode(path)


@cache
def sound(name: str, codec: str) -> bytes:
    """A whole file."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder, name), codec, speech(48_000, seconds=0.5), 48_000).read_bytes()


# --- Rejected -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.m4a", "aac", {}),
        ("a.m4a", "aac", {"movflags": "faststart"}),
        ("a.m4a", "aac", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.m4a", "alac", {}),
        ("a.webm", "libopus", {}),
        ("a.aac", "aac", {}),
        ("a.amr", "libopencore_amrnb", {}),
    ],
)
@pytest.mark.parametrize("share", [0.11, 0.5, 0.9])
def test_a_truncated_file_is_unreadable(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], share: float
) -> None:
    rate_hz = {"libopus": 48_000, "libopencore_amrnb": 8_000}.get(codec, 44_100)
    path = write(tmp_path / name, codec, speech(rate_hz), rate_hz, options=options)
    assert measured_file(path)["reason"] is None
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content)) | 1])  # not between two frames
    row = measured_file(path)
    assert (row["reason"], row["peak"], row["audio_sha256"]) == ("audio_unreadable", None, None)
    assert str(path) in row["fact"]


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus")])
def test_damaged_audio_in_a_container_is_unreadable(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, codec, speech(48_000), 48_000)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (
        len(content) // 2 - len(content) // 3
    )
    path.write_bytes(content)
    assert measured_file(path)["reason"] == "audio_unreadable"


def test_a_damaged_ac_3_frame_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mka", "ac3", speech(48_000), 48_000)
    content = bytearray(path.read_bytes())
    decode(path)
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.mka is damaged$"):
        decode(path)


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(22_050, 1), (44_100, 2)])
def test_a_stream_that_changes_rate_or_channels_is_refused(
    tmp_path: Path, rate_hz: int, num_channels: int
) -> None:
    path = write(tmp_path / "a.aac", "aac", speech(44_100), 44_100)
    samples = speech(rate_hz, num_channels=num_channels)
    other = write(tmp_path / "b.aac", "aac", samples, rate_hz)
    path.write_bytes(path.read_bytes() + other.read_bytes())
    with pytest.raises(AudioError, match=r"a\.aac changes its sample rate or channels"):
        read_header(path)


def test_a_stream_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.amr").write_bytes(b"#!AMR\n")
    with pytest.raises(AudioError, match=r"a\.amr holds no samples$"):
        read_header(tmp_path / "a.amr")


def test_a_gap_in_the_timestamps_is_reported_with_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", "libopus", speech(48_000), 48_000, gap_seconds=0.5)
    with pytest.raises(AudioError, match=r"a\.webm .* 0\.5 s at 2\.0 s$"):
        read_header(path)


@pytest.mark.parametrize(("off_seconds", "gap"), [(-0.09, None), (-0.2, "-0.2"), (0.2, "0.2")])
def test_a_frame_must_begin_where_the_one_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, off_seconds: float, gap: str | None
) -> None:
    layout = SimpleNamespace(nb_channels=1)
    frames = [
        SimpleNamespace(pts=pts, samples=500, sample_rate=1000, layout=layout)
        for pts in (0, 500 + round(1000 * off_seconds))
    ]
    stream: Any = SimpleNamespace(time_base=Fraction(1, 1000))
    container: Any = SimpleNamespace(start_time=None)
    monkeypatch.setattr(ffmpeg, "_frames", lambda *_: frames)
    monkeypatch.setattr(ffmpeg, "_samples_of", lambda _: np.zeros((500, 1), np.int16))
    with io.BytesIO() as samples:
        if gap is None:
            first, num_bytes = ffmpeg._write_frames(container, stream, samples)
            assert (first.pts, num_bytes) == (0, 2000)
        else:
            with pytest.raises(ffmpeg.DecodingError, match=rf"a gap of {gap} s at "):
                ffmpeg._write_frames(container, stream, samples)


def test_a_packet_marked_as_damaged_is_refused() -> None:
    packet = SimpleNamespace(is_corrupt=True, decode=list)
    container: Any = SimpleNamespace(demux=lambda _: [packet])
    stream: Any = None
    with pytest.raises(ffmpeg.DecodingError, match="is cut off or damaged"):
        list(ffmpeg._frames(container, stream))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int16, [-16_384, 8192]),
        (np.float32, [-0.5, 0.25]),
        (np.float64, [-0.5, 0.25]),
        (np.uint8, [64, 160]),
        (np.int32, [-(2**30), 2**29]),
    ],
)
@pytest.mark.parametrize("is_planar", [False, True])
def test_samples_of_every_width_keep_their_level_and_order(
    dtype: Any, values: list[float], is_planar: bool
) -> None:
    """Three samples of two channels, of -0.5 or 0.25 of full scale."""
    low, high = values
    samples = np.array([[low, high], [high, low], [low, low]], dtype)
    frame: Any = SimpleNamespace(
        format=SimpleNamespace(name="any", is_planar=is_planar),
        layout=SimpleNamespace(nb_channels=2),
        to_ndarray=lambda: samples.T if is_planar else samples.reshape(1, 6),
    )
    found = ffmpeg._samples_of(frame)
    assert found.dtype == (np.int16 if dtype is np.int16 else np.float32)
    full_scale = 2**15 if dtype is np.int16 else 1
    assert np.array_equal(found / full_scale, [[-0.5, 0.25], [0.25, -0.5], [-0.5, -0.5]])


@pytest.mark.parametrize(
    ("duration", "total", "num_streams", "expected"),
    [(250, 9_000_000, 1, 500), (None, 2_000_000, 1, 2000), (None, 2_000_000, 2, None)],
)
def test_the_length_of_a_file_counts_only_if_it_has_no_other_stream(
    duration: int | None, total: int, num_streams: int, expected: float | None
) -> None:
    """In ticks of 2 ms, at 1,000 Hz; that of the file is in microseconds."""
    stream: Any = SimpleNamespace(duration=duration, time_base=Fraction(1, 500))
    container: Any = SimpleNamespace(duration=total, streams=[None] * num_streams)
    assert ffmpeg._declared_samples(container, stream, 1000) == expected


@pytest.mark.parametrize(
    ("demuxer", "num_samples", "kept"),
    [("mov", 4048, 2000), ("mov", 4049, 4049), ("matroska", 4048, 4048), ("mov", 1901, 1901)],
)
def test_what_fills_the_last_frame_of_an_mpeg_4_file_is_cut_off(
    demuxer: str, num_samples: int, kept: int
) -> None:
    """2,000 samples are declared; up to 2,048 may fill a frame, and 100 be missing."""
    kind = ffmpeg.Container(0, b"", "", demuxer)
    samples = np.arange(num_samples)[:, None]
    found = ffmpeg._checked(samples, 2000.4, 1000, kind)
    assert np.array_equal(found, samples[:kept])


def test_unsupported_sample_formats_are_refused(tmp_path: Path) -> None:
    described = struct.pack(">d4s5I", 24_000, b"lpcm", 2, 8, 1, 1, 64)
    chunks = ((b"desc", described), (b"data", bytes(4 + 8 * 24_000)))
    content = b"".join(name + struct.pack(">q", len(chunk)) + chunk for name, chunk in chunks)
    (tmp_path / "a.caf").write_bytes(b"caff\0\1\0\0" + content)
    with pytest.raises(AudioError, match=r"a\.caf holds integers of 64 bits"):
        read_header(tmp_path / "a.caf")


def test_audio_that_starts_after_its_video_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("mpeg4", 5, width=64, height=64)
        audio = container.add_stream("pcm_s16le", 24_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.ones((1, 24_000), "i2"), "s16", "mono")
        sound.sample_rate, sound.pts = 24_000, 36_000
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode(None))
        container.mux(audio.encode(sound))
    with pytest.raises(AudioError, match=r"a\.mkv begins with a gap: .* 1\.5 s after its video$"):
        read_header(tmp_path / "a.mkv")


def test_a_file_and_its_audio_may_both_start_late() -> None:
    """The file starts at 2 s; its audio 0.05 s or 0.2 s later."""
    container: Any = SimpleNamespace(start_time=2_000_000)
    stream: Any = SimpleNamespace(time_base=Fraction(1, 1000))
    first: Any = SimpleNamespace(pts=2050)
    ffmpeg._check_start(container, stream, first)
    first.pts = 2200
    with pytest.raises(ffmpeg.DecodingError, match=r"starts 0\.2 s after its video"):
        ffmpeg._check_start(container, stream, first)


def test_a_recording_missing_less_than_1_percent_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mka", "pcm_s16le", speech(16_000, seconds=30), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[:-6400])  # 0.2 s
    with pytest.raises(AudioError, match=r"a\.mka is cut off: it declares 30\.0"):
        read_header(path)


def streams(path: Path, kinds: Sequence[str]) -> Path:
    """A container with a second of silence or of a black picture per stream."""
    with av.open(str(path), "w") as container:
        added: list[Any] = []
        for kind in kinds:
            is_audio = kind == "aac"
            options: dict[str, Any] = (
                {"layout": "mono"} if is_audio else {"width": 64, "height": 64}
            )
            added.append(container.add_stream(kind, 24_000 if is_audio else 5, **options))
        for stream in added:
            frame: Any = av.VideoFrame(64, 64, "yuv420p")
            if isinstance(stream, av.AudioStream):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), "fltp", "mono")
                frame.sample_rate = 24_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kinds", [["mpeg4"], ["aac", "aac"]])
def test_a_file_without_exactly_one_audio_stream_is_refused(
    tmp_path: Path, kinds: list[str]
) -> None:
    path = streams(tmp_path / "a.mp4", kinds)
    with pytest.raises(AudioError, match=rf"a\.mp4 holds {kinds.count('aac')} audio streams"):
        read_header(path)


def test_audio_next_to_a_picture_stream_is_read(tmp_path: Path) -> None:
    assert read_header(streams(tmp_path / "a.mp4", ["mpeg4", "aac"])).sample_rate_hz == 24_000


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MPEG-4"),
        (b"\x1aE\xdf\xa3" + bytes(12), "WebM"),
        (b"0&\xb2u\x8ef\xcf\x11" + bytes(8), "Windows Media"),
        (b"#!AMR\n" + bytes(10), "AMR"),
        (b"\xff\xf1P\x80" + bytes(12), "AAC"),
    ],
)
def test_without_the_decoder_the_error_names_the_type_and_a_command(
    tmp_path: Path, content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "my clip.m4a").write_bytes(content)
    with pytest.raises(AudioError, match=rf" is {kind}.* ffmpeg -i 'my clip\.m4a' 'my clip\.wav'$"):
        read_header(tmp_path / "my clip.m4a")


def test_segments_have_the_same_measures_alone_and_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", "libopus", speech(48_000), 48_000)
    segments = [(str(path), k / 2, (k + 1) / 2) for k in range(4)]
    together = measured(tmp_path, *segments)
    assert together == [measured(tmp_path, segment)[0] for segment in segments]
    assert [row["duration_seconds"] for row in together] == [0.5] * 4
    assert {row["encoding"] for row in together} == {"MATROSKA OPUS"}
