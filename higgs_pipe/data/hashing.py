"""Hashes, the same on every machine and in every run."""

import hashlib
from pathlib import Path


def unit_hash(*parts: object) -> float:
    """Return a number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def shard_of(clip_id: str, num_shards: int) -> int:
    """Return the shard of a clip; adding rows never moves it."""
    return int(unit_hash("shard", clip_id) * num_shards)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of ``content``, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
