"""Make the demo corpus: read sentences.tsv aloud with espeak-ng, write audio/ and manifest.jsonl.

Run it with the project's Python:  python examples/demo/make_corpus.py [--out DIR]

All arithmetic on samples is done on integers and the one random field of an Ogg stream is
replaced, so the same espeak-ng and libsndfile give the same bytes on every run.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile as sf  # type: ignore[import-untyped, unused-ignore]

Samples = npt.NDArray[np.int64]

HERE = Path(__file__).resolve().parent
LEAD_SECONDS = 0.05  # silence kept before the first sound
TAIL_SECONDS = 0.14  # silence kept after the last sound
SILENCE = 0.015  # a sample below this share of the clip's peak counts as silence


@dataclass(frozen=True)
class Speaker:
    """A voice: what espeak-ng is asked for, and how loud the clip becomes."""

    language: str
    voice: str  # espeak-ng voice and variant
    pitch: int  # 0 to 99
    speed: int  # words per minute
    peak: float  # the clip's loudest sample, as a share of full scale


@dataclass(frozen=True)
class Format:
    """A kind of audio file."""

    suffix: str
    container: str
    subtype: str
    rate: int
    stereo: bool = False


SPEAKERS = {
    "ada": Speaker("en", "en-us+f3", pitch=45, speed=165, peak=0.70),
    "ben": Speaker("en", "en-gb+m3", pitch=30, speed=150, peak=0.50),
    "clara": Speaker("de", "de+f2", pitch=78, speed=175, peak=0.60),
}

FORMATS = {
    "wav16": Format("wav", "WAV", "PCM_16", 16_000),
    "wav22": Format("wav", "WAV", "PCM_16", 22_050),
    "wav44s": Format("wav", "WAV", "PCM_16", 44_100, stereo=True),
    "flac22": Format("flac", "FLAC", "PCM_16", 22_050),
    "flac44": Format("flac", "FLAC", "PCM_16", 44_100),
    "ogg16": Format("ogg", "OGG", "VORBIS", 16_000),
    "ogg22": Format("ogg", "OGG", "VORBIS", 22_050),
}

SCENES = {
    "ada-002": "A small kitchen.",
    "ada-013": "A quiet room.",
    "ben-001": "A railway platform in the early morning.",
    "ben-016": "A quiet room.",
    "clara-005": "A bakery with few customers.",
    "clara-019": "A quiet room.",
}

REFERENCES = {"ada-019": "ada-004", "clara-017": "clara-011"}  # clip -> clip of the same speaker


def synthesise(espeak: str, speaker: Speaker, text: str) -> tuple[Samples, int]:
    """Speak one sentence; return its samples, trimmed and scaled to the speaker's peak."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = [espeak, "-b", "1", "-v", speaker.voice, "-w", str(wav)]
        command += ["-p", str(speaker.pitch), "-s", str(speaker.speed), text]
        subprocess.run(command, check=True)
        raw, rate = sf.read(wav, dtype="int16")
    samples = np.asarray(raw, dtype=np.int64)
    peak = int(np.abs(samples).max())
    sounding = np.flatnonzero(np.abs(samples) >= SILENCE * peak)
    start = max(0, int(sounding[0]) - round(LEAD_SECONDS * rate))
    stop = int(sounding[-1]) + round(TAIL_SECONDS * rate)
    return samples[start:stop] * round(speaker.peak * 32767) // peak, int(rate)


def resample(samples: Samples, old_rate: int, new_rate: int) -> Samples:
    """Change the sample rate with a windowed-sinc filter whose taps are rounded to integers."""
    if old_rate == new_rate:
        return samples
    common = math.gcd(old_rate, new_rate)
    up, down = new_rate // common, old_rate // common
    cutoff = 0.95 * min(1.0, new_rate / old_rate)
    reach = math.ceil(16 / cutoff)
    steps = np.arange(1 - reach, reach + 1)
    distance = steps[None, :] - np.arange(up)[:, None] / up
    window = np.cos(np.pi * distance / (2 * reach)) ** 2
    taps = np.rint(cutoff * np.sinc(cutoff * distance) * window * 2**16).astype(np.int64)
    position = np.arange(len(samples) * up // down) * down
    padded = np.pad(samples, reach)
    index = (position // up)[:, None] + steps[None, :] + reach
    filtered: Samples = (padded[index] * taps[position % up]).sum(axis=1) >> 16
    return filtered.clip(-32767, 32767)


def pan(samples: Samples) -> Samples:
    """Make two channels: the right one quieter and four samples later than the left one."""
    right = np.pad(samples, (4, 0))[: len(samples)] * 3 // 4
    return np.stack([samples, right], axis=1)


def _ogg_crc_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


OGG_CRC = _ogg_crc_table()


def fix_ogg_serial(path: Path, serial: int) -> None:
    """Replace the stream number, which libsndfile draws at random, in every page of an Ogg file."""
    data = bytearray(path.read_bytes())
    start = 0
    while start < len(data):
        segments = data[start + 26]
        body = start + 27 + segments
        stop = body + sum(data[start + 27 : body])
        data[start + 14 : start + 18] = serial.to_bytes(4, "little")
        data[start + 22 : start + 26] = bytes(4)
        crc = 0
        for byte in data[start:stop]:
            crc = ((crc << 8) & 0xFFFFFFFF) ^ OGG_CRC[(crc >> 24) ^ byte]
        data[start + 22 : start + 26] = crc.to_bytes(4, "little")
        start = stop
    path.write_bytes(data)


def write_clip(path: Path, fmt: Format, samples: Samples, rate: int) -> None:
    """Write one clip in its format."""
    samples = resample(samples, rate, fmt.rate)
    if fmt.stereo:
        samples = pan(samples)
    pcm = samples.astype(np.int16)
    sf.write(path, pcm, fmt.rate, format=fmt.container, subtype=fmt.subtype)
    if fmt.container == "OGG":
        fix_ogg_serial(path, zlib.crc32(path.name.encode()))


def make_corpus(espeak: str, out: Path) -> None:
    """Write every clip of sentences.tsv and the manifest below `out`."""
    lines = (HERE / "sentences.tsv").read_text(encoding="utf-8").splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    texts = {clip: text for clip, _, text in cells}
    paths = {clip: f"audio/{clip}.{FORMATS[name].suffix}" for clip, name, _ in cells}
    (out / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for clip, name, text in cells:
        who = clip.split("-")[0]
        samples, rate = synthesise(espeak, SPEAKERS[who], text)
        write_clip(out / paths[clip], FORMATS[name], samples, rate)
        row = {"id": clip, "audio": paths[clip], "text": text}
        row |= {"speaker": who, "language": SPEAKERS[who].language}
        if clip in SCENES:
            row["scene"] = SCENES[clip]
        if clip in REFERENCES:
            other = REFERENCES[clip]
            row |= {"ref_audio": paths[other], "ref_text": texts[other]}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    (out / "manifest.jsonl").write_text("".join(rows), encoding="utf-8", newline="\n")
    print(f"Wrote {len(rows)} clips and {out / 'manifest.jsonl'}.")


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description="Make the demo corpus with espeak-ng.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    out: Path = parser.parse_args().out
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        print("espeak-ng is not installed or not on PATH; install it first.", file=sys.stderr)
        return 2
    make_corpus(espeak, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
