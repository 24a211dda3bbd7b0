"""What each sample is made from: a clip, a dialogue or a conversation, and its references.

All is drawn by hash of ids and seed, so that a clip more or less draws no other sample anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.config.settings import PackConfig
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.specs import CLIPS, EVAL, REFERENCE, TRAIN
from higgs_pipe.data.tables import open_table
from higgs_pipe.errors import UserError, list_offenders

SPEECH, CLONING = "speech", "cloning"
DIALOGUE, DIALOGUE_CLONING = "dialogue", "dialogue_cloning"
CLIP_TASKS, DIALOGUE_TASKS = (CLONING, SPEECH), (DIALOGUE_CLONING, DIALOGUE)
CONVERSATION = "conversation"
TASKS = (SPEECH, CLONING, DIALOGUE, DIALOGUE_CLONING, CONVERSATION)

NO_REFERENCE = "no other recording of the speaker in this split"
OWN_HELD_OUT = "the row's own reference is audio that is held out, so that another was sought"
REFERENCE_TOO_LONG = "the sample with its reference exceeds pack.max_tokens"
DIALOGUE_TOO_LONG = "the dialogue exceeds pack.max_tokens, so that its turns stand alone"
NO_SPEAKER = "a turn of the dialogue has no speaker, so that its turns stand alone"

NUM_RANKED = 32  # candidates of a reference that are compared, where there are embeddings

# What the turns of a sample are written from.
EMBEDDING = "speaker_embedding"  # a column of clips where a speaker model ran
TEXT_COLUMNS = ("clip_id", "text", "scene", "conversation", "manifest", "line")
# What samples are planned from.
CLIP_COLUMNS = (
    *TEXT_COLUMNS,
    *("speaker", "split", "reference_id", "dialogue_id", "turn"),
    *("audio_path", "start_seconds", "end_seconds", "pcm_sha256", EMBEDDING),
)

Row = dict[str, Any]


class Fallback(NamedTuple):
    """Whose part of a sample is less than its drawn task asks for, and why."""

    speaker: str
    reason: str


class Reference(NamedTuple):
    """A recording of a speaker, by its row in the table of clips."""

    speaker: int
    clip: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A sample before its texts and codes are read; clips are rows in the table of clips."""

    drawn_task: str
    targets: tuple[int, ...]  # in time: a clip, or the turns of a dialogue
    references: tuple[Reference, ...] = ()
    has_scene: bool = True  # if its clips have one
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def is_dialogue(self) -> bool:
        """Whether its turns are said as one."""
        return self.drawn_task in DIALOGUE_TASKS

    @property
    def task(self) -> str:
        """What the sample teaches in the end."""
        if self.drawn_task == CONVERSATION:
            return CONVERSATION
        if self.is_dialogue:
            return DIALOGUE_CLONING if self.references else DIALOGUE
        return CLONING if self.references else SPEECH

    @property
    def clips(self) -> tuple[int, ...]:
        """The clips whose rows are needed to write the sample's turns."""
        return self.targets + tuple(reference.clip for reference in self.references)


class Clips:
    """The table of clips by column: a few numbers a clip at hand, its texts on request.

    A clip is its row in the table; -1 stands for no speaker, no reference, no dialogue.

    Raises:
        UserError: A clip names a reference that the table does not hold.
    """

    @classmethod
    def read(cls, path: Path) -> Self:
        """The columns of ``clips.parquet`` that packing needs."""
        table, _ = open_table(path, CLIPS)
        return cls(table.read(columns=list(CLIP_COLUMNS)))

    def __init__(self, table: pa.Table) -> None:
        self._table = table.select(TEXT_COLUMNS)
        self.ids: pa.Array = _column(table, "clip_id")
        self.speaker, speakers = _coded(table, "speaker")  # (N,)
        self.split, splits = _coded(table, "split")
        self.dialogue, dialogues = _coded(table, "dialogue_id")
        self.speakers, self._splits = speakers.to_pylist(), splits.to_pylist()
        self.dialogues = dialogues.to_pylist()
        self.turn = _numbers(table, "turn", -1)
        self.is_conversation = _column(table, "conversation").is_valid().to_numpy(False)
        self.reference = self._references(_column(table, "reference_id"))
        self._audio, _ = _coded(table, "pcm_sha256")
        self._file, _ = _coded(table, "audio_path")
        self._start = _numbers(table, "start_seconds", 0.0)
        self._end = _numbers(table, "end_seconds", np.inf)
        self._embeddings = _column(table, EMBEDDING)
        self.has_embeddings = self._embeddings.null_count < len(self._embeddings)
        self._by_id: dict[str, int] = {}
        self._audio_by_split: dict[str, tuple[set[int], set[int]]] = {}

    def _references(self, named: pa.Array) -> npt.NDArray[np.int32]:
        found = pc.index_in(named, value_set=self.ids)
        missing = named.filter(pc.and_(named.is_valid(), found.is_null()))
        if len(missing):
            raise UserError(
                f"references that are no clips:\n{list_offenders(missing.to_pylist())}\n"
                f"run: snakemake --forcerun {CLIPS.made_by}"
            )
        rows: npt.NDArray[np.int32] = found.fill_null(-1).to_numpy()
        return rows

    def in_split(self, split: str) -> npt.NDArray[np.int64]:
        """The clips of a split, in the table's order."""
        if split not in self._splits:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.split == self._splits.index(split))

    def rows(self, clips: Sequence[int]) -> dict[int, Row]:
        """The texts of some clips: ``TEXT_COLUMNS``, and ``clip``."""
        wanted = sorted(set(clips))
        rows = self._table.take(wanted).to_pylist()
        return {clip: row | {"clip": clip} for clip, row in zip(wanted, rows, strict=True)}

    def place(self, clip: int) -> str:
        """The manifest and line of a clip."""
        row = self.rows([clip])[clip]
        return f"{row['manifest']}:{row['line']}"

    def by_id(self, clip_id: str) -> int:
        """The clip of a conversation's recording: a reference."""
        if not self._by_id:
            references = self.in_split(REFERENCE)
            ids = self.ids.take(references).to_pylist()
            self._by_id = dict(zip(ids, references.tolist(), strict=True))
        return self._by_id[clip_id]

    def shares_audio(self, clip: int, others: Sequence[int]) -> bool:
        """Whether a clip sounds as one of the others, or overlaps one in its file."""
        return any(
            self._audio[clip] == self._audio[other]
            or (
                self._file[clip] == self._file[other]
                and self._start[clip] < self._end[other]
                and self._start[other] < self._end[clip]
            )
            for other in others
        )

    def holds_audio_of(self, clip: int, split: str) -> bool:
        """Whether a whole recording is that of a clip of a split, or the file of one."""
        if split not in self._audio_by_split:
            members = self.in_split(split)
            self._audio_by_split[split] = (
                set(self._audio[members].tolist()),
                set(self._file[members].tolist()),
            )
        audio, files = self._audio_by_split[split]
        return self._audio[clip] in audio or self._file[clip] in files

    def most_similar(self, clip: int, candidates: Sequence[int]) -> int:
        """The candidate whose speaker embedding has the largest cosine to the clip's.

        The first candidate where the clip or all candidates lack an embedding.
        """
        if (target := self._direction(clip)) is None:
            return candidates[0]
        directions = [(c, self._direction(c)) for c in candidates]
        cosines = [(float(d @ target), c) for c, d in directions if d is not None]
        return max(cosines, key=lambda item: item[0])[1] if cosines else candidates[0]

    def _direction(self, clip: int) -> npt.NDArray[np.float64] | None:
        """The clip's speaker embedding at unit length."""
        if not self._embeddings[clip].is_valid:
            return None
        vector: npt.NDArray[np.float64] = self._embeddings[clip].values.to_numpy().astype(float)
        return vector / np.linalg.norm(vector)


def _column(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _coded(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """A column as numbers, and what each number stands for; -1 is a missing value."""
    encoded = _column(table, name).dictionary_encode()
    codes: npt.NDArray[np.int32] = encoded.indices.fill_null(-1).to_numpy()
    return codes, encoded.dictionary


def _numbers(table: pa.Table, name: str, missing: float) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] = _column(table, name).fill_null(missing).to_numpy()
    return numbers


class References:
    """Other recordings of a speaker among some clips.

    A speaker's clips lie on a ring in the order of their hashes, and each takes the next one that
    it may: all serve about equally often, and a clip more or less changes only the clip before it.
    Where there are speaker embeddings, the most similar of the next ``NUM_RANKED`` is taken.

    Args:
        clips: The table of clips.
        members: The clips of one split.
        seed: Another seed gives another ring.
        is_training: Whether that split is trained on.
    """

    def __init__(
        self, clips: Clips, members: npt.NDArray[np.int64], seed: int, is_training: bool
    ) -> None:
        self._clips = clips
        self._is_training = is_training
        known = members[clips.speaker[members] >= 0]
        ids = (clip_id.as_py() for clip_id in clips.ids.take(known))
        hashes = (unit_hash("reference", seed, clip_id) for clip_id in ids)
        points = np.fromiter(hashes, np.float64, len(known))
        speakers = clips.speaker[known]
        order = np.lexsort((points, speakers))
        self._ring = known[order]
        self._place = np.empty(len(clips.ids), np.int64)
        self._place[self._ring] = np.arange(len(known))
        bounds = np.searchsorted(speakers[order], np.arange(len(clips.speakers) + 1))
        self._bounds = bounds.tolist()

    def of(self, clip: int, targets: Sequence[int]) -> Reference | None:
        """A reference for the speaker of a clip, for a sample with these targets.

        The row's own reference recording comes first; none shares audio with a target.
        """
        speaker = int(self._clips.speaker[clip])
        own = int(self._clips.reference[clip])
        if own >= 0 and not self.refuses(own) and not self._clips.shares_audio(own, targets):
            return Reference(speaker, own)
        if speaker < 0:
            return None
        candidates = self._following(clip, targets)
        if (first := next(candidates, None)) is None:
            return None
        if not self._clips.has_embeddings:
            return Reference(speaker, first)
        ranked = [first, *islice(candidates, NUM_RANKED - 1)]
        return Reference(speaker, self._clips.most_similar(clip, ranked))

    def refuses(self, own: int) -> bool:
        """Whether a row's own reference is held-out audio, which training must not hear."""
        return self._is_training and self._clips.holds_audio_of(own, EVAL)

    def _following(self, clip: int, targets: Sequence[int]) -> Iterator[int]:
        """The clips after one on its speaker's ring, without those that share audio."""
        speaker = int(self._clips.speaker[clip])
        start, end = self._bounds[speaker], self._bounds[speaker + 1]
        place = int(self._place[clip])
        excluded = set(targets)  # passes over the turns of a long dialogue at once
        for i in chain(range(place + 1, end), range(start, place)):
            candidate = int(self._ring[i])
            if candidate not in excluded and not self._clips.shares_audio(candidate, targets):
                yield candidate


class Planner:
    """Draws the task and the references of each clip and dialogue of a split.

    A clip is plain speech or cloning. A dialogue as a whole draws among all tasks that have a
    weight; speech and cloning then mean its turns one by one. A conversation is what it is, and
    keeps all its turns. The dropouts take the scene of a share of the other samples, and the
    reference of a share of those that have one, in a dialogue each speaker's apart.

    Raises:
        UserError: There are clips outside dialogues, and neither speech nor cloning has a weight.
    """

    def __init__(self, clips: Clips, split: str, settings: PackConfig) -> None:
        self._clips = clips
        self._members = clips.in_split(split)
        # A conversation is no reference: its text may be an answer, or that of several voices.
        alone = self._members[~clips.is_conversation[self._members]]
        self._references = References(clips, alone, settings.seed, split == TRAIN)
        self._settings = settings
        self._check_weights()

    def plans(self) -> Iterator[Plan]:
        """The samples in the order of the table; a dialogue stands where its first row stands."""
        dialogues = self._dialogues()
        for clip in map(int, self._members):
            if self._clips.is_conversation[clip]:
                yield Plan(CONVERSATION, (clip,))
            elif (dialogue := int(self._clips.dialogue[clip])) < 0:
                yield self._one_clip(clip, self._draw(CLIP_TASKS, self._id(clip)))
            elif turns := dialogues.pop(dialogue, None):
                yield from self._dialogue(dialogue, turns)

    def shorter(self, plan: Plan) -> list[Plan]:
        """What to try instead of a sample that exceeds a row; nothing if nothing is left out.

        First without its references; then a dialogue's turns one by one.
        """
        if plan.references:
            speakers = [self._speaker_name(reference.speaker) for reference in plan.references]
            lacking = [Fallback(speaker, REFERENCE_TOO_LONG) for speaker in speakers]
            return [replace(plan, references=(), fallbacks=(*plan.fallbacks, *lacking))]
        if plan.drawn_task in DIALOGUE_TASKS:
            return list(self._turns_alone(plan.drawn_task, plan.targets, DIALOGUE_TOO_LONG))
        return []

    def _one_clip(self, clip: int, task: str, *fallbacks: Fallback) -> Plan:
        plan = Plan(task, (clip,), has_scene=self._keeps_scene(self._id(clip)), fallbacks=fallbacks)
        return self._with_references(plan, [clip]) if task == CLONING else plan

    def _dialogue(self, dialogue: int, turns: tuple[int, ...]) -> Iterator[Plan]:
        dialogue_id = self._clips.dialogues[dialogue]
        task = self._draw(CLIP_TASKS + DIALOGUE_TASKS, "dialogue", dialogue_id)
        if task in CLIP_TASKS:
            yield from (self._one_clip(turn, task) for turn in turns)
            return
        speakers = {int(self._clips.speaker[turn]): turn for turn in reversed(turns)}
        if -1 in speakers:
            yield from self._turns_alone(task, turns, NO_SPEAKER)
            return
        keeps_scene = self._keeps_scene("dialogue", dialogue_id)
        plan = Plan(task, turns, has_scene=keeps_scene)
        first_turns = sorted(speakers.values(), key=turns.index)
        yield self._with_references(plan, first_turns) if task == DIALOGUE_CLONING else plan

    def _turns_alone(self, task: str, turns: Sequence[int], reason: str) -> Iterator[Plan]:
        alone = CLONING if task == DIALOGUE_CLONING else SPEECH
        for turn in turns:
            speaker = self._speaker_name(int(self._clips.speaker[turn]))
            yield self._one_clip(turn, alone, Fallback(speaker, reason))

    def _with_references(self, plan: Plan, clips: Sequence[int]) -> Plan:
        """The plan with a reference for the speaker of each of these clips, if there is one."""
        references, lacking = [], []
        for clip in clips:
            if self._is_dropped("reference", self._settings.reference_dropout, self._id(clip)):
                continue
            speaker = self._speaker_name(int(self._clips.speaker[clip]))
            if (own := int(self._clips.reference[clip])) >= 0 and self._references.refuses(own):
                lacking.append(Fallback(speaker, OWN_HELD_OUT))
            if (reference := self._references.of(clip, plan.targets)) is None:
                lacking.append(Fallback(speaker, NO_REFERENCE))
            else:
                references.append(reference)
        return replace(plan, references=tuple(references), fallbacks=(*plan.fallbacks, *lacking))

    def _draw(self, tasks: Sequence[str], *key: object) -> str:
        """One of the tasks, as their weights say."""
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
        clip_id: str = self._clips.ids[clip].as_py()
        return clip_id

    def _speaker_name(self, speaker: int) -> str:
        return "unknown" if speaker < 0 else self._clips.speakers[speaker]

    def _dialogues(self) -> dict[int, tuple[int, ...]]:
        """The turns of each dialogue, in order."""
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
                f"{alone.sum():,} clips are no turn of a dialogue, and pack.tasks gives them no "
                "weight; give speech or cloning one, or take their rows out of the manifest."
            )
