"""The whole report against the one that is written down."""

from pathlib import Path

from written_report import written_report


def test_the_report_matches_the_golden_file(tmp_path: Path) -> None:
    """Each value in its place; ``written_report.py`` tells how to write it down again."""
    expected = Path(__file__).with_name("report.txt").read_text(encoding="utf-8")
    assert written_report(tmp_path).splitlines() == expected.splitlines()
