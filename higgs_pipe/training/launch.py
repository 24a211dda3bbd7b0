"""``accelerate launch`` with a clean end.

It takes the options of ``accelerate launch`` and adds five things:

- It passes SIGTERM, SIGINT and SIGHUP on to the processes and waits for them to end, however long
  their step takes. Accelerate itself would leave a single process behind, and torchrun would kill
  several after 30 seconds.
- If the workflow that started it ends, it sends SIGTERM to its processes; they get it as well if
  the launcher itself ends.
- It exits with the code of the process that failed.
- If a process is lost, or one other than the first fails, it prints that process's message last,
  instead of the launcher's own traceback.
- It deletes torchrun's folder of error files, which torchrun itself leaves in the folder for
  temporary files.

In a Slurm job over several machines, this machine's rank, the first machine's address and a port
come from Slurm.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import yaml

from higgs_pipe.errors import EXIT_USER_ERROR
from higgs_pipe.planning import process_tree

# Torchrun's options, given by the environment because Accelerate does not pass them. Torchrun shall
# leave signals to us, and wait 10 seconds before it kills the peers of a lost process.
TORCHRUN_OPTIONS = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT", "PET_SHUTDOWN_TIMEOUT": "10"}


# Ports below those that Linux gives to outgoing connections.
FIRST_PORT, NUM_PORTS = 20_000, 10_000


def main(argv: Sequence[str]) -> int:
    """Launch, and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _pass_on)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, _pass_on)
    process_tree.end_with(process_tree.ancestors(os.environ))
    process_tree.mark(os.environ)
    os.environ.update(TORCHRUN_OPTIONS)
    # We report a failed process below; torchrun, which has two kinds of logger, is to be silent.
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(argv)
    if (arguments.num_machines or 1) > 1:
        place_in_slurm_job(arguments, os.environ)
    if fault := port_fault(arguments.main_process_port, arguments.machine_rank):
        print(fault, file=sys.stderr)
        return EXIT_USER_ERROR
    with tempfile.TemporaryDirectory() as error_dir:
        arguments.log_dir = arguments.log_dir or error_dir
        try:
            launch_command(arguments)
        except ChildFailedError as error:
            sentence, exit_code = cause(error.failures)
            if sentence:
                print(sentence, file=sys.stderr)
            return exit_code
        except subprocess.CalledProcessError as error:
            if error.returncode < 0:
                print(_lost(0, -error.returncode), file=sys.stderr)
            return _exit_code(error.returncode)
    return 0


def port_fault(port: int | None, machine_rank: int | None) -> str | None:
    """Return an error message if another process has this port of the machine; None if it is free.

    Args:
        port: The port at which the processes meet; None or 0: any free one.
        machine_rank: The number of this machine; on others than the first, nothing listens.
    """
    if not port or machine_rank:
        return None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return (
                f"train.main_process_port: {port} cannot be used here ({error.strerror}). Set "
                "another one, or null, which takes a free one."
            )
    return None


def cause(failures: Mapping[int, Any]) -> tuple[str, int]:
    """Find out why the processes ended.

    Args:
        failures: Rank to torchrun's ``ProcessFailure``, in the order in which torchrun noticed
            them. Once it has noticed some, it sends SIGTERM to the others.

    Returns:
        The message, empty where process 0 or a traceback has printed it; and the exit code.
    """
    first = next(iter(failures))
    rank, failure = min(
        failures.items(), key=lambda item: _remoteness(item[1], is_first=item[0] == first)
    )
    if failure.exitcode < 0:
        return _lost(rank, -failure.exitcode), _exit_code(failure.exitcode)
    sentence = _record(failure.error_file)["message"]
    first_process = Path(failure.error_file).parent.parent / "0" / "error.json"
    if rank == failure.local_rank and sentence == _record(str(first_process))["message"]:
        sentence = ""
    return sentence, _exit_code(failure.exitcode)


def _remoteness(failure: Any, *, is_first: bool) -> int:
    """Rank by distance from the cause.

    0 own error, 1 kill (perhaps torchrun's), 2 lost peer, 3 SIGTERM (torchrun's, unless it came
    first).
    """
    if _exit_code(failure.exitcode) == 128 + signal.SIGTERM and not is_first:
        return 3
    kind = _record(failure.error_file)["kind"]
    return 2 if kind == "LostProcessError" else 1 if failure.exitcode < 0 else 0


def _record(error_file: str) -> dict[str, Any]:
    """Read the error that :func:`higgs_pipe.cli.main` recorded."""
    if not Path(error_file).is_file():
        return {"message": "", "kind": ""}
    return cast(dict[str, Any], json.loads(Path(error_file).read_text(encoding="utf-8")))


def _lost(rank: int, number: int) -> str:
    return (
        f"{signal.Signals(number).name} ended process {rank}. If nobody sent it, the machine may "
        "be out of memory (see dmesg, or the job's limits). Run snakemake again: training resumes "
        "from its last checkpoint, which is intact."
    )


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _pass_on(number: int, _: types.FrameType | None) -> None:
    processes = psutil.Process().children()
    for process in processes:
        process.send_signal(number)
    if not processes:  # none has started yet
        sys.exit(128 + number)


def place_in_slurm_job(arguments: Any, environment: Mapping[str, str]) -> None:
    """Fill in this machine's place in a Slurm job, unless options or the config file give it.

    The rank is that of the node. The address is Slurm's for the job's first node. The port is
    derived from the job number, so that two trainings that share a node do not collide.
    """
    given = yaml.safe_load(Path(arguments.config_file).read_text(encoding="utf-8"))
    for key in ("main_process_ip", "main_process_port"):
        if getattr(arguments, key) is None:
            setattr(arguments, key, given.get(key))
    if arguments.machine_rank is None and "SLURM_NODEID" in environment:
        arguments.machine_rank = int(environment["SLURM_NODEID"])
    if arguments.main_process_ip is None and "SLURM_JOB_NODELIST" in environment:
        first = _scontrol("hostnames", environment["SLURM_JOB_NODELIST"]).split()[0]
        node = dict(word.split("=", 1) for word in _scontrol("node", first).split() if "=" in word)
        arguments.main_process_ip = node.get("NodeAddr", first)
    if arguments.main_process_port is None:
        job = int(environment.get("SLURM_JOB_ID", 0))
        arguments.main_process_port = FIRST_PORT + job % NUM_PORTS


def _scontrol(kind: str, name: str) -> str:
    command = ["scontrol", "show", "--oneliner", kind, name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
