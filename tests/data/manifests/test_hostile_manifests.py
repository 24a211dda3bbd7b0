"""Manifests made to hang a reader or fill its memory: a quick error in bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import IMPORT_PEAK

from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.planning.bounds import MAX_IGNORED_KEYS, MAX_MANIFEST_BYTES

MIB = 2**20
SECONDS = 60
# Reads a manifest as the stage does; prints by how much memory grew, in MiB, and the sentence.
READ = f"""
{IMPORT_PEAK}
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.errors import UserError
before = peak_bytes()
try:
    read_manifests([sys.argv[1]])
    said = "read"
except UserError as error:
    said = str(error)
print((peak_bytes() - before) // 2**20, said, sep="\\n")
"""


def read(manifest: Path, max_mib: int) -> list[str]:
    """Read a manifest in a separate process and return its faults, one per line."""
    command = [sys.executable, "-c", READ, str(manifest)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    grown, *said = ended.stdout.splitlines()
    assert int(grown) < max_mib
    return [line.strip() for line in said if line.startswith("  ")]


def row(**others: object) -> str:
    return json.dumps({"audio": "a.wav", "text": "A.", **others}) + "\n"


@pytest.mark.parametrize("kind", ["pipe", "socket", "zeros", "transcript"])
def test_pipes_sockets_and_devices_are_refused_without_blocking(tmp_path: Path, kind: str) -> None:
    manifest = tmp_path / "m.jsonl"
    if kind == "pipe":
        os.mkfifo(manifest)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(manifest))
    elif kind == "zeros":
        manifest.symlink_to("/dev/zero")
    else:
        manifest = tmp_path / "folder"
        manifest.mkdir()
        (manifest / "a.wav").touch()
        os.mkfifo(manifest / "a.txt")
    (fault,) = read(manifest, max_mib=50)
    assert str(manifest) in fault


def test_a_gzip_bomb_is_unpacked_only_up_to_the_limit(tmp_path: Path) -> None:
    bomb = tmp_path / "m.jsonl.gz"
    bomb.write_bytes(gzip.compress(bytes(64 * MIB)) * 62)  # 3.9 GB in 4 MB
    (fault,) = read(bomb, max_mib=1400)
    assert f"{MAX_MANIFEST_BYTES:,}" in fault


def test_a_tiny_parquet_file_with_millions_of_rows_is_refused(tmp_path: Path) -> None:
    rows = pa.table({"audio": ["a.wav"] * 1_000_000, "text": ["A."] * 1_000_000})
    with pq.ParquetWriter(tmp_path / "m.parquet", rows.schema) as writer:
        for _ in range(20):
            writer.write_table(rows)
    (fault,) = read(tmp_path / "m.parquet", max_mib=100)
    assert "20,000,000 rows" in fault


def test_a_text_repeated_by_a_parquet_dictionary_is_in_memory_once(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 9_000, pa.int32()), ["x" * 20 * MIB])
    names = [f"{number}.wav" for number in range(9_000)]
    pq.write_table(pa.table({"audio": names, "text": text}), tmp_path / "m.parquet")
    (fault,) = read(tmp_path / "m.parquet", max_mib=400)  # 180 GB, if each row had its own
    assert "100,000 characters" in fault


def test_a_column_of_lists_is_refused_before_it_is_read(tmp_path: Path) -> None:
    table = pa.table({"audio": ["a.wav"], "text": [[None] * 50_000_000]})
    pq.write_table(table, tmp_path / "m.parquet")
    (fault,) = read(tmp_path / "m.parquet", max_mib=50)
    assert "'text'" in fault


@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        (row(text="x" * 100_000_000), "m.jsonl:2"),
        (row(text="x" * 200_000), "m.jsonl:2"),
        (row(**{f"k{number}": 1 for number in range(900_000)}), "900,002 keys"),
        (row(notes=None).replace("null", "[" * 100_000 + "]" * 100_000), "m.jsonl:2"),
        ("[" * 100_000 + "\n", "m.jsonl:2"),
    ],
    ids=["huge text", "long text", "keys", "nested", "nested line"],
)
def test_a_hostile_row_is_a_single_short_fault(tmp_path: Path, hostile: str, told: str) -> None:
    (tmp_path / "m.jsonl").write_text(row() + hostile)
    (fault,) = read(tmp_path / "m.jsonl", max_mib=600)
    assert told in fault
    assert len(fault) < 400


def test_an_unclosed_quote_is_a_single_fault(tmp_path: Path) -> None:
    lines = [f"{number}.wav,What is said.\n" for number in range(200_000)]
    lines[7] = '7.wav,"What is said.\n'
    (tmp_path / "m.csv").write_text("audio,text\n" + "".join(lines))
    (fault,) = read(tmp_path / "m.csv", max_mib=300)
    assert fault.startswith(f"{tmp_path}/m.csv:9: ")


def test_reading_stops_after_10000_faults(tmp_path: Path) -> None:
    wrong = "".join(f'{{"audio": {number}, "text": "A."}}\n' for number in range(30_000))
    (tmp_path / "m.jsonl").write_text(wrong)
    faults = read(tmp_path / "m.jsonl", max_mib=400)
    assert faults[-1] == "... and 9,980 more"


def test_the_number_of_unknown_key_names_is_bounded(tmp_path: Path) -> None:
    keys = [*range(5_000), 0]
    rows = (
        json.dumps({"audio": f"{row}.wav", "text": "A.", f"key-{key}": 1})
        for row, key in enumerate(keys)
    )
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    ignored = read_manifests([str(tmp_path / "m.jsonl")]).ignored_keys
    assert len(ignored) == MAX_IGNORED_KEYS + 1
    assert sum(ignored.values()) == 5_001
    assert ignored["key-0"] == 2
