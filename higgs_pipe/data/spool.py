"""Arrays in a temporary file instead of memory."""

import os
import tempfile
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from higgs_pipe.data.files import full_disk_named


class Spool:
    """Items of one dtype, appended in any amount and read back from any position.

    The file has no name: the operating system removes it even if the process is killed.

    Args:
        directory: The folder of the file.
        dtype: The dtype of the items.
    """

    def __init__(self, directory: Path, dtype: npt.DTypeLike) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115, closed by __exit__
        self._directory = directory
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._num_items = 0
        self._is_flushed = True

    def append(self, items: npt.NDArray[Any]) -> int:
        """Append ``items`` and return the position of the first one.

        Raises:
            UserError: The disk is full.
        """
        start = self._num_items
        with self._full_disk_named():
            self._file.write(np.ascontiguousarray(items, self._dtype).data.cast("B"))
        self._num_items += items.size
        self._is_flushed = False
        return start

    def read(self, start: int, num_items: int) -> npt.NDArray[Any]:
        """Return the items from position ``start`` on: (num_items,), read-only."""
        if not self._is_flushed:
            with self._full_disk_named():
                self._file.flush()
            self._is_flushed = True
        size = self._dtype.itemsize
        found = os.pread(self._file.fileno(), num_items * size, start * size)
        return np.frombuffer(found, self._dtype)

    def _full_disk_named(self) -> AbstractContextManager[None]:
        written = self._num_items * self._dtype.itemsize / 1e9
        return full_disk_named(self._directory, f"more than {written:.2f} GB of temporary data")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which removes it."""
        with suppress(OSError):  # closing flushes the buffer, which is not needed any more
            self._file.close()
