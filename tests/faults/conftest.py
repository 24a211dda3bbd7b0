"""What happened in each fault, for the table of ``make faults``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.page import Happened, table
from pages import put_table

Record = Callable[..., None]


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Note a fault and how it ended.

    The table is written into the page that FAULTS_PAGE names if it names one and no test failed.
    """
    noted: list[Happened] = []

    def note(fault: str, stage: str, **counts: int) -> None:
        noted.append(Happened(fault, stage, **counts))

    yield note
    name = os.environ.get("FAULTS_PAGE")
    if name and request.session.testsfailed == 0:
        put_table(Path(name), "faults", table(noted))
