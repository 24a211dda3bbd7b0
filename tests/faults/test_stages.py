"""Stages that are killed, lack disk space or permission, run twice, or see clock jumps."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.page import Record
from faults.stages import NAMES, Stage, Zygote, emptied, results_in

pytestmark = pytest.mark.slow

SEED = 17
# Of each stage; `make faults` has ten, with a whole run after each.
NUM_KILLS = int(os.environ.get("FAULTS_NUM_KILLS", "2"))
IS_EACH_RERUN = NUM_KILLS >= 10
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
CODES = {signal.SIGKILL: -signal.SIGKILL} | {number: 128 + number for number in SIGNALS}
PAGE_BYTES = 4096
WITH_TIMES = {"metrics.jsonl", "run.json", ".lock"}  # seconds of a step, when it began
OF_1970, OF_2100 = 0, 4_102_444_800  # seconds


def is_unfinished(file: str) -> bool:
    return any(part.startswith(".") and part != ".lock" for part in Path(file).parts)


def end(
    stage: Stage, zygote: Zygote, folder: Path, by: signal.Signals, place: int, draw: random.Random
) -> None:
    """Interrupt a stage before a write or at some moment; unfinished files start with a dot."""
    stderr, before = folder.with_name("stderr"), results_in(folder)
    is_a_write = place <= stage.num_writes
    at = {"at_write": place} if is_a_write else {"after_seconds": draw.uniform(0, 2)}
    code = zygote.run(stage.module, stage.arguments(folder), stderr, end_by=by, **at)
    assert code in (0, CODES[by]), stderr.read_text()
    left = results_in(folder)
    if by != signal.SIGKILL:  # the stage itself leaves nothing; it may not have cleared up yet
        assert [file for file in left if is_unfinished(file) and file not in before] == [], place
    named = [file for file in left if file in stage.whole and not is_unfinished(file)]
    assert [file for file in named if left[file] != stage.whole[file]] == [], place


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_stage_leaves_no_partial_file_and_reruns_completely(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    """Kills come before randomly drawn writes or, if there are too few writes, at other moments."""
    stage, draw, folder = stages[name], random.Random(f"{SEED} {name}"), tmp_path / "results"
    places = draw.sample(range(1, max(stage.num_writes, NUM_KILLS) + 1), NUM_KILLS)
    ends = [(signal.SIGKILL, place) for place in places]
    ends += [(number, draw.randint(1, stage.num_writes)) for number in SIGNALS]
    folder.mkdir()
    for index, (number, place) in enumerate(ends):
        end(stage, zygote, folder, number, place, draw)
        if IS_EACH_RERUN or index == len(ends) - 1:
            stderr = tmp_path / "stderr"
            assert zygote.run(name, stage.arguments(folder), stderr) == 0, stderr.read_text()
            assert stage.results_in(folder) == stage.whole
            assert [file for file in results_in(folder) if is_unfinished(file)] == []
            emptied(folder)
    record("SIGKILL before seeded writes", name, equal=NUM_KILLS)
    record("SIGTERM, SIGHUP, SIGINT before seeded writes", name, equal=len(SIGNALS))


@contextmanager
def full_disk(folder: Path, num_bytes: int) -> Iterator[dict[str, str]]:
    """A disk of that many bytes or, if none can be mounted, a limit on the size of each file."""
    size = f"size={max(num_bytes // PAGE_BYTES, 1) * PAGE_BYTES}"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=False)
    try:
        yield {} if mount.returncode == 0 else {"fault": "full"}
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def assert_refused(stage: Stage, folder: Path, code: int, said: str) -> None:
    """Check that the error names the folder and that the folder has no partial file."""
    assert code == 2, said
    assert str(folder) in said
    assert "Traceback" not in said
    left = stage.results_in(folder)
    assert {file: stage.whole[file] for file in left} == left


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_a_user_error_and_a_rerun_completes(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    stage, stderr, folder = stages[name], tmp_path / "stderr", tmp_path / "results"
    folder.mkdir()
    with full_disk(folder, sum(map(len, stage.everything.values())) // 2) as fault:
        code = zygote.run(name, stage.arguments(folder), stderr, **fault)
        assert_refused(stage, folder, code, stderr.read_text())
        if not fault:
            subprocess.run(["mount", "-o", "remount,size=1G", folder], check=True)
        assert zygote.run(name, stage.arguments(folder), stderr) == 0
        assert stage.results_in(folder) == stage.whole
        assert [file for file in results_in(folder) if is_unfinished(file)] == []
    record("disk full", name, refused=1)


@pytest.mark.parametrize("name", NAMES)
def test_an_unwritable_folder_is_a_user_error(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    stage, stderr, folder = stages[name], tmp_path / "stderr", tmp_path / "results"
    folder.mkdir(mode=0o555)
    code = zygote.run(name, stage.arguments(folder), stderr, fault="readonly")
    assert_refused(stage, folder, code, stderr.read_text())
    assert results_in(folder) == {}
    record("read-only results", name, refused=1)


@pytest.mark.parametrize("name", NAMES)
def test_two_concurrent_runs_of_a_stage_give_the_result_of_one(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    stage, stderr, folder = stages[name], tmp_path / "stderr", tmp_path / "results"
    folder.mkdir()
    *codes, _ = zygote.answer(name, stage.arguments(folder), stderr, num_copies=2)
    assert codes == [0, 0], stderr.read_text()
    assert stage.results_in(folder) == stage.whole
    assert [file for file in results_in(folder) if is_unfinished(file)] == []
    record("two at once", name, equal=1)


@contextmanager
def dated(paths: list[Path], draw: random.Random) -> Iterator[None]:
    """Set the times of files to 1970 and 2100."""
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    times = {file: file.stat() for file in files}
    try:
        for file in files:
            os.utime(file, (draw.choice((OF_1970, OF_2100)),) * 2)
        yield
    finally:
        for file, before in times.items():
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", NAMES)
def test_clock_jumps_and_extreme_file_times_change_no_byte(
    name: str, stages: dict[str, Stage], zygote: Zygote, tmp_path: Path, record: Record
) -> None:
    stage, stderr, folder = stages[name], tmp_path / "stderr", tmp_path / "results"
    folder.mkdir()
    with dated(list(stage.inputs.values()), random.Random(f"{SEED} {name}")):
        code = zygote.run(name, stage.arguments(folder), stderr, fault="clock")
    assert code == 0, stderr.read_text()
    found = results_in(folder)
    assert found.keys() == stage.everything.keys()
    differing = {file for file in found if found[file] != stage.everything[file]}
    assert {file for file in differing if Path(file).name not in WITH_TIMES} == set()
    record("a clock that jumps by hours, files of 1970 and 2100", name, equal=1)
