"""Files that a user names: the largest that is read, and those that are not read at all."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from higgs_pipe.planning.user_files import UnfitFileError, open_file, read_file


@pytest.mark.parametrize("write", [bytes, gzip.compress])
def test_a_file_is_read_whole_up_to_the_limit(
    tmp_path: Path, write: Callable[[bytes], bytes]
) -> None:
    content = bytes(range(100)) + bytes(100)
    path = tmp_path / "file"
    path.write_bytes(write(content))
    assert read_file(path, 200) == content
    with pytest.raises(UnfitFileError, match="more than 199 bytes"):
        read_file(path, 199)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    kinds = {tmp_path / "pipe": "a named pipe", tmp_path: "a folder", Path("/dev/null"): "a device"}
    for path, kind in kinds.items():
        with pytest.raises(UnfitFileError, match=f"^is {kind}, not a file"):
            open_file(path)
