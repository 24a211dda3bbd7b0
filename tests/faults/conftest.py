"""What happened in each fault, for the table of ``make faults``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.page import Happened, page

Record = Callable[..., None]


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Note a fault and how it ended.

    The page is written if FAULTS_PAGE names it and no test failed.
    """
    noted: list[Happened] = []

    def note(fault: str, stage: str, **counts: int) -> None:
        noted.append(Happened(fault, stage, **counts))

    yield note
    name = os.environ.get("FAULTS_PAGE")
    if name and request.session.testsfailed == 0:
        Path(name).write_text(page(noted), encoding="utf-8")
