"""Hashes of a checkpoint's files, so that a changed one is noticed, however old it is."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Weights, config, tokenizer and chat template.
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def checkpoint_hash(name: str, cache: Path) -> str | None:
    """Return a hash of the files in a checkpoint's folder that affect the model.

    If it changes, the checkpoint is pinned again; a new modification time or another folder does
    not matter. None for a Hub id, which stays at its pinned commit.

    Args:
        name: A folder or a Hub id.
        cache: JSON file that keeps the hashes by path, size and modification time: 11.5 GB take
            some 7 seconds, once.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    paths = (path for path in folder.iterdir() if path.suffix in CHECKPOINT_SUFFIXES)
    return hash_of_files(paths, cache)


def hash_of_files(paths: Iterable[Path], cache: Path) -> str:
    """Return a hash of the names and contents of those files that exist.

    Args:
        paths: The files.
        cache: As for :func:`checkpoint_hash`.
    """
    paths = sorted(paths)
    stats = {path: path.stat() for path in paths if path.is_file()}
    keys = {path: f"{path.resolve()} {s.st_size} {s.st_mtime_ns}" for path, s in stats.items()}
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    new = {key: _sha256(path) for path, key in keys.items() if key not in known}
    if new:
        with suppress(OSError):  # a cache that cannot be written costs time alone
            cache.parent.mkdir(parents=True, exist_ok=True)
            aside = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
            aside.write_text(json.dumps(known | new, indent=2), encoding="utf-8")
            aside.replace(cache)
    lines = [f"{(known | new)[key]}  {path.name}\n" for path, key in keys.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
