"""Signals sent to Snakemake alone: they end its jobs too."""

import os
import signal
import types
from contextlib import suppress

from higgs_pipe.planning.process_tree import children

# Signals that follow within this time are one: a terminal, Slurm, Snakemake and a launcher may each
# send their own.
SAME_SIGNAL_SECONDS = 10.0


def end_as_ctrl_c() -> None:
    """Let SIGTERM, SIGINT and SIGHUP end Snakemake and its jobs as Ctrl-C in a terminal does.

    By itself, Snakemake would wait for its jobs after SIGTERM or SIGINT, which may take days, and
    would die at once after SIGHUP. With this, training saves a checkpoint. Ignored signals, as
    under ``nohup``, stay ignored. After Ctrl-C in a terminal, jobs get two signals and count them
    as one.
    """
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    caught: list[int] = []

    def end(number: int, _: types.FrameType | None) -> None:
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if number == signal.SIGHUP:  # its last words would fail in a terminal that is closed
            for fd in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        caught.append(number)
        if len(caught) == 1:  # a second one would interrupt the end that the first one began
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
