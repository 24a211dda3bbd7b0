"""What every rule reads, writes, asks for and runs, in one plan of everything."""

import difflib
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT

WRITTEN_DOWN = ROOT / "tests/workflow/rules.txt"
# Options that the rules leave at their defaults.
LEFT_OUT = {"higgs_pipe.evaluate": {"ancestor_dir"}, "higgs_pipe.validate": {"trained_clips"}}


def printed(module: str) -> str:
    """Run a module of the tests; return what it prints."""
    run = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def planned() -> str:
    """The table of all rules, as planned now."""
    return printed("workflow.rules_table")


def test_the_rules_match_the_committed_table(planned: str) -> None:
    """A change shows up as a diff of the table; ``workflow/rules_table.py`` regenerates it."""
    written = WRITTEN_DOWN.read_text()
    lines = difflib.unified_diff(written.splitlines(), planned.splitlines(), lineterm="", n=2)
    assert "\n".join(lines) == ""


def test_every_setting_of_a_stage_is_passed_by_its_rule(planned: str) -> None:
    commands = re.findall(r" -m (higgs_pipe\.[\w.]+) (--config .*)$", planned, re.MULTILINE)
    assert len(commands) > 20
    for module, options in commands:
        given = {word[2:].replace("-", "_") for word in shlex.split(options) if word[:2] == "--"}
        expected = inspect.signature(importlib.import_module(module).run).parameters.keys()
        lacking = expected - given - LEFT_OUT.get(module, set())
        assert (module, lacking) == (module, set())


def test_recordings_on_object_storage_reach_the_rules_that_read_them() -> None:
    """Jobs wait until they are fetched; only ``list_rows`` is told where they lie."""
    marker, places = ["resources/fetched.txt"], ".snakemake/storage/s3/voices"
    own, other = (f"{places}/{folder}" for folder in ("own", "other"))
    with_own, with_other = json.loads(printed("workflow.storage_table"))
    assert with_own == {
        "fetch_recordings": [f"{own}, kept"],
        "list_rows": [f"{own}, kept", json.dumps({"s3://voices/own": own})],
        **dict.fromkeys(("measure_shard", "clips_page", "tokenize_shard", "eval_adapter"), marker),
    }
    readers = ("measure_shard_other", "tokenize_shard_other", "eval_adapter_other")
    assert with_other == {
        "fetch_recordings": [f"{other}, kept"],
        "list_rows_other": [f"{other}, kept", json.dumps({"s3://voices/other": other})],
        **dict.fromkeys(readers, marker),
    }
