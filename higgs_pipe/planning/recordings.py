"""The state of every recording and manifest, so that Snakemake notices one that changed in place.

``list_rows`` writes the size and modification time of all these files to a file beside its
tables, with the stamp that Snakemake gave it as a parameter. The next plan uses the same stamp if
every file is still as it was, and another one otherwise, so that Snakemake runs ``list_rows``
again. That file is not an output of the rule, so Snakemake does not delete it.

Manifests are also inputs of the rule, but Snakemake asks only whether an input is newer than the
output. It would not notice that a manifest was replaced by an older file: by ``mv``, ``cp -p``, or
from an archive.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

FIRST_STAMP = "first listing"


class FileState(NamedTuple):
    """Size in bytes and modification time in ns of a file; None if there is no such file."""

    num_bytes: int | None
    mtime_ns: int | None


@dataclass(frozen=True)
class FileStates:
    """The states of the files that ``list_rows`` has seen.

    Attributes:
        stamp: The parameter given to ``list_rows``.
        seen: The state of each recording by its path.
        first_seen: The state in which a recording was first seen with the same bytes, if it
            differs: the file was only touched since.
        manifests: The state of each file of the manifests by its path.
    """

    stamp: str = FIRST_STAMP
    seen: Mapping[str, FileState] = field(default_factory=dict)
    first_seen: Mapping[str, FileState] = field(default_factory=dict)
    manifests: Mapping[str, FileState] = field(default_factory=dict)


def state_of(path: str) -> FileState:
    """Return the state of a file."""
    try:
        found = os.stat(path)  # noqa: PTH116  (twice as fast as Path.stat, for 100,000 files)
    except OSError:
        return FileState(None, None)
    return FileState(found.st_size, found.st_mtime_ns)


def save_states(path: Path, states: FileStates) -> None:
    """Write the states as JSON, recording by recording."""
    with path.open("w", encoding="utf-8") as stream:
        json.dump(vars(states), stream)


def read_states(path: Path) -> FileStates:
    """Read what :func:`save_states` wrote; none if the file is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
        manifests = values.get("manifests", {})
        for by_path in (values["seen"], values["first_seen"], manifests):
            for name, state in by_path.items():
                by_path[name] = FileState(*state)  # in place: there may be millions
        return FileStates(values["stamp"], values["seen"], values["first_seen"], manifests)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return FileStates()


def states_of(paths: Iterable[str]) -> dict[str, FileState]:
    """Return the state of each file by its path."""
    return {path: state_of(path) for path in paths}


def stamp_of(path: Path, manifests: Iterable[str]) -> str:
    """Return the stamp for ``list_rows``: the same one, or another if a file changed.

    Args:
        path: The file of :func:`save_states`.
        manifests: The files of the manifests.
    """
    states = read_states(path)
    if states == FileStates():
        return FIRST_STAMP
    changed = [(p, now) for p, seen in states.seen.items() if (now := state_of(p)) != seen]
    changed += sorted(states_of(manifests).items() ^ states.manifests.items(), key=repr)
    if not changed:
        return states.stamp
    return hashlib.sha256(json.dumps([states.stamp, changed]).encode()).hexdigest()
