"""The stages under fault injection, each with the results of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.stages import Stage, Zygote, later_stages_of, stages_of
from trainings import PackedCorpus


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="session")
def stages(
    corpus: PackedCorpus, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Stage]:
    folder = tmp_path_factory.mktemp("run")
    found = [*stages_of(corpus, folder), *later_stages_of(corpus, folder, zygote)]
    whole = tmp_path_factory.mktemp("whole")
    return {stage.module: stage.measured(zygote, whole / stage.module) for stage in found}
