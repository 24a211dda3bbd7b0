import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from higgs_pipe.config.settings import PackConfig
from higgs_pipe.data.conversation import Turn
from higgs_pipe.data.packing import planner, references
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import (
    DIALOGUE_TOO_LONG,
    NO_REFERENCE,
    NO_SPEAKER,
    ONE_SPEAKER,
    REFERENCE_TOO_LONG,
    SamplePlan,
    SamplePlanner,
)
from higgs_pipe.data.packing.references import OWN_HELD_OUT, OWN_TOO_SHORT
from higgs_pipe.data.packing.turns import Recording, conversation_of
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.specs import CLIPS, REFERENCE
from higgs_pipe.errors import UserError

CLONING = {"speech": 0, "cloning": 1}
NO_DIALOGUES = {"dialogue": 0, "dialogue_cloning": 0}
DIALOGUE = {"speech": 0, "cloning": 0, "dialogue": 1, "dialogue_cloning": 0}
ANY_BASE = PromptRules("a base")
DIALOGUE_CLONING = {**DIALOGUE, "dialogue": 0, "dialogue_cloning": 1}


def clip(clip_id: str, speaker: str | None, **values: Any) -> dict[str, Any]:
    """A clip of a file of its own, unless ``values`` says more."""
    row = dict.fromkeys(column.name for column in CLIPS.columns if column.nullable)
    own = {"clip_id": clip_id, "audio_sha256": clip_id, "pcm_sha256": clip_id, "speaker": speaker}
    said: dict[str, Any] = {"text": f"I am {clip_id}.", "split": "train", "duration_seconds": 2.0}
    return row | own | said | {"manifest": "m", "line": 1} | values


def turn(clip_id: str, speaker: str | None, number: int, **values: Any) -> dict[str, Any]:
    return clip(clip_id, speaker, **{"dialogue_id": "talk", "turn": number} | values)


class Drawn:
    """The samples of some clips, by the id of their first target."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        rules: PromptRules = ANY_BASE,
        split: str = "train",
        **settings: Any,
    ) -> None:
        fields = [field for field in CLIPS.schema if field.name in rows[0]]
        self.clips = Clips(pa.Table.from_pylist(rows, schema=pa.schema(fields)))
        self.ids = [row["clip_id"] for row in rows]
        self.planner = SamplePlanner(self.clips, split, PackConfig(**settings), rules)
        self.plans = {self.ids[plan.targets[0]]: plan for plan in self.planner.plans()}

    def __getitem__(self, clip_id: str) -> SamplePlan:
        return self.plans[clip_id]

    def references(self, clip_id: str) -> list[str]:
        return [self.ids[reference.clip] for reference in self.plans[clip_id].references]

    def reasons(self, clip_id: str) -> list[str]:
        return [fallback.reason for fallback in self.plans[clip_id].fallbacks]

    def turns(self, clip_id: str, clean: Callable[[str], str] = str) -> list[Turn[Recording]]:
        plan = self.plans[clip_id]
        rows = self.clips.rows(plan.clips)
        return list(conversation_of(plan, rows, self.clips, "Do as told.", clean).turns)


def test_a_speaker_with_one_clip_falls_back_to_speech_with_a_reason() -> None:
    drawn = Drawn([clip("a", "x"), clip("b", "y"), clip("c", "y")], tasks=CLONING)
    assert (drawn["a"].task, drawn["a"].fallbacks) == ("speech", (("x", NO_REFERENCE),))
    assert (drawn.references("b"), drawn.references("c")) == (["c"], ["b"])


def test_a_draw_of_exactly_1_picks_a_task_with_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "unit_hash", lambda *_: 1.0)
    assert Drawn([clip("a", "x"), clip("b", "x")], tasks=CLONING)["a"].task == "cloning"
    speech = {"speech": 1, "cloning": 0}
    assert Drawn([clip("a", "x"), clip("b", "x")], tasks=speech)["a"].task == "speech"


def test_a_clip_without_speaker_has_no_reference() -> None:
    drawn = Drawn([clip("a", None), clip("b", None)], tasks=CLONING)
    assert drawn["a"].fallbacks == drawn["b"].fallbacks == (("unknown", NO_REFERENCE),)


@pytest.mark.parametrize("speaker", ["x", None])
def test_a_rows_own_reference_comes_first(speaker: str | None) -> None:
    own = clip("own", speaker, split="reference")
    drawn = Drawn([own, clip("a", speaker, reference_id="own"), clip("b", speaker)], tasks=CLONING)
    assert drawn.references("a") == ["own"]
    assert "own" not in drawn.plans


@pytest.mark.parametrize("shared", [{"pcm_sha256": "held"}, {"audio_sha256": "held"}])
def test_training_never_uses_held_out_audio_as_a_rows_own_reference(
    shared: dict[str, Any],
) -> None:
    own = clip("own", "x", split="reference", **shared)
    rows = [clip("a", "x", reference_id="own"), clip("b", "x"), clip("held", "x", split="eval")]
    drawn = Drawn([*rows, own], tasks=CLONING)
    assert (drawn.references("a"), drawn.reasons("a")) == (["b"], [OWN_HELD_OUT])


def test_held_out_rows_may_use_held_out_references() -> None:
    own = clip("own", "x", split="reference", audio_sha256="held")
    rows = [clip("a", "x", split="eval", reference_id="own"), clip("held", "x", split="eval")]
    drawn = Drawn([*rows, own], split="eval", tasks=CLONING)
    assert (drawn.references("a"), drawn.reasons("a")) == (["own"], [])


def test_a_missing_reference_clip_names_the_rule_to_rerun() -> None:
    with pytest.raises(UserError, match=r"\n  gone\nrun: snakemake --forcerun judge_clips"):
        Drawn([clip("a", "x", reference_id="gone")])


def test_a_duplicate_of_the_target_is_never_its_reference() -> None:
    rows = [clip("a", "x"), clip("b", "x", pcm_sha256="a"), clip("c", "x")]
    drawn = Drawn(rows, tasks=CLONING)
    assert drawn.references("a") == drawn.references("b") == ["c"]


def segment(clip_id: str, start_seconds: float | None, end_seconds: float | None) -> dict[str, Any]:
    times = {"start_seconds": start_seconds, "end_seconds": end_seconds}
    return clip(clip_id, "x", audio_sha256="long.wav", **times)


def test_overlapping_segments_of_one_file_are_never_each_others_reference() -> None:
    rows = [segment("a", None, 2.0), segment("b", 2.0, 5.0), segment("c", 4.0, None)]
    drawn = Drawn(rows, tasks=CLONING)
    assert drawn.references("b") == drawn.references("c") == ["a"]
    assert drawn.references("a") in (["b"], ["c"])
    whole = Drawn([segment("a", 0.0, 2.0), segment("b", None, None)], tasks=CLONING)
    assert whole.reasons("a") == whole.reasons("b") == [NO_REFERENCE]


def test_segments_that_follow_each_other_are_each_others_reference() -> None:
    first = clip("a", "x", audio_sha256="file", start_seconds=0.0, end_seconds=1.0)
    second = clip("b", "x", audio_sha256="file", start_seconds=1.0, end_seconds=2.0)
    drawn = Drawn([first, second], tasks=CLONING)
    assert (drawn.references("a"), drawn.references("b")) == (["b"], ["a"])


def test_references_stay_within_the_split() -> None:
    rows = [clip("a", "x"), clip("b", "x", split="eval"), clip("c", "x", split="reference")]
    assert Drawn(rows, tasks=CLONING).reasons("a") == [NO_REFERENCE]


def test_the_task_mix_follows_the_weights() -> None:
    drawn = Drawn([clip(f"{i}", "x") for i in range(2000)], tasks={"speech": 3, "cloning": 1})
    tasks = Counter(plan.task for plan in drawn.plans.values())
    assert 0.22 < tasks["cloning"] / 2000 < 0.28


def test_adding_a_clip_changes_no_other_draw() -> None:
    rows = [clip(f"{i}", "x") for i in range(200)]
    shares: dict[str, Any] = {"scene_dropout": 0.5, "reference_dropout": 0.5}
    before, after = Drawn(rows, **shares), Drawn([clip("new", "x"), *rows], **shares)
    changed = [i for i in before.plans if before.references(i) != after.references(i)]
    assert [after.references(i) for i in changed] in ([["new"]], [])
    for i in before.plans.keys() - set(changed):
        assert before[i].task == after[i].task
        assert before[i].has_scene == after[i].has_scene


def test_the_clips_of_a_speaker_are_references_equally_often() -> None:
    drawn = Drawn([clip(f"{i}", "xy"[i % 2]) for i in range(100)], tasks=CLONING)
    used = Counter(drawn.references(i)[0] for i in drawn.plans)
    assert set(used.values()) == {1}


def test_the_most_similar_voice_is_the_reference() -> None:
    rows = [
        clip("a", "x", speaker_embedding=[1.0, 0.0]),
        clip("b", "x", speaker_embedding=[3.0, 4.0]),
        clip("c", "x", speaker_embedding=[9.0, 1.0]),
        clip("d", "x", speaker_embedding=None),
    ]
    drawn = Drawn(rows, tasks=CLONING)
    assert [drawn.references(i) for i in "abc"] == [["c"], ["c"], ["a"]]
    assert drawn.references("d") != []
    for row in rows[1:]:
        row["speaker_embedding"] = None
    alone = Drawn(rows, tasks=CLONING).references("a")
    for row in rows:
        row["speaker_embedding"] = None
    assert alone == Drawn(rows, tasks=CLONING).references("a")  # the next one of the ring


def test_voices_are_compared_only_with_the_next_ones_in_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = "abcdef"
    plain = Drawn([clip(name, "x") for name in names], tasks=CLONING)
    ring = ["a"]
    while len(ring) < len(names):
        ring += plain.references(ring[-1])
    voices = dict(zip(ring, ([1, 0], [0, 1], [1, 1], [1, 0], [0, 1], [0, 1]), strict=True))
    rows = [clip(name, "x", speaker_embedding=list(map(float, voices[name]))) for name in names]
    assert Drawn(rows, tasks=CLONING).references("a") == [ring[3]]
    monkeypatch.setattr(references, "NUM_RANKED", 2)
    assert Drawn(rows, tasks=CLONING).references("a") == [ring[2]]


def test_dropouts_remove_their_share_and_are_not_fallbacks() -> None:
    rows = [clip(f"{i}", "x", scene="A hall.") for i in range(1000)]
    drawn = Drawn(rows, tasks=CLONING, scene_dropout=0.3, reference_dropout=0.6)
    plans = drawn.plans.values()
    assert 0.26 < sum(not plan.has_scene for plan in plans) / 1000 < 0.34
    assert 0.56 < sum(plan.task == "speech" for plan in plans) / 1000 < 0.64
    assert not any(plan.fallbacks for plan in plans)
    without = next(i for i in drawn.plans if not drawn[i].has_scene)
    assert "scene" not in [t.role for t in drawn.turns(without)]


TALK = [
    turn("t1", "bo", 1, scene="A hall."),
    turn("t0", "al", 0, scene="A hall."),
    turn("t2", "al", 2, scene="SPEAKER0: low"),
]


def test_scenes_and_references_are_dropped_independently() -> None:
    rows = [clip(f"{i}", "x", scene="A hall.") for i in range(100)]
    drawn = Drawn(rows, tasks=CLONING, scene_dropout=0.5, reference_dropout=0.5)
    found = Counter((plan.has_scene, bool(plan.references)) for plan in drawn.plans.values())
    assert len(found) == 4
    assert min(found.values()) > 10


def test_the_references_of_a_dialogue_are_dropped_independently() -> None:
    rows = [clip("a", "x"), clip("b", "y")]
    for i in range(100):
        names = [(f"{i}-x", "x"), (f"{i}-y", "y")]
        rows += [clip(*name, dialogue_id=f"{i}", turn=n) for n, name in enumerate(names)]
    drawn = Drawn(rows, tasks=DIALOGUE_CLONING | {"speech": 1e-9}, reference_dropout=0.5)
    found = Counter(len(plan.references) for plan in drawn.plans.values() if plan.is_dialogue)
    assert [found[n] > 10 for n in range(3)] == [True] * 3


def test_a_conversation_is_never_a_reference() -> None:
    drawn = Drawn([clip("a", "x"), clip("b", "x", conversation="[]")], tasks=CLONING)
    assert (drawn.references("a"), drawn.reasons("a")) == ([], [NO_REFERENCE])


def test_a_dialogue_is_one_target_with_its_speakers_tagged() -> None:
    drawn = Drawn(TALK, tasks=DIALOGUE)
    assert list(drawn.plans) == ["t0"]
    assert drawn["t0"].task == "dialogue"
    assert drawn.turns("t0") == [
        Turn("system", ("Do as told.",)),
        Turn("scene", ("A hall.", "SPEAKER0: low")),
        Turn("user", ("[SPEAKER0] I am t0.\n[SPEAKER1] I am t1.\n[SPEAKER0] I am t2.",)),
        Turn("assistant", (Recording((1, 0, 2)),), is_target=True),
    ]


def test_each_speaker_of_a_dialogue_has_a_reference_from_outside_it() -> None:
    others = [clip("al-1", "al"), clip("bo-1", "bo", pcm_sha256="t1"), clip("bo-2", "bo")]
    drawn = Drawn([*TALK, *others], tasks={**DIALOGUE_CLONING, "speech": 1})
    plan = next(p for p in drawn.plans.values() if p.is_dialogue or len(p.targets) > 1)
    assert plan.task == "dialogue_cloning"
    assert drawn.references("t0") == ["al-1", "bo-2"]
    texts = [t.parts for t in drawn.turns("t0")[2:6]]
    assert texts == [
        ("[SPEAKER0] I am al-1.",),
        (Recording((3,)),),
        ("[SPEAKER1] I am bo-2.",),
        (Recording((5,)),),
    ]


def test_a_speaker_without_a_reference_is_named_and_the_others_keep_theirs() -> None:
    drawn = Drawn([*TALK, clip("al-1", "al")], tasks={**DIALOGUE_CLONING, "speech": 1})
    assert drawn.references("t0") == ["al-1"]
    assert drawn["t0"].fallbacks == (("bo", NO_REFERENCE),)


def test_a_rows_own_reference_that_is_a_turn_of_its_dialogue_is_not_used() -> None:
    rows = [turn("t0", "al", 0, reference_id="own"), turn("t1", "bo", 1)]
    heard = clip("own", "al", split="reference", pcm_sha256="t1")
    drawn = Drawn([*rows, heard, clip("al-1", "al")], tasks={**DIALOGUE_CLONING, "speech": 1})
    assert drawn.references("t0") == ["al-1"]


def test_dialogue_turns_become_separate_samples_if_that_is_the_task() -> None:
    drawn = Drawn(TALK, tasks={"speech": 1, "cloning": 0, **NO_DIALOGUES})
    assert [plan.task for plan in drawn.plans.values()] == ["speech"] * 3
    assert drawn.turns("t1")[2].parts == ("I am t1.",)


def test_separate_turns_of_a_dialogue_share_its_drawn_task() -> None:
    rows = [
        turn(f"{talk}-{number}", "x", number, dialogue_id=f"talk {talk}")
        for talk in range(20)
        for number in (1, 2, 3)
    ]
    drawn = Drawn(rows, tasks={"speech": 1, "cloning": 1, **NO_DIALOGUES})
    tasks = [{drawn[f"{talk}-{n}"].drawn_task for n in (1, 2, 3)} for talk in range(20)]
    assert {"speech"} in tasks
    assert {"cloning"} in tasks
    assert {"speech", "cloning"} not in tasks


def test_a_dialogue_with_an_unnamed_speaker_falls_back_to_its_turns() -> None:
    drawn = Drawn([*TALK, turn("t3", None, 3)], tasks=DIALOGUE)
    assert [drawn.reasons(f"t{i}") for i in range(4)] == [[NO_SPEAKER]] * 4


def test_a_too_long_dialogue_loses_its_references_then_splits_into_turns() -> None:
    rows = [*TALK, clip("al-1", "al"), clip("bo-1", "bo")]
    drawn = Drawn(rows, tasks={**DIALOGUE_CLONING, "speech": 1})
    [shorter] = drawn.planner.shorter(drawn["t0"])
    assert shorter.task == "dialogue"
    assert shorter.fallbacks == (("al", REFERENCE_TOO_LONG), ("bo", REFERENCE_TOO_LONG))
    alone = drawn.planner.shorter(shorter)
    assert [plan.task for plan in alone] == ["cloning"] * 3
    assert {plan.fallbacks[0].reason for plan in alone} == {DIALOGUE_TOO_LONG}


def test_clips_outside_dialogues_need_a_task_with_a_weight() -> None:
    with pytest.raises(UserError, match=r"1 clips .* pack.tasks.speech"):
        Drawn([*TALK, clip("a", "x")], tasks=DIALOGUE)


def test_a_conversation_keeps_its_turns_and_its_own_system_message() -> None:
    written = (
        '[{"role": "system", "parts": [{"text": "Be brief."}], "is_target": false},'
        ' {"role": "user", "parts": [{"text": "Who?"}], "is_target": false},'
        ' {"role": "assistant", "parts": [{"clip_id": "ref-1"}], "is_target": false},'
        ' {"role": "assistant", "parts": [{"clip_id": "a"}], "is_target": true}]'
    )
    rows = [clip("ref-1", "x", split="reference"), clip("a", "x", conversation=written)]
    drawn = Drawn(rows, scene_dropout=1, reference_dropout=1)
    assert drawn["a"].task == "conversation"
    assert drawn.turns("a") == [
        Turn("system", ("Be brief.",)),
        Turn("user", ("Who?",)),
        Turn("assistant", (Recording((0,)),)),
        Turn("assistant", (Recording((1,)),), is_target=True),
    ]


def test_only_the_target_text_is_cleaned() -> None:
    rows = [clip("a", "x", reference_id="own", scene="A hall."), clip("own", "x", split=REFERENCE)]
    drawn = Drawn(rows, tasks=CLONING)
    texts = [t.text for t in drawn.turns("a", str.upper) if t.texts]
    assert texts == ["Do as told.", "A hall.", "I am own.", "I AM A."]


def test_in_a_conversation_only_user_turns_before_targets_are_cleaned() -> None:
    written = [
        {"role": role, "parts": [part], "is_target": is_target}
        for role, part, is_target in (
            ("system", {"text": "be brief"}, False),
            ("user", {"text": "reference"}, False),
            ("assistant", {"clip_id": "ref-1"}, False),
            ("user", {"text": "first"}, False),
            ("user", {"text": "and more"}, False),
            ("assistant", {"clip_id": "a"}, True),
            ("user", {"text": "thanks"}, False),
        )
    ]
    rows = [clip("ref-1", "x", split=REFERENCE), clip("a", "x", conversation=json.dumps(written))]
    texts = [t.text for t in Drawn(rows).turns("a", str.upper) if t.texts]
    assert texts == ["be brief", "reference", "FIRST", "AND MORE", "thanks"]


def test_a_row_with_its_own_reference_always_clones_from_it() -> None:
    rows = [clip(f"{i}", "x", reference_id="own") for i in range(50)]
    own = clip("own", "y", split=REFERENCE)
    drawn = Drawn([*rows, own, *(clip(f"plain-{i}", "x") for i in range(50))])
    assert {drawn[f"{i}"].task for i in range(50)} == {"cloning"}
    assert {tuple(drawn.references(f"{i}")) for i in range(50)} == {("own",)}
    tasks = Counter(drawn[f"plain-{i}"].task for i in range(50))
    assert min(tasks["speech"], tasks["cloning"]) > 10


def test_with_a_cloning_weight_of_0_no_reference_is_used() -> None:
    rows = [clip("a", "x", reference_id="own"), clip("own", "x", split=REFERENCE)]
    assert Drawn(rows, tasks={"speech": 1, "cloning": 0})["a"].task == "speech"


def test_a_held_out_reference_does_not_force_cloning() -> None:
    own = clip("own", "x", split=REFERENCE, pcm_sha256="held")
    rows = [clip(f"{i}", "x", reference_id="own") for i in range(50)]
    drawn = Drawn([*rows, clip("held", "x", split="eval"), own])
    assert Counter(drawn[f"{i}"].task for i in range(50))["speech"] > 10


def test_a_dialogue_whose_turns_have_references_is_dialogue_cloning() -> None:
    rows = [turn("t0", "al", 0, reference_id="own"), turn("t1", "bo", 1)]
    others = [clip("own", "al", split=REFERENCE), clip("bo-1", "bo")]
    tasks = {"speech": 1, "cloning": 0, "dialogue": 1000, "dialogue_cloning": 0.001}
    drawn = Drawn([*rows, *others], tasks=tasks)
    assert drawn["t0"].task == "dialogue_cloning"
    assert drawn.references("t0") == ["own", "bo-1"]


def test_no_reference_is_shorter_than_the_minimum_of_the_base_model() -> None:
    short = {"duration_seconds": 0.99}
    rows = [clip("a", "x"), clip("b", "x", **short), clip("c", "x", duration_seconds=1.0)]
    rules = PromptRules("m", min_reference_seconds=1.0)
    drawn = Drawn(rows, rules, tasks=CLONING)
    assert (drawn.references("a"), drawn.references("c")) == (["c"], ["a"])
    assert drawn.references("b") in (["a"], ["c"])
    own = clip("own", "x", split="reference", **short)
    drawn = Drawn([own, clip("a", "x", reference_id="own"), clip("b", "x")], rules, tasks=CLONING)
    assert (drawn.references("a"), drawn.reasons("a")) == (["b"], [OWN_TOO_SHORT])


def test_dialogue_turns_stay_separate_if_the_model_has_one_speaker_per_text() -> None:
    rows = [turn("a", "x", 1), turn("b", "y", 2)]
    drawn = Drawn(rows, PromptRules("m", joins_dialogues=False), tasks=DIALOGUE)
    assert [plan.task for plan in drawn.plans.values()] == ["speech", "speech"]
    assert drawn.reasons("a") == drawn.reasons("b") == [ONE_SPEAKER]


def test_a_turn_that_stands_alone_keeps_its_own_reference() -> None:
    rows = [turn("a", "x", 1, reference_id="own"), turn("b", "y", 2)]
    own, rules = clip("own", "x", split=REFERENCE), PromptRules("m", joins_dialogues=False)
    drawn = Drawn([*rows, own], rules, tasks=DIALOGUE | {"cloning": 1e-9})
    assert [drawn[name].task for name in "ab"] == ["cloning", "speech"]
    assert drawn.references("a") == ["own"]
    assert drawn.reasons("a") == drawn.reasons("b") == [ONE_SPEAKER]
    drawn = Drawn([*rows, own], rules, tasks={"speech": 1, "cloning": 1e-9, **NO_DIALOGUES})
    assert [drawn[name].task for name in "ab"] == ["cloning", "speech"]
