"""Arrays in a temporary file."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from higgs_pipe.data.spool import Spool


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
