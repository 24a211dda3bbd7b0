"""The small mistakes can still be made, and there is one for each setting that decides a result."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from mutants.mistakes import Mistake, read_mistakes

from higgs_pipe.config.rules import Section
from higgs_pipe.config.settings import Config

MISTAKES = read_mistakes()
# Settings without a mistake, and why.
OTHERWISE = {
    "validate.speech_models.device": "needs a GPU",
    "tokenize.device": "needs a GPU",
    "tokenize.dtype": "needs a GPU",
    "train.device": "needs a GPU",
    "train.tf32": "needs a GPU",
    "eval.device": "needs a GPU",
    "eval.num_processes": "changes the speed alone, as test_evaluate shows",
    "train.rows_per_micro_batch": "changes the speed alone, as test_train shows",
    "train.cuda_graphs": "changes the speed alone, as test_graphs shows",
    "train.compile": "changes the speed alone, as test_model shows",
    "eval.compile": "changes the speed alone, as test_model shows",
    "package.forms": "tests/planning/test_forms.py plans each form",
}


def settings_of(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The keys of a section and of those in it, dotted."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings_of(kind, f"{key}.")
        else:
            yield key


def test_every_mistake_can_be_made_and_names_tests_that_exist() -> None:
    assert [fault for mistake in MISTAKES for fault in mistake.faults(ROOT)] == []


def test_every_mistake_has_a_name_of_its_own() -> None:
    assert len({mistake.title for mistake in MISTAKES}) == len(MISTAKES) >= 120


def test_every_setting_that_decides_a_result_has_a_mistake() -> None:
    named = {word for m in MISTAKES for word in re.findall(r"[\w.]*\w", m.promise)}
    settings = set(settings_of(Config))
    assert sorted(settings - named) == sorted(OTHERWISE)


def test_a_mistake_that_no_longer_fits_is_named(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\nb = 1\n")
    (tmp_path / "test_code.py").write_text("def test_a(): ...\n")

    def faults(old: str, test: str = "test_code.py::test_a[1]", file: str = "code.py") -> int:
        mistake = Mistake("room", "name", "promise", file, old, "2", (test,))
        return len(mistake.faults(tmp_path))

    assert faults("a = 1") == 0
    assert faults("= 1") == faults("c") == faults("a = 1", file="gone.py") == 1
    assert faults("a = 1", "test_code.py::test_b") == faults("a = 1", "test_gone.py") == 1
    assert faults("c", "test_code.py::test_b") == 2


def test_a_mistake_is_undone(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("a = 1\n")
    mistake = Mistake("room", "name", "promise", "code.py", "= 1", "= 2", ("test",))
    with mistake.made_in(tmp_path):
        assert code.read_text() == "a = 2\n"
    assert code.read_text() == "a = 1\n"


ENTRY = {"name": "a", "promise": "p", "file": "f", "old": "o", "new": "n", "tests": ["t"]}


@pytest.mark.parametrize("change", [{"new": "o"}, {"tests": []}, {"more": "m"}])
def test_an_entry_that_changes_nothing_or_is_not_whole_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    def write(entry: dict[str, Any]) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        (tmp_path / "room.toml").write_text("\n".join(["[[mistake]]", *lines]))

    write(ENTRY)
    assert [mistake.title for mistake in read_mistakes(tmp_path)] == ["room/a"]
    write(ENTRY | change)
    with pytest.raises(ValueError, match=r"room\.toml"):
        read_mistakes(tmp_path)
