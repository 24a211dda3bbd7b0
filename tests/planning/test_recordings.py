"""The stamp that makes Snakemake list the recordings again, and what it does not depend on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from higgs_pipe.planning.recordings import (
    FIRST_STAMP,
    FileState,
    Memory,
    read_memory,
    save_memory,
    stamp_of,
    state_of,
)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A memory of a file that is there and of one that is not."""
    (tmp_path / "a.wav").write_bytes(b"abc")
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    remembered = Memory("stamp", {path: state_of(path) for path in paths})
    save_memory(tmp_path / "memory.json", remembered)
    assert read_memory(tmp_path / "memory.json") == remembered
    return tmp_path / "memory.json"


def test_the_stamp_stays_while_every_recording_is_as_remembered(memory: Path) -> None:
    assert stamp_of(memory) == "stamp"


@pytest.mark.parametrize("change", ["bytes", "touched", "removed", "appeared"])
def test_any_change_of_a_recording_gives_another_stamp(memory: Path, change: str) -> None:
    path = memory.with_name("a.wav")
    match change:
        case "bytes":
            state = path.stat()
            path.write_bytes(b"abcd")
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        case "touched":
            os.utime(path, ns=(0, 0))
        case "removed":
            path.unlink()
        case "appeared":
            memory.with_name("b.wav").write_bytes(b"b")
    stamp = stamp_of(memory)
    assert stamp != "stamp"
    assert stamp_of(memory) == stamp


def test_a_state_that_comes_back_gives_a_stamp_of_its_own(memory: Path) -> None:
    """Listed in another state meanwhile, it would pass for listed in this one."""
    path = memory.with_name("a.wav")
    os.utime(path, ns=(0, 0))
    planned = stamp_of(memory)
    os.utime(path, ns=(1, 1))
    listed = read_memory(memory)
    seen = {**listed.seen, str(path): state_of(str(path))}
    save_memory(memory, Memory(planned, seen))
    os.utime(path, ns=(0, 0))
    assert stamp_of(memory) not in (planned, "stamp")


@pytest.mark.parametrize("text", [None, "", "[]", '{"stamp": 1}', '{"stamp": "s", "seen": [1]}'])
def test_a_memory_that_cannot_be_read_is_empty(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "m.json").write_text(text)
    assert read_memory(tmp_path / "m.json") == Memory()
    assert stamp_of(tmp_path / "m.json") == FIRST_STAMP


def test_the_state_of_a_missing_file_is_unknown(tmp_path: Path) -> None:
    assert state_of(str(tmp_path / "none")) == FileState(None, None)
