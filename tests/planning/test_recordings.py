"""The stamp that makes Snakemake list the recordings again, and what it does not depend on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from higgs_pipe.planning.recordings import (
    FIRST_STAMP,
    FileState,
    FileStates,
    read_states,
    save_states,
    stamp_of,
    state_of,
    states_of,
)


@pytest.fixture
def states_file(tmp_path: Path) -> Path:
    """The states of a recording that is there, of one that is not, and of a manifest."""
    for name in ("a.wav", "m.jsonl"):
        (tmp_path / name).write_bytes(b"abc")
    recordings = states_of(str(tmp_path / name) for name in ("a.wav", "b.wav"))
    states = FileStates("stamp", recordings, manifests=states_of([str(tmp_path / "m.jsonl")]))
    save_states(tmp_path / "states.json", states)
    assert read_states(tmp_path / "states.json") == states
    return tmp_path / "states.json"


def stamp(states_file: Path, *manifests: str) -> str:
    return stamp_of(
        states_file, [str(states_file.with_name(name)) for name in manifests or ("m.jsonl",)]
    )


def test_the_stamp_stays_while_every_recording_is_as_remembered(states_file: Path) -> None:
    assert stamp(states_file) == "stamp"


@pytest.mark.parametrize("change", ["bytes", "touched", "removed", "appeared"])
def test_any_change_of_a_recording_gives_another_stamp(states_file: Path, change: str) -> None:
    path = states_file.with_name("a.wav")
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
            states_file.with_name("b.wav").write_bytes(b"b")
    changed = stamp(states_file)
    assert changed != "stamp"
    assert stamp(states_file) == changed


def test_a_manifest_replaced_by_an_older_file_gives_another_stamp(states_file: Path) -> None:
    """Snakemake looks at the age of an input alone."""
    older = states_file.with_name("older.jsonl")
    older.write_bytes(b"xyz")
    os.utime(older, ns=(0, 0))
    older.rename(states_file.with_name("m.jsonl"))
    assert stamp(states_file) != "stamp"


def test_a_file_more_or_less_among_the_manifests_gives_another_stamp(states_file: Path) -> None:
    states_file.with_name("{n}.jsonl").touch()
    assert stamp(states_file, "m.jsonl", "{n}.jsonl") != "stamp"
    assert stamp_of(states_file, []) != "stamp"


def test_a_state_that_comes_back_gives_a_stamp_of_its_own(states_file: Path) -> None:
    """Listed in another state meanwhile, it would pass for listed in this one."""
    path = states_file.with_name("a.wav")
    os.utime(path, ns=(0, 0))
    planned = stamp(states_file)
    os.utime(path, ns=(1, 1))
    listed = read_states(states_file)
    seen = {**listed.seen, str(path): state_of(str(path))}
    save_states(states_file, FileStates(planned, seen, manifests=listed.manifests))
    os.utime(path, ns=(0, 0))
    assert stamp(states_file) not in (planned, "stamp")


@pytest.mark.parametrize("text", [None, "", "[]", '{"stamp": 1}', '{"stamp": "s", "seen": [1]}'])
def test_states_that_cannot_be_read_are_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "m.json").write_text(text)
    assert read_states(tmp_path / "m.json") == FileStates()
    assert stamp_of(tmp_path / "m.json", ["m.jsonl"]) == FIRST_STAMP


def test_the_state_of_a_file_is_its_size_and_its_time(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"12345")
    os.utime(tmp_path / "a.wav", ns=(0, 1_700_000_000_000_000_007))
    assert state_of(str(tmp_path / "a.wav")) == FileState(5, 1_700_000_000_000_000_007)


def test_the_state_of_a_missing_file_is_unknown(tmp_path: Path) -> None:
    assert state_of(str(tmp_path / "none")) == FileState(None, None)
