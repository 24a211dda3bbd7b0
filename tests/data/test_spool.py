"""Arrays in a temporary file."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import files_of_at_most

from higgs_pipe.data.spool import Spool
from higgs_pipe.errors import UserError


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing itself
            found.append(str(link.readlink()))
    return found


def test_the_temporary_file_is_in_the_given_folder_and_removed_on_close(tmp_path: Path) -> None:
    with Spool(tmp_path, np.int32) as spool:
        assert spool.append(np.arange(5)) == 0
        assert spool.append(np.arange(3)) == 5
        assert spool.read(4, 3).tolist() == [4, 0, 1]
        assert spool.append(np.ones((2, 3))) == 8
        assert spool.append(np.arange(1)) == 14
        assert spool.read(13, 2).tolist() == [1, 0]
        assert any(name.startswith(str(tmp_path)) for name in open_files())
    assert not any(name.startswith(str(tmp_path)) for name in open_files())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_the_folder_and_the_amount(tmp_path: Path) -> None:
    with Spool(tmp_path, np.int32) as spool:
        spool.append(np.zeros(4_000_000))
        expected = rf"^{tmp_path}: no room to write more than 0\.02 GB"
        with files_of_at_most(16_000_000), pytest.raises(UserError, match=expected):
            spool.append(np.zeros(100_000))


def test_a_full_disk_is_found_as_buffered_items_are_read(tmp_path: Path) -> None:
    with files_of_at_most(10), Spool(tmp_path, np.int32) as spool:
        spool.append(np.arange(5))
        with pytest.raises(UserError, match="no room"):
            spool.read(0, 5)
