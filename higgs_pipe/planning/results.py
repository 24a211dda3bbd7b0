"""Folders that the workflow writes to, checked before anything runs."""

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.planning.user_files import path_fault


def check_writable(folders: Sequence[str]) -> None:
    """Check that each folder, or the place where it will be made, can be written to.

    Args:
        folders: The folders of results, resources, logs and benchmarks.

    Raises:
        UserError: One has braces, begins with a dash, cannot be opened, is a file or belongs to
            another user; lists all.
    """
    faults = [f"{folder}{fault}" for folder in folders if (fault := _fault(Path(folder)))]
    if faults:
        raise UserError(
            f"These folders cannot be written to:\n{list_offenders(faults)}\n"
            "Move them or change their owner, set others with `pathvars` in the config, or run in "
            "another folder with --directory."
        )


def _fault(folder: Path) -> str | None:
    if "{" in str(folder) or "}" in str(folder):
        return " has braces, which Snakemake takes for wildcards"
    if str(folder).startswith("-") or "\n" in str(folder):
        return " begins with a dash or has a line break, which commands take for something else"
    if fault := path_fault(str(folder)):
        return f" cannot be opened ({fault})"
    there = folder if folder.exists() else next(p for p in folder.parents if p.exists())
    if not there.is_dir():
        return f": {there.absolute()} is a file" if there != folder else " is a file"
    below = [path for path in there.iterdir() if path.is_dir()] if there == folder else []
    for place in (there, *sorted(below)):
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            return f": {place.absolute()} belongs to {_owner(place)} or is read-only"
    return None


def _owner(path: Path) -> str:
    number = path.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
