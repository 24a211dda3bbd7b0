"""The final messages of a failed run, and unreadable configs."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.config_check import config_path_or_exit
from higgs_pipe.planning.failures import failure_lines, log_states
from higgs_pipe.planning.user_files import UnfitFileError


def write_log(folder: Path, name: str, text: str) -> Path:
    path = folder / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cut_off(packed: bytes) -> bytes:
    return packed[:-4]


def flipped(packed: bytes) -> bytes:
    """Gzip whose first block has an impossible type."""
    return packed[:10] + b"\xff" + packed[11:]


def said(text: str) -> str:
    """A log that ends with an error."""
    return f"2026-01-02 03:04:05,678 INFO read 3 rows\n2026-01-02 03:04:06,000 ERROR {text}\n"


def test_an_error_is_shown_with_its_log_and_once_for_all_shards(tmp_path: Path) -> None:
    log = write_log(tmp_path, "measure/shard-00000.log", said("the disk is full:\n  /data"))
    write_log(tmp_path, "measure/shard-00001.log", said("the disk is full:\n  /data"))
    write_log(tmp_path, "pack.log", "2026-01-02 03:04:05,678 INFO packed\n")
    lines = failure_lines(tmp_path / "logs", {})
    assert lines[:4] == ["", "the disk is full:", "  /data", f"log: {log} (and 1 more)"]
    assert lines.count("the disk is full:") == 1
    assert "same command" in lines[-1]


@pytest.mark.parametrize("seconds", [0, 4_102_444_800])
def test_an_error_of_an_earlier_run_is_not_repeated_whatever_its_date(
    tmp_path: Path, seconds: int
) -> None:
    os.utime(write_log(tmp_path, "pack.log", said("old")), (seconds, seconds))
    before = log_states(tmp_path / "logs")
    assert failure_lines(tmp_path / "logs", before) == []
    os.utime(write_log(tmp_path, "train.log", said("new")), (seconds, seconds))
    assert failure_lines(tmp_path / "logs", before)[1] == "new"


def test_a_stopped_run_shows_no_error(tmp_path: Path) -> None:
    write_log(tmp_path, "pack.log", "2026-01-02 03:04:05,678 INFO packed\n")
    assert failure_lines(tmp_path / "logs", {}) == []
    assert failure_lines(tmp_path / "missing", {}) == []


def test_five_errors_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    for i in range(8):
        write_log(tmp_path, f"{i}.log", said(f"error {i}"))
    lines = failure_lines(tmp_path / "logs", {})
    assert [line for line in lines if line.startswith("error")] == [f"error {i}" for i in range(5)]
    assert "... and 3 other errors" in lines


def test_only_the_end_of_a_traceback_is_shown(tmp_path: Path) -> None:
    write_log(tmp_path, "a.log", said("\n".join(f"frame {i}" for i in range(100))))
    lines = failure_lines(tmp_path / "logs", {})
    assert "frame 99" in lines
    assert "frame 69" not in lines


def test_a_config_that_is_not_yaml_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data:\n  num_shards: [2\ntrain: {}\n")
    with pytest.raises(SystemExit) as exit_:
        config_path_or_exit(config, ROOT / "config.yaml")
    assert exit_.value.code == 2
    assert f"{config}:3: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"), [("- a\n", "a list"), ("[]\n", "a list"), ("manifest\n", "a text")]
)
def test_a_config_without_keys_is_named(
    tmp_path: Path, text: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        config_path_or_exit(tmp_path / "config.yaml", ROOT / "config.yaml")
    assert exit_.value.code == 2
    assert f"found {found}." in capsys.readouterr().err


def test_a_config_that_is_not_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes(b"manifest: M\xfcller.jsonl\n")
    with pytest.raises(SystemExit) as exit_:
        config_path_or_exit(tmp_path / "config.yaml", ROOT / "config.yaml")
    assert exit_.value.code == 2
    assert str(tmp_path / "config.yaml") in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: &a {a: *a}\n", f"a: {'[' * 5000}\n", f"a: {'x' * 2**20}\n"])
def test_an_endless_or_oversized_config_is_named(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        config_path_or_exit(tmp_path / "config.yaml", ROOT / "config.yaml")
    assert exit_.value.code == 2
    assert str(tmp_path / "config.yaml") in capsys.readouterr().err


@pytest.mark.parametrize("damage", [cut_off, flipped])
def test_a_damaged_gzip_config_is_named(
    tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(damage(gzip.compress(b"manifest: m.jsonl\n")))
    with pytest.raises(SystemExit) as exit_:
        config_path_or_exit(path, ROOT / "config.yaml")
    assert exit_.value.code == 2
    assert f"{path} is not a complete gzip file" in capsys.readouterr().err
    with pytest.raises(UnfitFileError):
        read_object(path)


@pytest.mark.parametrize("value", ["\x18", "2026-99-99", "!!bool x", "!!timestamp x", "9" * 5000])
def test_a_config_with_a_value_that_yaml_cannot_read_is_named(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(f"manifest: {value}\n")
    with pytest.raises(SystemExit) as exit_:
        config_path_or_exit(tmp_path / "config.yaml", ROOT / "config.yaml")
    assert exit_.value.code == 2
    assert str(tmp_path / "config.yaml") in capsys.readouterr().err


def test_a_folder_with_its_own_config_uses_it(tmp_path: Path) -> None:
    own, shipped = tmp_path / "config.yaml", ROOT / "config.yaml"
    assert config_path_or_exit(own, shipped) == str(shipped)
    own.write_text("# all at its default\n")
    assert config_path_or_exit(own, shipped) == str(shipped)
    own.write_text("data: {}\n")
    assert config_path_or_exit(own, shipped) == str(own)
