"""Judging: each row becomes a candidate clip, or is rejected with a reason."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow.compute as pc

from higgs_pipe.config.settings import DataConfig, FilterConfig, ValidateConfig
from higgs_pipe.config.stages import ValidateStage
from higgs_pipe.data.clips import filters
from higgs_pipe.data.clips.candidates import ClippedRow, clip_of, others_of_row, without_context
from higgs_pipe.data.clips.drafts import Drafts
from higgs_pipe.data.clips.keys import OtherRecording, groups_of, keys_of
from higgs_pipe.data.clips.measured import Measured
from higgs_pipe.data.clips.reasons import Fault, Reason, Rejection
from higgs_pipe.data.clips.row_faults import row_fault
from higgs_pipe.data.clips.trained import TrainedClips
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.row_table import StoredRows
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.data.table_rows import TableRows
from higgs_pipe.data.text import is_blank
from higgs_pipe.errors import UserError


@dataclass(frozen=True)
class Judgement:
    """Accepted and rejected rows, both in the manifest's order."""

    accepted: Drafts
    rejections: tuple[Rejection, ...]


class TurnRow(NamedTuple):
    """A row that is a turn of a dialogue."""

    turn: int
    clip_id: str
    place: str


def judge(
    rows: StoredRows,
    measured: Measured,
    stage: ValidateStage,
    rules: Sequence[PromptRules],
    drafts: Path,
    trained: TrainedClips | None = None,
) -> Judgement:
    """Judge each row on its own, then against the other rows.

    Args:
        rows: The rows of all manifests.
        measured: The rows of MEASURED of all their spans.
        stage: The settings.
        rules: The prompt rules of each family of base models that the rows are for.
        drafts: The file to write, for as long as the judgement is used.
        trained: Clips of another manifest, with which these rows must not overlap.

    Raises:
        UserError: A recording was not measured.
    """
    rows_alone = RowJudge(measured, stage.validate_, rules)
    sound = Drafts.write(drafts, rows_alone.clips(rows), rows_alone.others)
    faults = rows_alone.faults
    shared = _split_conflicts(sound, stage.data)
    if trained is not None:
        shared |= trained.faults(sound, stage.data)
    shared |= _dialogue_faults(rows, faults | shared)
    faults = faults | shared
    rejected = rows.with_ids(faults) if faults else ()
    return Judgement(
        sound.without(shared) if shared else sound,
        tuple(
            Rejection(row, faults[row.clip_id], measured[row.span]["duration_seconds"])
            for row in rejected
        ),
    )


class RowJudge:
    """Judges rows by themselves.

    Args:
        measured: The rows of MEASURED of all their spans.
        limits: The settings.
        rules: The prompt rules of each family of base models that the rows are for.

    Attributes:
        faults: The faults of the rows so far that are rejected, by clip id.
        others: The recordings in the conversations of the clips so far, in their order.
    """

    def __init__(
        self, measured: Measured, limits: ValidateConfig, rules: Sequence[PromptRules]
    ) -> None:
        self._measured = measured
        self._limits = limits
        self._rules = rules
        self.faults: dict[str, Fault] = {}
        self.others: list[OtherRecording] = []

    def clips(self, rows: Iterable[Row]) -> Iterator[ClippedRow]:
        """Yield the rows without a fault as clips.

        Raises:
            UserError: A recording was not measured.
        """
        num_clips = 0
        for row in rows:
            recordings = self._recordings_of(row)
            found = self._judge(row, recordings)
            if isinstance(found, Fault):
                self.faults[row.clip_id] = found
            else:
                self.others.extend(others_of_row(num_clips, found.row, recordings))
                num_clips += 1
                yield found

    def _recordings_of(self, row: Row) -> Measured:
        """Return the rows of MEASURED of all spans of a row."""
        recordings = {}
        for span in row.all_spans:
            recording = self._measured.get(span)
            if recording is None:
                raise UserError(
                    f"{row.place}: {span.name} was not measured; "
                    "run: snakemake --forcerun measure_shard"
                )
            recordings[span] = recording
        return recordings

    def _judge(self, given: Row, measured: Measured) -> ClippedRow | Fault:
        """Return a row as a clip, or its first fault."""
        row = _with_transcript(given, measured) if self._limits.fill_missing_text else given
        if fault := row_fault(row, measured, self._limits, self._rules):
            return fault
        clip = clip_of(row, measured[row.span], is_transcript=row is not given)
        return _filter_fault(clip, measured, self._limits.filters) or clip


def _with_transcript(row: Row, measured: Measured) -> Row:
    """Return the row; the recogniser's transcript takes the place of a missing text."""
    transcript = measured[row.span]["transcript"]
    is_missing = row.conversation is None and is_blank(row.text)
    return replace(row, text=transcript) if is_missing and transcript else row


def _filter_fault(clip: ClippedRow, measured: Measured, limits: FilterConfig) -> Fault | None:
    """Return the fault of the first filter that a target of the clip's row does not pass."""
    targets = [("", clip)]
    for utterance in clip.row.utterances:
        if utterance.is_target and not utterance.is_own:
            other = clip_of(
                without_context(clip.row, utterance.text), measured[utterance.recording]
            )
            targets.append((f"turn {utterance.turn_number}: ", other))
    for place, target in targets:
        if found := filters.faults(target, limits):
            return replace(found[0], fact=place + found[0].fact)
    return None


def _split_conflicts(sound: Drafts, data: DataConfig) -> dict[str, Fault]:
    """Return the rows given to train that share something with a row given to eval."""
    splits = sound.column("split").fill_null("")
    is_train, is_held_out = (pc.equal(splits, split).to_numpy() for split in (TRAIN, EVAL))
    if not is_held_out.any():
        return {}
    rows = TableRows(sound.table(["clip_id", "manifest", "line"]))
    keys = keys_of(sound.column, data, sound.others)
    groups = groups_of(keys).indices.to_numpy()
    holders = keys.first_owners(is_held_out)
    held_out = np.flatnonzero(is_held_out)
    # The first of a group is set last, and stays.
    first_of_group = dict(zip(groups[held_out][::-1], held_out[::-1].tolist(), strict=True))
    conflicts = {}
    for index in np.flatnonzero(is_train & np.isin(groups, groups[held_out])).tolist():
        shared = next((key for key in keys.of(index) if holders[key] < len(rows)), None)
        holder = first_of_group[groups[index]] if shared is None else int(holders[shared])
        other = rows[holder]
        # A row without a split may link the two.
        what = (
            "clips that are linked with it" if shared is None else f"the same {keys.kind(shared)}"
        )
        place = f"{other['manifest']}:{other['line']}"
        fact = f"`split` is {TRAIN!r}, and {EVAL!r} for {what} at {place}"
        conflicts[rows[index]["clip_id"]] = Fault(Reason.SPLIT_CONFLICT, fact)
    return conflicts


def _dialogue_faults(rows: StoredRows, faults: Mapping[str, Fault]) -> dict[str, Fault]:
    """Return the sound rows of dialogues that lack a turn: these dialogues cannot be trained."""
    dialogues: dict[str, list[TurnRow]] = defaultdict(list)
    for row in rows.where(pc.field("dialogue_id").is_valid() & pc.field("turn").is_valid()):
        turn = TurnRow(cast(int, row.turn), row.clip_id, row.place)
        dialogues[cast(str, row.dialogue_id)].append(turn)
    incomplete: dict[str, Fault] = {}
    for dialogue_id, turns in dialogues.items():
        if gap := _gap(turns, faults):
            fault = Fault(Reason.DIALOGUE_INCOMPLETE, f"the dialogue {dialogue_id!r} {gap}")
            sound = (row.clip_id for row in turns if row.clip_id not in faults)
            incomplete |= dict.fromkeys(sound, fault)
    return incomplete


def _gap(turns: Sequence[TurnRow], faults: Mapping[str, Fault]) -> str | None:
    """Return which turns a dialogue lacks, counting from 0 or from 1, or None."""
    places: dict[int, TurnRow] = {}
    for row in turns:
        if row.turn in places:
            return f"has turn {row.turn} twice, at {places[row.turn].place} and {row.place}"
        places[row.turn] = row
    for turn in range(min(1, *places), max(places) + 1):
        if turn not in places:
            return f"lacks turn {turn}"
        if fault := faults.get(places[turn].clip_id):
            return f"lacks turn {turn}, rejected as {fault.reason} ({places[turn].place})"
    return None
