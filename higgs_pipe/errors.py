"""The exceptions for errors that a user can fix, and their exit code."""

from collections.abc import Sequence

EXIT_USER_ERROR = 2
NUM_OFFENDERS_SHOWN = 20


class UserError(Exception):
    """An error that the user can fix: its message names the place, the fact and the next step.

    The command line prints the message without a traceback and exits with code 2.
    """


class LostProcessError(UserError):
    """Another process of the same launch ended; it reports the cause, not this one."""


class SilentProcessError(LostProcessError):
    """Another process of the same launch hangs; only the processes that wait can report it."""


def list_offenders(offenders: Sequence[str]) -> str:
    """Return the first 20 offenders, one per indented line, and the number of the rest."""
    lines = [f"  {offender}" for offender in offenders[:NUM_OFFENDERS_SHOWN]]
    if len(offenders) > NUM_OFFENDERS_SHOWN:
        lines.append(f"  ... and {len(offenders) - NUM_OFFENDERS_SHOWN:,} more")
    return "\n".join(lines)
