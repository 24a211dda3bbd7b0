"""What texts of each family may contain: its own tags and none of the other family."""

import pytest

from higgs_pipe.data.clips.reasons import Reason
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.higgs.v2.rules import RULES as V2
from higgs_pipe.higgs.v3.rules import RULES as V3
from higgs_pipe.higgs.v3.tags import TAGS


def reason_of(rules: PromptRules, *pieces: str) -> Reason | None:
    fault = rules.text_fault("`text`", pieces)
    return None if fault is None else fault.reason


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_each_tag_is_valid_in_v3_and_foreign_in_v2(tag: str) -> None:
    assert reason_of(V3, f"{tag}Well, {tag} yes.{tag}") is None
    assert reason_of(V2, f"Well, {tag} yes.") is Reason.FOREIGN_MARK


@pytest.mark.parametrize(
    "mark", ["[SPEAKER0]", "<SE>[Laughter]</SE>", "<SE_s>[Music]</SE_s>", "[laugh]", "[music end]"]
)
def test_each_v2_tag_is_valid_in_v2_and_foreign_in_v3(mark: str) -> None:
    assert reason_of(V2, f"Well, {mark} yes.") is None
    assert reason_of(V3, f"Well, {mark} yes.") is Reason.FOREIGN_MARK


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("<|emotion:angry|>", "<|emotion:anger|>"),
        ("＜|emotion:anger|＞", "<|emotion:anger|>"),
        ("<|emotion:\u200banger|>", "<|emotion:anger|>"),
        ("<|EMOTION:anger|>", "<|emotion:anger|>"),
        ("<|laugh|>", "<|sfx:laughter|>"),
    ],
)
def test_an_unknown_tag_is_refused_with_the_nearest_known_one(written: str, nearest: str) -> None:
    fault = V3.text_fault("turn 3", [f"Oh {written} no."])
    assert fault is not None
    assert fault.reason is Reason.UNKNOWN_TAG
    assert fault.fact.startswith("turn 3 contains")
    assert fault.fact.endswith(nearest)


@pytest.mark.parametrize("token", ["<|tts|>", "<|audio|>", "<|text|>", "<|im_end|>", "<|eoc|>"])
def test_tokens_of_the_prompt_format_are_control_tokens(token: str) -> None:
    assert reason_of(V3, f"Oh {token}") is Reason.CONTROL_TOKEN


def test_a_control_token_is_found_across_pieces_and_next_to_tags() -> None:
    assert reason_of(V3, "<|sfx:cough|>Ahem <|au", "dio|>") is Reason.CONTROL_TOKEN
    assert reason_of(V3, "<|sfx:co", "ugh|>Ahem") is None
    assert reason_of(V3, "a <", "<|sfx:cough|>", "|tts|>") is None  # the tag stands between


def test_only_v2_allows_scenes_and_custom_system_messages() -> None:
    assert V2.scene_fault("`scene`") is None
    assert V2.system_message_fault("turn 1", "Speak softly.") is None
    faults = (V3.scene_fault("`scene`"), V3.system_message_fault("turn 1", "Speak softly."))
    reasons = [fault.reason for fault in faults if fault]
    assert reasons == [Reason.NO_SCENES, Reason.NO_SYSTEM_MESSAGE]
    assert V3.system_message_fault("turn 1", "Generate audio following instruction.") is None
