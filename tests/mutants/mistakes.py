"""The small mistakes in the ``*.toml`` files beside: each breaks a promise that tests guard."""

import ast
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent
OF_SETTINGS = "settings.toml"  # which settings.py reads
KEYS = {"name", "promise", "file", "old", "new", "tests"}


@dataclass(frozen=True)
class Mistake:
    """A piece of a file, its wrong replacement, and tests of which at least one must fail."""

    room: str  # name of the table
    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]  # as pytest takes them

    @property
    def title(self) -> str:
        """Room and name."""
        return f"{self.room}/{self.name}"

    def faults(self, root: Path) -> list[str]:
        """Return the reasons why the mistake cannot be tried on a tree."""
        path = root / self.file
        number = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        found = [] if number == 1 else [f"`old` is {number} times in {self.file}, not once"]
        found += [f"there is no test {test}" for test in self.tests if not is_there(root, test)]
        return [f"{self.title}: {fault}" for fault in found]

    @contextmanager
    def made_in(self, tree: Path) -> Iterator[None]:
        """Make the mistake in a copy of the tree, and undo it."""
        path = tree / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), "utf-8")
        try:
            yield
        finally:
            path.write_text(text, "utf-8")


def is_there(root: Path, test: str) -> bool:
    """Tell if a file of tests has a function of that name."""
    file, _, name = test.partition("::")
    path = root / file
    if not path.is_file():
        return False
    names = {node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)}
    return not name or name.split("[")[0] in names


def tree_of(path: Path) -> ast.Module:
    """Parse a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def read_mistakes(folder: Path = TABLES) -> list[Mistake]:
    """Read every table of a folder but that of the settings.

    Raises:
        ValueError: A mistake has other keys than ``KEYS``, or changes nothing.
    """
    found = []
    for path in sorted(set(folder.glob("*.toml")) - {folder / OF_SETTINGS}):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mistake"]:
            if entry.keys() != KEYS or not entry["tests"] or entry["old"] == entry["new"]:
                raise ValueError(f"{path}: {entry}")
            found.append(mistake_of(path.stem, entry))
    return found


def mistake_of(room: str, entry: dict[str, Any]) -> Mistake:
    """Return an entry of a table as a mistake."""
    return Mistake(room=room, **{**entry, "tests": tuple(entry["tests"])})
