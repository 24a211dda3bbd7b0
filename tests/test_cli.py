"""The command line of a stage: its options, its help, its exit codes and its log."""

import errno
import importlib
import inspect
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from higgs_pipe.cli import main
from higgs_pipe.data.files import atomic_write
from higgs_pipe.errors import EXIT_USER_ERROR, UserError, list_offenders
from higgs_pipe.planning import process_tree
from higgs_pipe.planning.stages import STAGES


def run(*, table: Path, names: list[str], num_rows: int = 3, note: str | None = None) -> None:
    """Write what it was given.

    More about it.

    Args:
        table: Table to write, as :class:`dict`; in ``json``,
            100 % of it.
        names: Names to write.
        num_rows: Rows of each.

    Raises:
        UserError: A name is "bad".
    """
    if "bad" in names:
        raise UserError("names: 'bad' is not a name; choose another")
    table.write_text(json.dumps([names, num_rows, note]))


def help_of(function: object, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(function, ["--help"])  # type: ignore[arg-type]
    assert exit_.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_options_come_from_the_signature(tmp_path: Path) -> None:
    main(run, ["--table", str(tmp_path / "t.json"), "--names", "a", "b", "--num-rows", "7"])
    assert json.loads((tmp_path / "t.json").read_text()) == [["a", "b"], 7, None]


def test_a_list_may_be_given_in_parts(tmp_path: Path) -> None:
    table = tmp_path / "t.json"
    main(run, ["--names", "a", "b", "--table", str(table), "--names", "c"])
    assert json.loads(table.read_text())[0] == ["a", "b", "c"]


def run_placed(table: Path, /, num_rows: int = 3) -> None:
    """Write a number.

    Args:
        table: Table to write.
        num_rows: Number to write.
    """
    table.write_text(str(num_rows))


def test_a_positional_argument_is_given_without_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(run_placed, [str(tmp_path / "t"), "--num-rows", "7"])
    assert (tmp_path / "t").read_text() == "7"
    assert "table Table to write. " in help_of(run_placed, capsys)


def test_a_user_error_prints_only_its_message_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "run.log"
    log.parent.mkdir()
    log.write_text("of an earlier run\n")
    with pytest.raises(SystemExit) as exit_:
        main(run, ["--table", "t", "--names", "bad", "--log", str(log)])
    assert exit_.value.code == EXIT_USER_ERROR == 2
    assert capsys.readouterr().err == "names: 'bad' is not a name; choose another\n"
    assert log.read_text().endswith("ERROR names: 'bad' is not a name; choose another\n")
    assert "of an earlier run" not in log.read_text()


def test_a_message_that_is_not_utf8_is_in_the_log(tmp_path: Path) -> None:
    def fail(table: Path) -> None:
        raise UserError(f"{table.name}b\udcff is not a name")

    with pytest.raises(SystemExit):
        main(fail, ["--table", "a", "--log", str(tmp_path / "run.log")])
    assert (tmp_path / "run.log").read_text().endswith("ERROR ab\\udcff is not a name\n")


def test_options_that_are_not_utf8_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python passes on a byte that it cannot decode as a lone surrogate."""
    table = tmp_path / "t.json"
    for words in (["a", "b\udcff"], ["a", "--note", "b\udcff"]):
        with pytest.raises(SystemExit) as exit_:
            main(run, ["--table", str(table), "--names", *words])
        assert exit_.value.code == EXIT_USER_ERROR
        name = "note" if "--note" in words else "names"
        assert f"  {name} 'b\\udcff'" in capsys.readouterr().err.splitlines()
    assert not table.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_stage_like_ctrl_c(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main sets its own
    inherited = signal.signal(number, signal.SIG_DFL)
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)

    def interrupted(table: Path) -> None:
        """Write half of a table."""
        with atomic_write(table) as aside:
            aside.write_text("half")
            signal.raise_signal(number)

    try:
        with pytest.raises(SystemExit) as exit_:
            main(interrupted, ["--table", str(tmp_path / "table")])
    finally:
        signal.signal(number, inherited)
    assert exit_.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_soon_after_does_not_interrupt_the_cleanup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a terminal, which ends every process, and of Snakemake, which then ends its jobs."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main sets its own
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(cleared: Path) -> None:
        """Clear up when interrupted."""
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleared.write_text("")

    try:
        with pytest.raises(SystemExit) as exit_:
            main(interrupted, ["--cleared", str(tmp_path / "cleared")])
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert exit_.value.code == 128 + signal.SIGINT
    assert (tmp_path / "cleared").exists()


def test_a_bug_keeps_its_traceback_which_is_also_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main sets its own
    table = tmp_path / "missing" / "t.json"
    with pytest.raises(FileNotFoundError) as error:
        main(run, ["--table", str(table), "--names", "a", "--log", str(tmp_path / "run.log")])
    sys.excepthook(error.type, error.value, error.tb)
    for text in (capsys.readouterr().err, (tmp_path / "run.log").read_text()):
        assert "Traceback" in text
        assert "FileNotFoundError" in text


def test_the_help_of_an_option_comes_from_the_docstring(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = help_of(run, capsys)
    assert "--table PATH Table to write, as dict; in json, 100 % of it." in page
    assert "--names TEXT [TEXT ...] Names to write." in page
    assert "--num-rows N Rows of each. (default: 3)" in page
    assert "Raises" not in page


@pytest.mark.parametrize("module", [stage.module for stage in STAGES.values()])
def test_every_option_of_every_stage_has_help_text(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = importlib.import_module(f"higgs_pipe.{module}")
    page = help_of(stage.run, capsys).split("options:")[1]
    words = page.split()
    for name in inspect.signature(stage.run).parameters:
        option = "--" + name.replace("_", "-")
        after = words[words.index(option) + 1 :]
        after = [word for word in after if not word.strip("[]").isupper() and word != "...]"]
        assert not after[0].startswith(("--", "(default")), option


def test_offenders_beyond_the_first_20_are_counted() -> None:
    lines = list_offenders([f"row {i}" for i in range(1022)]).splitlines()
    assert lines[0] == "  row 0"
    assert lines[19:] == ["  row 19", "  ... and 1,002 more"]


def test_a_stage_watches_the_workflow_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[object] = []
    monkeypatch.setattr(process_tree, "ancestors", lambda environment: "those above")
    monkeypatch.setattr(process_tree, "end_with", lambda above, tell: watched.append(above))
    main(run, ["--table", str(tmp_path / "t.json"), "--names", "a"])
    assert watched == ["those above"]


@pytest.mark.parametrize(("rank", "is_written"), [(None, True), ("0", True), ("1", False)])
def test_only_the_first_process_of_a_launch_writes_the_log_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str | None, is_written: bool
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    log = tmp_path / "run.log"
    main(run, ["--table", str(tmp_path / "t.json"), "--names", "a", "--log", str(log)])
    assert log.exists() == is_written


@pytest.mark.parametrize("handler", [signal.SIG_IGN, print])
def test_existing_signal_handlers_are_kept(handler: object, tmp_path: Path) -> None:
    """By nohup, or by who calls a stage in its own process."""
    found: list[object] = []

    def look(*, table: Path) -> None:
        found.append(signal.getsignal(signal.SIGHUP))

    inherited = signal.signal(signal.SIGHUP, handler)  # type: ignore[arg-type]
    try:
        main(look, ["--table", str(tmp_path)])
        found.append(signal.getsignal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, inherited)
    assert found == [handler, handler]


def test_a_full_disk_is_a_user_error_and_other_os_errors_are_bugs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*, number: int) -> None:
        raise OSError(number, os.strerror(number), "out.parquet")

    with pytest.raises(SystemExit) as exit_:
        main(fail, ["--number", str(errno.ENOSPC)])
    assert exit_.value.code == EXIT_USER_ERROR
    assert "out.parquet cannot be read or written" in capsys.readouterr().err
    with pytest.raises(OSError, match="Bad address"):
        main(fail, ["--number", str(errno.EFAULT)])


@pytest.mark.parametrize("name", ["table/run.log", "folder", 300 * "a", "loop"])
def test_an_invalid_log_path_is_a_user_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit) as exit_:
        main(run, ["--table", str(tmp_path / "t"), "--names", "a", "--log", str(tmp_path / name)])
    assert exit_.value.code == EXIT_USER_ERROR
    assert name.removesuffix("/run.log") in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_a_user_error_is_passed_on_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as exit_:
        main(run, ["--table", "t", "--names", "bad"])
    assert exit_.value.code == EXIT_USER_ERROR
    found = json.loads(told.read_text())
    assert found["message"] == "names: 'bad' is not a name; choose another"
    assert found["kind"] == "UserError"
