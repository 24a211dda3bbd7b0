"""The command line that all stages share: options from ``run``'s signature, log, exit code."""

import argparse
import errno
import gc
import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from higgs_pipe.errors import EXIT_USER_ERROR, UserError, list_offenders
from higgs_pipe.planning import process_tree
from higgs_pipe.planning.interruption import SAME_SIGNAL_SECONDS

logger = logging.getLogger("higgs_pipe")

# Where torchrun looks for a message; set in each of several processes.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# What a user can put right: no room, no right, a disk that fails or is read-only, another path.
OF_THE_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.EIO, errno.ESTALE,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
METAVARS: dict[type, str] = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


class Interruption(KeyboardInterrupt):
    """A signal that ends a stage as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(run: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Run one stage from the command line and exit the process.

    Every keyword of ``run`` becomes an option: ``clips_path: Path`` is ``--clips-path``,
    ``list[Path]`` takes several values, and a keyword with a default is optional. An argument
    before ``/`` is positional. The help of an option is its entry under ``Args:`` in ``run``'s
    docstring. ``--log`` also writes the messages to a file.

    SIGTERM and SIGHUP end a stage as Ctrl-C does: unfinished files are removed. The stage also gets
    SIGTERM when the workflow that started it has ended. ``nohup`` keeps its meaning.

    The exit code is 0; 2 after a :class:`UserError` or if the disk is full, failing or read-only (a
    message is printed, no traceback); 128 + the signal's number after a signal; and 1 after a bug
    (its traceback also goes to the log).
    """
    gc.freeze()  # keeps the many objects that imports make out of every later collection
    options = vars(_parser(run).parse_args(argv))
    log_path = options.pop("log")
    _set_up_logging()
    sys.excepthook = _log_bug
    places = [name for name, p in inspect.signature(run).parameters.items() if is_place(p)]
    process_tree.end_with(process_tree.ancestors(os.environ), _tell_end)
    try:
        if log_path is not None and is_main_process():
            _log_to(log_path)
        _check_encodable(options)
        with _signals_as_ctrl_c():
            run(*[options.pop(name) for name in places], **options)
    except UserError as error:
        _exit_with(error)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        _exit_with(
            UserError(
                f"{error.filename2 or error.filename or 'a file'} cannot be read or written "
                f"({os.strerror(error.errno)}); free space, fix its permissions or "
                "name another path, and run again."
            )
        )
    except Interruption as error:
        _exit(128 + error.number)
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)


def _check_encodable(options: Mapping[str, Any]) -> None:
    """Check that all texts and paths of the command line are UTF-8, as everything after expects.

    Raises:
        UserError: Some are not; lists all.
    """
    given = [
        (name, str(value))
        for name, values in options.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    faults = [f"{name.replace('_', '-')} {value!r}" for name, value in given if not _is_utf8(value)]
    if faults:
        raise UserError(f"These options are not UTF-8:\n{list_offenders(faults)}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _exit_with(error: UserError) -> NoReturn:
    logger.error("%s", error)
    _record_for_launcher(error)
    _exit(EXIT_USER_ERROR)


def _exit(code: int) -> NoReturn:
    """Exit; at once if there are several processes, because Python's exit would wait for them."""
    if ERROR_FILE in os.environ:
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Let signals interrupt the block, unless they are ignored or handled; once, if they repeat."""
    last_at: float | None = None

    def interrupt(number: int, _: types.FrameType | None) -> None:
        nonlocal last_at
        if last_at is None or time.monotonic() - last_at > SAME_SIGNAL_SECONDS:
            last_at = time.monotonic()
            raise Interruption(number)  # a second one would stop what clears up after the first

    free = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    ]
    before = {number: signal.signal(number, interrupt) for number in free}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_end(process: process_tree.Process) -> None:
    logger.warning("process %d, which started this stage, has ended; it ends too", process.pid)


def _record_for_launcher(error: UserError) -> None:
    """Write the sentence to torchrun's error file, for the launcher to print last."""
    path = os.environ.get(ERROR_FILE)
    if path:
        record = {
            "message": str(error),
            "timestamp": int(time.time()),
            "kind": type(error).__name__,
        }
        Path(path).write_text(json.dumps(record), encoding="utf-8")


def _log_bug(
    kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None
) -> None:
    """Write a bug's traceback to the console and to the log file."""
    message = "This is a bug in higgs_pipe; please report it with this traceback"
    logger.critical(message, exc_info=(kind, error, traceback))


def run_in_fresh_process(module: str, failure: str, **options: Path | str) -> None:
    """Run a module's command line in a fresh process.

    Args:
        module: Its name below ``higgs_pipe``.
        failure: First part of the message if the process fails.
        options: Keywords of the module's ``run``.

    Raises:
        UserError: The process failed; the message ends with its own error output.
    """
    command = [sys.executable, "-m", f"higgs_pipe.{module}"]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    finished = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        raise UserError(f"{failure}:\n{finished.stderr.strip()}")


def is_main_process() -> bool:
    """Return whether this process, of those that ``accelerate launch`` started, writes the log."""
    return os.environ.get("RANK", "0") == "0"


def is_place(parameter: inspect.Parameter) -> bool:
    """Return whether an argument is positional."""
    return parameter.kind is inspect.Parameter.POSITIONAL_ONLY


def _parser(run: Callable[..., None]) -> argparse.ArgumentParser:
    summary, described = _documented(inspect.getdoc(run) or "")
    parser = argparse.ArgumentParser(
        prog=f"python -m {inspect.getmodule(run).__spec__.name}"  # type: ignore[union-attr]
        + (f" {run.__name__}" if run.__name__ != "run" else ""),
        description=summary,
    )
    hints = typing.get_type_hints(run)
    for name, parameter in inspect.signature(run).parameters.items():
        value_type, is_list = _value_type(hints[name])
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        suffix = "" if default is None else f" (default: {default})"
        if is_place(parameter):
            parser.add_argument(name, type=value_type, help=described.get(name, ""))
            continue
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=value_type,
            action="extend" if is_list else "store",  # a list may be given in parts
            nargs="+" if is_list else None,
            metavar=METAVARS[value_type],
            required=required,
            default=default,
            help=described.get(name, "") + suffix,
        )
    parser.add_argument(
        "--log", type=Path, metavar="PATH", help="File that also gets the messages of the log."
    )
    return parser


def _documented(docstring: str) -> tuple[str, dict[str, str]]:
    """Return the summary of a Google-style docstring, and its text on each argument."""
    plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", docstring).replace("``", "").replace("%", "%%")
    summary, *sections = plain.split("\n\n")
    arguments = [section for section in sections if section.startswith("Args:\n")]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", "".join(arguments), re.MULTILINE)
    return summary, {name: " ".join(text.split()) for name, text in entries}


def _value_type(hint: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether the option takes several."""
    if isinstance(hint, types.UnionType):  # ``X | None``
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _set_up_logging() -> None:
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel(logging.INFO)  # the log file has the details too
    if not is_main_process():
        # The launcher prints the one sentence that matters.
        is_recorded = ERROR_FILE in os.environ
        console.setLevel(logging.CRITICAL if is_recorded else logging.ERROR)
    logger.addHandler(console)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    log_file = logging.FileHandler(path, mode="w", encoding="utf-8", errors="backslashreplace")
    log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(log_file)
