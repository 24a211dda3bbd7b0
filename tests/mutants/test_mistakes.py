"""The small mistakes can still be made, and there is one for each setting."""

import copy
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from mutants.mistakes import Mistake, read_mistakes
from mutants.run import all_mistakes
from mutants.settings import DROP, WORKFLOW, class_of, read_groups

from higgs_pipe.config.rules import Section
from higgs_pipe.config.settings import Config, ManifestEntry
from higgs_pipe.config.stages import STAGES

GROUPS = read_groups()
MISTAKES = all_mistakes()


def settings_in(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The keys of a section and of those in it, dotted; without those that must be given."""
    for name, field in section.model_fields.items():
        key, kind = f"{prefix}{field.alias or name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings_in(kind, f"{key}.")
        elif not field.is_required():
            yield key
        if name in ("manifest", "other_manifest"):
            yield from settings_in(ManifestEntry, f"{key}.")


def test_every_mistake_can_be_applied_and_names_existing_tests() -> None:
    assert [fault for mistake in MISTAKES for fault in mistake.faults(ROOT)] == []


def test_every_mistake_has_a_unique_name() -> None:
    assert len({mistake.title for mistake in MISTAKES}) == len(MISTAKES) >= 120


def test_every_setting_is_listed_once_per_stage_that_reads_it() -> None:
    read = [(name, key) for name, stage in STAGES.items() for key in settings_in(stage)]
    listed = [(group.stage, key) for group in GROUPS for key in group.settings]
    assert sorted(place for place in listed if place[0] != WORKFLOW) == sorted(read)
    assert len(set(listed)) == len(listed)


def test_every_setting_has_a_test_that_sees_it_arrive() -> None:
    seen = {key for group in GROUPS if group.tests for key in group.settings}
    assert set(settings_in(Config)) - seen == set()
    assert all(bool(group.tests) != bool(group.reason) for group in GROUPS)


def test_a_dropped_setting_is_missing_from_the_stage_that_reads_it() -> None:
    assert {class_of(name) for name in STAGES} == {stage.__name__ for stage in STAGES.values()}
    given: dict[str, Any] = {"data": {"num_shards": 3, "split_seed": 4}}
    given["manifest"] = ["a", {"path": "b", "root": "c", "speaker": "d"}]
    for setting, expected in (
        ("data.split_seed", given | {"data": {"num_shards": 3}}),
        ("manifest.root", given | {"manifest": ["a", {"path": "b", "speaker": "d"}]}),
        ("validate.check_texts", given),
    ):
        read = copy.deepcopy(given)
        exec(textwrap.dedent(DROP.format(setting=setting)), {"holders": [read]})
        assert read == expected


def test_a_stale_mistake_is_reported(tmp_path: Path) -> None:
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
def test_a_no_op_or_incomplete_entry_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    def write(entry: dict[str, Any]) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        (tmp_path / "room.toml").write_text("\n".join(["[[mistake]]", *lines]))

    write(ENTRY)
    assert [mistake.title for mistake in read_mistakes(tmp_path)] == ["room/a"]
    write(ENTRY | change)
    with pytest.raises(ValueError, match=r"room\.toml"):
        read_mistakes(tmp_path)
