"""Tests that are run again and again: what is counted."""

from pathlib import Path

import repeats

TESTS = """
import pytest

def test_that_passes():
    pass

def test_that_fails_in_every_second_run(runs):
    assert runs % 2 == 0

@pytest.mark.skip
def test_that_is_skipped():
    pass

@pytest.fixture
def runs():
    from pathlib import Path
    noted = Path("runs")
    noted.write_text(noted.read_text() + "." if noted.exists() else "")
    return len(noted.read_text())

@pytest.fixture
def broken():
    yield
    raise OSError

def test_whose_end_fails(broken):
    pass
"""


def test_runs_and_failures_are_counted_per_test(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    report, counts = tmp_path / "report.xml", repeats.read_counts(tmp_path / "none")
    failed = []
    for _ in range(2):
        repeats.run_tests(tmp_path, ["test_some.py"], "-p no:randomly", report)
        failed += repeats.count_report(report, counts)
    name = "test_some::test_that_fails_in_every_second_run"
    assert failed == ["test_some::test_whose_end_fails", name, "test_some::test_whose_end_fails"]
    repeats.write_counts(tmp_path / "counts", counts)
    found = repeats.read_counts(tmp_path / "counts")
    assert {n.partition("::")[2]: (c.runs, c.failures) for n, c in found.items()} == {
        "test_that_passes": (2, 0),
        "test_that_fails_in_every_second_run": (2, 1),
        "test_whose_end_fails": (2, 2),
    }
    rows = [line for line in repeats.table(found, "others") if line.startswith("| `")]
    assert "| `test_some::test_whose_end_fails` | 2 | 2 |" in rows[0]
    assert f"| `{name}` | 2 | 1 |" in rows[1]


def test_the_copied_tree_has_the_files_git_tracks(tmp_path: Path) -> None:
    tree = repeats.copy_tree(tmp_path / "tree")
    assert (tree / "tests/test_repeats.py").is_file()
    assert (tree / "Snakefile").read_text() == (repeats.ROOT / "Snakefile").read_text()
    assert not (tree / ".venv").exists()
