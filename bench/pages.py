"""Tables that commands write into pages of docs/, each between two marks."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path


def put_table(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises
    ------
    ValueError
        The page does not have both marks, in this order and once each.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = page.read_text(encoding="utf-8").split(opening)
    _, after = rest.split(closing)
    text = "\n".join(lines)
    page.write_text(f"{before}{opening}{text}\n{closing}{after}", encoding="utf-8")


def processor_name() -> str:
    """Return what the processor calls itself: ``AMD EPYC``."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return cpu[1] if cpu else platform.machine()


def machine_now() -> str:
    """Return the date and the machine: ``2026-11-27, AMD EPYC, 2 cores, Python 3.11.7``."""
    python = platform.python_version()
    return f"{date.today()}, {processor_name()}, {os.cpu_count()} cores, Python {python}"
