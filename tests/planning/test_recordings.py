"""The stamp that makes Snakemake list the recordings again, and when it stays the same."""

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
    """The states of an existing recording, a missing one and a manifest."""
    for name in ("a.wav", "m.jsonl"):
        (tmp_path / name).write_bytes(b"abc")
    recordings = states_of(str(tmp_path / name) for name in ("a.wav", "b.wav"))
    first_seen = {"a.wav": FileState(3, 1)}  # touched since
    states = FileStates("stamp", recordings, first_seen, states_of([str(tmp_path / "m.jsonl")]))
    save_states(tmp_path / "states.json", states)
    assert read_states(tmp_path / "states.json") == states
    return tmp_path / "states.json"


def stamp(states_file: Path, *manifests: str) -> str:
    return stamp_of(
        states_file, [str(states_file.with_name(name)) for name in manifests or ("m.jsonl",)]
    )


def test_the_stamp_is_kept_while_no_recording_changes(states_file: Path) -> None:
    assert stamp(states_file) == "stamp"


@pytest.mark.parametrize("change", ["bytes", "touched", "removed", "appeared"])
def test_any_change_to_a_recording_gives_a_new_stamp(states_file: Path, change: str) -> None:
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


def test_a_manifest_replaced_by_an_older_file_gives_a_new_stamp(states_file: Path) -> None:
    """Snakemake looks at the age of an input alone."""
    older = states_file.with_name("older.jsonl")
    older.write_bytes(b"xyz")
    os.utime(older, ns=(0, 0))
    older.rename(states_file.with_name("m.jsonl"))
    assert stamp(states_file) != "stamp"


def test_adding_or_removing_a_manifest_gives_a_new_stamp(states_file: Path) -> None:
    states_file.with_name("{n}.jsonl").touch()
    assert stamp(states_file, "m.jsonl", "{n}.jsonl") != "stamp"
    assert stamp_of(states_file, []) != "stamp"


def test_a_recording_restored_after_a_change_gives_a_new_stamp(states_file: Path) -> None:
    """Otherwise a recording listed in another state meanwhile would count as up to date."""
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
def test_unreadable_states_count_as_empty(tmp_path: Path, text: str | None) -> None:
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
