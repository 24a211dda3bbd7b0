"""Rules of prompts that do not depend on a family of models."""

from __future__ import annotations

import re

import pytest

from higgs_pipe.data.clips.reasons import Reason
from higgs_pipe.data.prompt_rules import PromptRules


def test_the_marks_of_every_other_family_are_foreign() -> None:
    foreign = {"first": re.compile(r"\[\w+\]"), "second": re.compile(r"\{\w+\}")}
    rules = PromptRules("own", foreign=foreign)
    assert rules.text_fault("`text`", ["Well."]) is None
    for mark, model in (("[laugh]", "first"), ("{laugh}", "second")):
        fault = rules.text_fault("`text`", [f"Well {mark}."])
        assert fault is not None
        assert fault.reason is Reason.FOREIGN_MARK
        assert f"{mark}, a mark of {model}" in fault.fact


@pytest.mark.parametrize(("seconds", "is_fault"), [(0.999, True), (1.0, False), (1.5, False)])
def test_a_reference_may_be_as_short_as_the_shortest(seconds: float, is_fault: bool) -> None:
    fault = PromptRules("own", min_reference_seconds=1.0).reference_fault("turn 2", seconds)
    assert (fault is not None) == is_fault
    assert fault is None or fault.reason is Reason.SHORT_REFERENCE
