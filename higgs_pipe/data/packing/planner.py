"""Planning of a split's samples from clips, dialogues and conversations, with references.

Draws depend on a hash of ids and seed, so adding or removing a clip does not affect other samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np

from higgs_pipe.config.settings import PackConfig
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.references import Reference, ReferencePool
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.specs import TRAIN
from higgs_pipe.errors import UserError

SPEECH, CLONING = "speech", "cloning"
DIALOGUE, DIALOGUE_CLONING = "dialogue", "dialogue_cloning"
CLIP_TASKS, DIALOGUE_TASKS = (CLONING, SPEECH), (DIALOGUE_CLONING, DIALOGUE)
CONVERSATION = "conversation"
TASKS = (SPEECH, CLONING, DIALOGUE, DIALOGUE_CLONING, CONVERSATION)

NO_REFERENCE = "no other recording of the speaker in this split"
REFERENCE_TOO_LONG = "the sample with its reference exceeds pack.max_tokens"
DIALOGUE_TOO_LONG = "the dialogue exceeds pack.max_tokens, so its turns stand alone"
NO_SPEAKER = "a turn of the dialogue has no speaker, so its turns stand alone"
ONE_SPEAKER = "the base model's texts have no tags for speakers, so turns of dialogues stand alone"


class Fallback(NamedTuple):
    """A speaker's part of a sample that fell back to a simpler task, and the reason."""

    speaker: str
    reason: str


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """A sample before its texts and codes are read; clips are rows in the table of clips."""

    drawn_task: str
    targets: tuple[int, ...]  # in time: a clip, or the turns of a dialogue
    references: tuple[Reference, ...] = ()
    has_scene: bool = True  # if its clips have one
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def is_dialogue(self) -> bool:
        """Return whether its turns are spoken as one recording."""
        return self.drawn_task in DIALOGUE_TASKS

    @property
    def task(self) -> str:
        """The task after all fallbacks."""
        if self.drawn_task == CONVERSATION:
            return CONVERSATION
        if self.is_dialogue:
            return DIALOGUE_CLONING if self.references else DIALOGUE
        return CLONING if self.references else SPEECH

    @property
    def clips(self) -> tuple[int, ...]:
        """The clips whose texts the turns of the sample are made of."""
        return self.targets + tuple(reference.clip for reference in self.references)


class SamplePlanner:
    """Draws the task and the references of each clip and dialogue of a split.

    A clip is plain speech or cloning; with a reference of its own it is cloning, unless cloning has
    no weight. A dialogue draws among all tasks that have a weight; speech and cloning mean its
    turns one by one. A conversation keeps all its turns. The dropouts remove the scene from a
    share of the other samples, and a share of the references; in a dialogue, each speaker's
    reference is drawn separately.

    Args:
        clips: The table of clips.
        split: The split to plan.
        settings: Section ``pack``.
        rules: The base model's prompt rules. If a text has no speaker tags, the turns of a
            dialogue become samples of their own.

    Raises:
        UserError: Some clips are not in a dialogue, and neither speech nor cloning has a weight.
    """

    def __init__(self, clips: Clips, split: str, settings: PackConfig, rules: PromptRules) -> None:
        self._clips = clips
        self._rules = rules
        self._members = clips.in_split(split)
        # A conversation cannot serve as a reference: its text may hold several voices.
        alone = self._members[~clips.is_conversation[self._members]]
        self._references = ReferencePool(
            clips, alone, settings.seed, split == TRAIN, rules.min_reference_seconds
        )
        self._settings = settings
        self._check_weights()

    def plans(self) -> Iterator[SamplePlan]:
        """Yield the samples in the order of the table, a dialogue at its first row."""
        dialogues = self._dialogues()
        for clip in map(int, self._members):
            if self._clips.is_conversation[clip]:
                yield SamplePlan(CONVERSATION, (clip,))
            elif (dialogue := int(self._clips.dialogue[clip])) < 0:
                yield self._one_clip(clip, self._clip_task(clip))
            elif turns := dialogues.pop(dialogue, None):
                yield from self._dialogue(dialogue, turns)

    def shorter(self, plan: SamplePlan) -> list[SamplePlan]:
        """Return shorter samples for one that exceeds a row; none if it cannot be shortened.

        First without its references; then the turns of a dialogue one by one.
        """
        if plan.references:
            speakers = [self._speaker_name(reference.speaker) for reference in plan.references]
            lacking = [Fallback(speaker, REFERENCE_TOO_LONG) for speaker in speakers]
            return [replace(plan, references=(), fallbacks=(*plan.fallbacks, *lacking))]
        if plan.drawn_task in DIALOGUE_TASKS:
            return list(self._turns_alone(plan.drawn_task, plan.targets, DIALOGUE_TOO_LONG))
        return []

    def _clip_task(self, clip: int, drawn: str | None = None) -> str:
        """Return the task of a clip: cloning if its row brings a reference, else as drawn."""
        if self._settings.tasks.cloning and self._references.brings(clip):
            return CLONING
        return drawn or self._draw(CLIP_TASKS, self._id(clip))

    def _one_clip(self, clip: int, task: str, *fallbacks: Fallback) -> SamplePlan:
        plan = SamplePlan(
            task, (clip,), has_scene=self._keeps_scene(self._id(clip)), fallbacks=fallbacks
        )
        return self._with_references(plan, [clip]) if task == CLONING else plan

    def _dialogue(self, dialogue: int, turns: tuple[int, ...]) -> Iterator[SamplePlan]:
        dialogue_id = self._clips.dialogues[dialogue]
        task = self._draw(CLIP_TASKS + DIALOGUE_TASKS, "dialogue", dialogue_id)
        if task in CLIP_TASKS:
            yield from (self._one_clip(turn, self._clip_task(turn, task)) for turn in turns)
            return
        if self._settings.tasks.dialogue_cloning and any(map(self._references.brings, turns)):
            task = DIALOGUE_CLONING
        speakers = {int(self._clips.speaker[turn]): turn for turn in reversed(turns)}
        if not self._rules.joins_dialogues or -1 in speakers:
            reason = NO_SPEAKER if self._rules.joins_dialogues else ONE_SPEAKER
            yield from self._turns_alone(task, turns, reason)
            return
        keeps_scene = self._keeps_scene("dialogue", dialogue_id)
        plan = SamplePlan(task, turns, has_scene=keeps_scene)
        first_turns = sorted(speakers.values(), key=turns.index)
        yield self._with_references(plan, first_turns) if task == DIALOGUE_CLONING else plan

    def _turns_alone(self, task: str, turns: Sequence[int], reason: str) -> Iterator[SamplePlan]:
        drawn = CLONING if task == DIALOGUE_CLONING else SPEECH
        for turn in turns:
            speaker = self._speaker_name(int(self._clips.speaker[turn]))
            yield self._one_clip(turn, self._clip_task(turn, drawn), Fallback(speaker, reason))

    def _with_references(self, plan: SamplePlan, clips: Sequence[int]) -> SamplePlan:
        """Return the plan with a reference for the speaker of each clip, if one is found."""
        references, lacking = [], []
        for clip in clips:
            if self._is_dropped("reference", self._settings.reference_dropout, self._id(clip)):
                continue
            speaker = self._speaker_name(int(self._clips.speaker[clip]))
            own = int(self._clips.reference[clip])
            if own >= 0 and (reason := self._references.refusal(own)):
                lacking.append(Fallback(speaker, reason))
            if (reference := self._references.of(clip, plan.targets)) is None:
                lacking.append(Fallback(speaker, NO_REFERENCE))
            else:
                references.append(reference)
        return replace(plan, references=tuple(references), fallbacks=(*plan.fallbacks, *lacking))

    def _draw(self, tasks: Sequence[str], *key: object) -> str:
        """Draw one of the tasks by their weights."""
        weights = [getattr(self._settings.tasks, task) for task in tasks]
        place = unit_hash("task", self._settings.seed, *key) * sum(weights)
        for task, end in zip(tasks, accumulate(weights), strict=True):
            if place < end:
                return task
        return next(task for task, weight in zip(tasks, weights, strict=True) if weight)

    def _keeps_scene(self, *key: object) -> bool:
        return not self._is_dropped("scene", self._settings.scene_dropout, *key)

    def _is_dropped(self, what: str, share: float, *key: object) -> bool:
        return share > 0 and unit_hash(f"{what} dropout", self._settings.seed, *key) < share

    def _id(self, clip: int) -> str:
        return cast("str", self._clips.ids[clip].as_py())

    def _speaker_name(self, speaker: int) -> str:
        return "unknown" if speaker < 0 else self._clips.speakers[speaker]

    def _dialogues(self) -> dict[int, tuple[int, ...]]:
        """Return the turns of each dialogue, in order."""
        turns = self._members[self._clips.dialogue[self._members] >= 0]
        dialogue = self._clips.dialogue[turns]
        order = np.lexsort((self._clips.turn[turns], dialogue))
        ends = np.flatnonzero(np.diff(dialogue[order])) + 1
        groups = np.split(turns[order], ends) if len(turns) else []
        return {int(self._clips.dialogue[group[0]]): tuple(group.tolist()) for group in groups}

    def _check_weights(self) -> None:
        tasks = self._settings.tasks
        in_no_dialogue = self._clips.dialogue[self._members] < 0
        alone = in_no_dialogue & ~self._clips.is_conversation[self._members]
        if alone.any() and not (tasks.speech or tasks.cloning):
            raise UserError(
                f"{alone.sum():,} clips are not turns of a dialogue, and pack.tasks.speech and "
                "pack.tasks.cloning are 0; raise one, or remove these rows from the manifest."
            )
