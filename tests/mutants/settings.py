"""The mistakes of ``settings.toml``: for each stage, that a setting never arrives there.

The given value is dropped where a stage, or the Snakefile, reads the config: the setting then has
its default everywhere. A required setting cannot be lost in silence, and has no such mistake.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from mutants.mistakes import OF_SETTINGS, Mistake

TABLE = Path(__file__).with_name(OF_SETTINGS)
WORKFLOW = "workflow"  # the Snakefile: settings by which it plans jobs
WHERE_A_STAGE_READS = """
    try:
        return stage.model_validate(values)
"""
WHERE_THE_WORKFLOW_READS = """
    own = _coerced(own, schema, schema)
"""
DROP = """
    *sections, key = {setting!r}.split(".")
    for name in sections:
        found = [section.get(name) for section in holders if isinstance(section, dict)]
        holders = [one for each in found for one in (each if isinstance(each, list) else [each])]
    for section in holders:
        if isinstance(section, dict):
            section.pop(key, None)
"""


@dataclass(frozen=True)
class Group:
    """Settings that a stage reads, and tests of which one must fail if a setting never arrives.

    Or without tests, the reason why no result of the stage can show them.
    """

    stage: str
    settings: list[str]
    tests: list[str] | None = None
    reason: str | None = None

    @property
    def mistakes(self) -> list[Mistake]:
        """A mistake for each setting, if there are tests."""
        return [mistake_in(self.stage, s, self.tests) for s in self.settings if self.tests]


def read_groups(path: Path = TABLE) -> list[Group]:
    """Read the table."""
    return [Group(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["group"]]


def mistake_in(stage: str, setting: str, tests: list[str]) -> Mistake:
    """Return the mistake that a setting never arrives in a stage."""
    drop = DROP.format(setting=setting)
    if stage == WORKFLOW:
        file, place = "higgs_pipe/planning/config_check.py", WHERE_THE_WORKFLOW_READS
        new = f"{place}    holders = [own]{drop}"
    else:
        file, place = "higgs_pipe/config/stages.py", WHERE_A_STAGE_READS
        is_it = f"stage.__name__ == {class_of(stage)!r}"
        new = f"\n    holders = [values] if {is_it} else []{drop}{place}"
    return Mistake(
        room="settings",
        name=f"{stage}:{setting}",
        promise=f"{setting} arrives in {stage}",
        file=file,
        old=place,
        new=new,
        tests=tuple(tests),
    )


def class_of(stage: str) -> str:
    """Return the name of the class of a stage's settings.

    The class itself must not be imported here: the tests import the package from a copy of it.
    """
    return "".join(word.capitalize() for word in stage.split("_")) + "Stage"
