"""Atomic writes and the leftovers of killed processes."""

import errno
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from helpers import environment_with, wait_until

from higgs_pipe.data import files
from higgs_pipe.data.files import (
    atomic_folder,
    atomic_write,
    check_free_space,
    clear_left_behind,
    full_disk_named,
    has_changed,
    prepare_for,
    write_checksum,
    write_json,
    write_text,
)
from higgs_pipe.errors import UserError

DAY_SECONDS = 24 * 60 * 60
# Begins to write a file or a folder of this name, and hangs.
WRITER = """
import sys, time
from pathlib import Path
from higgs_pipe.data import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as temporary:
    if sys.argv[1] == "atomic_folder":
        (temporary / "half").write_text("half")
    else:
        temporary.write_text("half")
    time.sleep(60)
"""


def start_to_write(path: Path, kind: str = "atomic_write") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, kind, str(path)]
    writer = subprocess.Popen(command, env=environment_with())
    is_begun = {"atomic_write": ".*.tmp", "atomic_folder": ".*.tmp/*/half"}[kind]
    wait_until(lambda: any(entry.stat().st_size for entry in path.parent.glob(is_begun)))
    return writer


def write_another(folder: Path) -> list[str]:
    """Write a file as a new process would; return what is in the folder then."""
    clear_left_behind.cache_clear()
    write_text(folder / "another", "whole")
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_name = []
    monkeypatch.setattr(os, "fsync", lambda _: has_name.append((tmp_path / "a").exists()))
    write_text(tmp_path / "a", "whole")
    assert has_name == [False]
    assert (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("kind", ["atomic_write", "atomic_folder"])
def test_leftovers_of_a_killed_process_are_removed_and_of_a_living_one_kept(
    tmp_path: Path, kind: str
) -> None:
    writer = start_to_write(tmp_path / "table", kind)
    aside = f".table.{writer.pid}@{socket.gethostname()}.tmp"
    assert write_another(tmp_path) == [aside, "another"]
    writer.kill()
    writer.wait()
    assert write_another(tmp_path) == ["another"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_unlocked_temporary_files_of_a_living_process_are_kept(tmp_path: Path, kind: str) -> None:
    made = tmp_path / f".table.{os.getppid()}@{socket.gethostname()}.tmp"
    made.touch() if kind == "file" else made.mkdir()
    assert write_another(tmp_path) == [made.name, "another"]
    assert kind == "file" or list(made.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "age_seconds", "is_kept"),
    [
        (".table.1@elsewhere.tmp", DAY_SECONDS - 60, True),
        (".table.1@elsewhere.tmp", DAY_SECONDS + 60, False),
        (".table.1.tmp", 0, True),  # of an earlier version, which named no host
        (".table.1.tmp", DAY_SECONDS + 60, False),
        (".table.tmp", DAY_SECONDS + 60, True),  # not ours
        ("table.1@elsewhere.tmp", DAY_SECONDS + 60, True),
    ],
)
def test_leftovers_of_another_host_are_removed_after_a_day(
    tmp_path: Path, name: str, age_seconds: float, is_kept: bool
) -> None:
    (tmp_path / name).write_text("half")
    written = time.time() - age_seconds
    os.utime(tmp_path / name, (written, written))
    assert (name in write_another(tmp_path)) == is_kept


@pytest.mark.parametrize("kind", ["atomic_write", "temporary_folder"])
def test_an_old_temporary_file_that_another_host_still_locks_is_kept(
    tmp_path: Path, kind: str
) -> None:
    with ExitStack() as writing:
        with pytest.MonkeyPatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            made = writing.enter_context(getattr(files, kind)(tmp_path / "table"))
        os.utime(made / files.LOCK if made.is_dir() else made, (0, 0))
        assert write_another(tmp_path) == [made.name, "another"]


def test_a_signal_leaves_no_folder_behind(tmp_path: Path) -> None:
    writer = start_to_write(tmp_path / "package", "atomic_folder")
    writer.send_signal(signal.SIGINT)
    writer.wait()
    assert list(tmp_path.iterdir()) == []


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_new_folder_replaces_the_previous_one_completely(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with atomic_folder(tmp_path / "samples") as folder:
            write_text(folder / f"deep/{name}", name)
    assert names_in(tmp_path) == ["samples", "samples/deep", "samples/deep/two"]


def test_a_folder_that_cannot_be_renamed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(target))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="samples"), atomic_folder(tmp_path / "samples"):
        pass
    assert names_in(tmp_path) == []


def test_a_failed_folder_write_keeps_the_previous_folder(tmp_path: Path) -> None:
    for name, error in (("one", None), ("two", KeyError())):
        with suppress(KeyError), atomic_folder(tmp_path / "samples") as folder:
            write_text(folder / name, name)
            if error:
                raise error
    assert names_in(tmp_path) == ["samples", "samples/one"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "samples") as folder:
        write_text(folder / "one", "whole")
    for name in ("samples", "new"):
        with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / name) as folder:
            folder.rmdir()  # by someone else
        assert names_in(tmp_path) == ["samples", "samples/one"]


def test_two_writers_of_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    first, second = (atomic_folder(tmp_path / "samples") for _ in range(2))
    with first as folder:
        write_text(folder / "early", "first")
        with in_another_process(), second as other:
            write_text(other / "whole", "second")
        assert names_in(tmp_path / "samples") == ["whole"]
        write_text(folder / "late", "first")
    assert names_in(tmp_path) == ["samples", "samples/early", "samples/late"]


@contextmanager
def in_another_process() -> Iterator[None]:
    """Let temporary names be those of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", os.getppid)
        yield


def test_a_folder_created_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer finishes between the two renames of the first."""
    rename, targets = Path.rename, []

    def late_rename(path: Path, target: Path) -> Path:
        if target == tmp_path / "samples" and target not in targets:
            write_text(target / "of the other", "whole")
        targets.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late_rename)
    with atomic_folder(tmp_path / "samples") as folder:
        write_text(folder / "own", "whole")
    assert names_in(tmp_path) == ["samples", "samples/own"]
    assert targets.count(tmp_path / "samples") == 2


def test_too_little_disk_space_is_an_error_that_gives_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_free_space(tmp_path, 9_999_999_999, "a full checkpoint")
    with pytest.raises(UserError, match=r"11\.50 GB.* 10\.00 GB are free"):
        check_free_space(tmp_path, 11_500_000_000, "a full checkpoint")


def test_a_folder_is_refused_as_a_file_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a file"):
        prepare_for(tmp_path)
    prepare_for(tmp_path / "new/file")
    assert (tmp_path / "new").is_dir()
    write_text(tmp_path / "new/file", "whole")
    with pytest.raises(UserError, match="cannot be created"):
        prepare_for(tmp_path / "new/file/another")


def test_an_output_replaces_no_device(tmp_path: Path) -> None:
    """A pipe stands for /dev/null, which root would replace for every process of the machine."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name, kind in (("folder", "a folder"), ("pipe", "a named pipe"), ("link", "a device")):
        with pytest.raises(UserError, match=f"{name} is {kind}"):
            write_text(tmp_path / name, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_names_its_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_write(tmp_path / "a") as file:
            file.write_text("half")
            raise OSError(errno.EIO, "no reason")

    with pytest.raises(OSError, match="no reason") as caught:
        write_half()
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_a_quota_and_a_limit_have_no_room(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match="no room to write it"), full_disk_named(tmp_path):
        raise OSError(number, "")
    with pytest.raises(OSError, match=r"\[Errno 5\]"), full_disk_named(tmp_path):
        raise OSError(errno.EIO, "")


def test_json_is_readable_and_never_holds_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_a_checksum_is_what_sha256sum_writes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"whole")
    write_checksum(tmp_path / "a.bin")
    expected = f"{hashlib.sha256(b'whole').hexdigest()}  a.bin\n"
    assert (tmp_path / "a.bin.sha256").read_text() == expected


@pytest.mark.parametrize("checksum", [b"\xff", b"", hashlib.sha256(b"other").hexdigest().encode()])
def test_a_file_has_changed_if_its_checksum_is_another(tmp_path: Path, checksum: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(b"whole")
    assert not has_changed(tmp_path / "a.bin")
    (tmp_path / "a.bin.sha256").write_bytes(checksum)
    assert has_changed(tmp_path / "a.bin")
    (tmp_path / "a.bin").unlink()
    assert not has_changed(tmp_path / "a.bin")


def test_a_process_of_another_user_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(process: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert files._is_running(1)
