"""Recordings embedded in a Parquet table, as in datasets on the Hub, written out as files."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from higgs_pipe.data.manifests.fields import RowFault

NUM_DIGITS = 16  # of the SHA-256 in a file's name
MAX_NAME_CHARS = 100
OWN_NAME = re.compile(rf"[0-9a-f]{{{NUM_DIGITS}}}-")


def write_embedded(value: Any, folder: Path) -> str | None:
    """Return the path of an embedded recording's file; write it if it does not exist.

    Its name begins with a hash of its bytes, so that the same recording is the same file in every
    run and is not measured or encoded again.

    Args:
        value: A cell of a struct column: ``{"bytes": b"...", "path": "a.wav"}``. Without bytes the
            path is that of a file.
        folder: Folder to write to.

    Raises:
        RowFault: The folder cannot be written to.
    """
    content, name = (value or {}).get("bytes"), (value or {}).get("path")
    if not content:
        return name if isinstance(name, str) else None
    digest = hashlib.sha256(content).hexdigest()[:NUM_DIGITS]
    readable = re.sub(r"[^\w.-]", "_", Path(name or "audio").name)[-MAX_NAME_CHARS:]
    file = folder.absolute() / f"{digest}-{readable}"
    try:
        if not (file.is_file() and file.stat().st_size == len(content)):
            folder.mkdir(parents=True, exist_ok=True)
            aside = file.with_name(f".{digest}.{os.getpid()}.tmp")
            aside.write_bytes(content)
            aside.replace(file)
    except OSError as error:
        raise RowFault(f"its recording cannot be written to {folder} ({error.strerror})") from None
    return str(file)


def remove_unused(folder: Path, used: Iterable[str]) -> int:
    """Remove recordings written by :func:`write_embedded` that no row names any more.

    Args:
        folder: The folder, which need not exist. Other files in it stay.
        used: Paths of the recordings that rows name.

    Returns:
        The number of files that were removed.
    """
    names = {Path(path).name for path in used}
    unused = [
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if OWN_NAME.match(file.name) and file.name not in names
    ]
    for file in unused:
        file.unlink()
    return len(unused)
