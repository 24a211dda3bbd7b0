"""Lines that no test reaches, and their reasons."""

from pathlib import Path

import pytest
from uncovered.run import Reason, functions_of, gaps_of, read_reasons, spans, table_of

REPORT = {
    "totals": {"covered_lines": 5, "num_statements": 9, "percent_covered": 55.6},
    "files": {
        "higgs_pipe/a.py": {
            "missing_lines": [3, 4, 9],
            "summary": {"percent_covered": 40.0},
            "functions": {
                "Card.read": {"missing_lines": [3, 4]},
                "": {"missing_lines": [9]},
                "seen": {"missing_lines": []},
            },
        },
        "higgs_pipe/b.py": {"missing_lines": [], "summary": {}, "functions": {}},
    },
}


def test_an_uncovered_line_without_a_reason_is_found() -> None:
    gaps = gaps_of(REPORT, [Reason("higgs_pipe/a.py", "needs CUDA", "Card.read")])
    assert [(gap.function, gap.lines, gap.because) for gap in gaps] == [
        ("Card.read", (3, 4), "needs CUDA"),
        ("", (9,), None),
    ]


def test_the_reason_for_a_function_overrides_that_for_its_file() -> None:
    reasons = [Reason("higgs_pipe/a.py", "file"), Reason("higgs_pipe/a.py", "function", "")]
    assert [gap.because for gap in gaps_of(REPORT, reasons)] == ["file", "function"]


def test_the_table_shows_each_gap_and_the_totals() -> None:
    lines = table_of(REPORT, gaps_of(REPORT, []))
    assert "5 of 9 lines, 55.6 %; 1 of 2 modules in full" in lines[0]
    assert lines[-1] == "| `a.py` | 40 % | Card.read 3-4; module 9 | **none** |"


def test_line_numbers_are_joined_into_ranges() -> None:
    assert spans([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def test_functions_are_named_with_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "class A:\n    def f(self):\n        def g(): ...\nif True:\n    def h(): ...\n"
    )
    assert functions_of(path) == {"", "A", "A.f", "A.f.g", "h"}


@pytest.mark.parametrize(
    ("file", "function"), [("higgs_pipe/none.py", None), ("higgs_pipe/cli.py", "none")]
)
def test_a_reason_for_missing_code_is_a_fault(file: str, function: str | None) -> None:
    assert Reason(file, "why", function).fault()


def test_every_reason_names_existing_code() -> None:
    assert [fault for reason in read_reasons() if (fault := reason.fault())] == []
