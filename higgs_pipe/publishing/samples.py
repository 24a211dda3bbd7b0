"""Samples of a package: held-out texts, spoken by base and adapter."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from higgs_pipe.data.tables import read_table
from higgs_pipe.listening.spoken import ADAPTER, BASE, GENERATED, temperatures_of
from higgs_pipe.reporting.audio import read_wav

FOLDER = "samples"


@dataclass(frozen=True)
class PublishedSample:
    """A text, and the files in which base and adapter speak it, relative to the package."""

    text: str
    base: str
    adapter: str


def publish_samples(
    table: Path, wavs: Path, package_dir: Path, num_samples: int
) -> list[PublishedSample]:
    """Copy the speech of base and adapter at the first temperature; never a person's recording.

    Args:
        table: ``generation.parquet`` of eval.
        wavs: The folder of its WAVs.
        package_dir: The package, which gets ``samples/``.
        num_samples: Number of texts, from the first on.

    Raises:
        UserError: A WAV is missing or truncated.
    """
    found = read_table(table, GENERATED)
    rows = found.to_pylist()
    first = temperatures_of(rows)[:1]
    texts = {row["clip_id"]: row["text"] for row in rows}
    spoken = {
        (row["clip_id"], row["voice"]): row["sample"]
        for row in rows
        if [row["temperature"]] == first
    }
    published = []
    for number, (clip_id, text) in enumerate(list(texts.items())[:num_samples], start=1):
        names = {}
        for voice in (BASE, ADAPTER):
            names[voice] = f"{FOLDER}/{number:02d}-{voice}.wav"
            target = package_dir / names[voice]
            target.parent.mkdir(exist_ok=True)
            source = wavs / spoken[clip_id, voice]
            read_wav(source, GENERATED.made_by)  # it is there, and whole
            shutil.copyfile(source, target)
        published.append(PublishedSample(text, names[BASE], names[ADAPTER]))
    return published
