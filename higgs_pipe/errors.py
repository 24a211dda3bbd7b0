"""The one exception that a person is meant to read."""

from collections.abc import Sequence

NUM_OFFENDERS_SHOWN = 20


class UserError(Exception):
    """Something the user can mend: the message names the place, the fact and the next step.

    The command line prints it without a traceback and exits with code 2.
    """


class LostProcessError(UserError):
    """Another process of the same launch ended: it knows why, this one does not."""


class SilentProcessError(LostProcessError):
    """Another process of the same launch hangs: this one is the only one that can say so."""


def list_offenders(offenders: Sequence[str]) -> str:
    """The first 20 offenders, one indented line each, and how many more there are."""
    lines = [f"  {offender}" for offender in offenders[:NUM_OFFENDERS_SHOWN]]
    if len(offenders) > NUM_OFFENDERS_SHOWN:
        lines.append(f"  ... and {len(offenders) - NUM_OFFENDERS_SHOWN:,} more")
    return "\n".join(lines)
