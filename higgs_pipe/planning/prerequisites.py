"""Checks that must pass before anything else in the Snakefile works."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

from higgs_pipe.errors import UserError

MIN_SNAKEMAKE = (9, 27)  # what every test runs


def check_snakemake(found: str | None = None) -> None:
    """Check the version of Snakemake.

    Args:
        found: The version; None: that of the running Snakemake.

    Raises:
        UserError: It is too old.
    """
    found = found or version("snakemake")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < MIN_SNAKEMAKE:
        needed = ".".join(map(str, MIN_SNAKEMAKE))
        raise UserError(
            f"This is Snakemake {found} ({sys.executable}), and the workflow needs {needed} or "
            f"newer: pip install 'snakemake>={needed}', or run the one that `make` puts into .venv."
        )


def check_place(root: Path) -> None:
    """Check the location of the checkout.

    Raises:
        UserError: Its path has braces.
    """
    if "{" in str(root) or "}" in str(root):
        raise UserError(
            f"The checkout is in {root}, and Snakemake takes braces for wildcards. Move it to "
            "another folder; --directory runs it elsewhere."
        )
