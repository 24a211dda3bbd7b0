"""Judging: each row becomes a candidate clip, or is rejected with a reason."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow.compute as pc

from higgs_pipe.config.settings import DataConfig, ValidateConfig
from higgs_pipe.config.stages import ValidateStage
from higgs_pipe.data.clips import filters
from higgs_pipe.data.clips.candidates import ClippedRow, alone, clip_of, others_of_row
from higgs_pipe.data.clips.declared import declared_fault
from higgs_pipe.data.clips.drafts import Drafts
from higgs_pipe.data.clips.keys import OtherRecording, groups_of, keys_of
from higgs_pipe.data.clips.layout import layout_fault
from higgs_pipe.data.clips.measured import Measured
from higgs_pipe.data.clips.reasons import Fault, Reason, Rejection
from higgs_pipe.data.clips.text_faults import text_fault
from higgs_pipe.data.clips.trained import TrainedClips
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.row_table import StoredRows
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.spans import Span
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
    faults: dict[str, Fault] = {}
    others: list[OtherRecording] = []

    def clips() -> Iterator[ClippedRow]:
        place = 0
        for row in rows:
            recordings = _recordings_of(row, measured)
            found = _judge_row(row, recordings, stage.validate_, rules)
            if isinstance(found, Fault):
                faults[row.clip_id] = found
                continue
            others.extend(others_of_row(place, found.row, recordings))
            place += 1
            yield found

    sound = Drafts.write(drafts, clips(), others)
    shared = _split_conflicts(sound, stage.data)
    if trained is not None:
        shared |= trained.faults(sound, stage.data)
    shared |= _dialogue_faults(rows, faults | shared)
    faults |= shared
    rejected = rows.with_ids(faults) if faults else ()
    return Judgement(
        sound.without(shared) if shared else sound,
        tuple(
            Rejection(row, faults[row.clip_id], measured[row.span]["duration_seconds"])
            for row in rejected
        ),
    )


def _recordings_of(row: Row, measured: Measured) -> Measured:
    """Return the rows of MEASURED of all spans of a row."""
    found = {span: measured.get(span) for span in row.all_spans}
    recordings = {span: recording for span, recording in found.items() if recording is not None}
    for span in found.keys() - recordings:
        raise UserError(
            f"{row.place}: {span.name} was not measured; run: snakemake --forcerun measure_shard"
        )
    return recordings


def _judge_row(
    given: Row, measured: Measured, limits: ValidateConfig, rules: Sequence[PromptRules]
) -> ClippedRow | Fault:
    row = _filled(given, measured) if limits.fill_missing_text else given
    faults = (text_fault(row, of_family) for of_family in rules)
    if fault := next(filter(None, faults), None) or _fault(row, measured, limits):
        return fault
    if fault := _short_reference(row, measured, rules):
        return fault
    clip = clip_of(row, measured[row.span], is_transcript=row is not given)
    return _filtered(clip, measured, limits) or clip


def _filled(row: Row, measured: Measured) -> Row:
    """Return the row; a missing text is replaced by the recogniser's transcript."""
    transcript = measured[row.span]["transcript"]
    is_lacking = row.conversation is None and is_blank(row.text)
    return replace(row, text=transcript) if is_lacking and transcript else row


def _fault(row: Row, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the first fault of a row's recordings, except for filters."""
    if fault := _conversation_fault(row, measured, limits):
        return fault
    if fault := _audio_fault(row.span, measured, limits):
        return fault
    if fault := declared_fault(row, measured[row.span]):
        return fault
    reference = row.reference_span
    if reference is None:
        return None
    if fault := _audio_fault(reference, measured, limits):
        is_missing = fault.reason is Reason.AUDIO_MISSING
        reason = Reason.REFERENCE_MISSING if is_missing else Reason.REFERENCE_UNREADABLE
        return Fault(reason, fault.fact)
    # A reference is a whole file, so it holds any segment of that file.
    if any(
        measured[reference][of] == measured[row.span][of] for of in ("audio_sha256", "pcm_sha256")
    ):
        return Fault(Reason.REFERENCE_IS_TARGET, "`ref_audio` is the same recording as `audio`")
    return None


def _conversation_fault(row: Row, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the first fault of a turn, or of a prompt that holds audio of a target."""
    if row.conversation and (fault := layout_fault(row.conversation)):
        return fault
    for heard in row.utterances:
        if fault := _audio_fault(heard.recording, measured, limits):
            return Fault(fault.reason, f"turn {heard.turn_number}: {fault.fact}")
    for prompt, target in product(row.utterances, row.utterances):
        if prompt.is_target or not target.is_target:
            continue
        one, other = measured[prompt.recording], measured[target.recording]
        has_equal_samples = one["pcm_sha256"] == other["pcm_sha256"]
        if has_equal_samples or Span.in_file(one).overlaps(Span.in_file(other)):
            fact = f"turn {prompt.turn_number} holds audio of turn {target.turn_number}, a target"
            return Fault(Reason.REFERENCE_IS_TARGET, fact)
    return None


def _short_reference(row: Row, measured: Measured, rules: Sequence[PromptRules]) -> Fault | None:
    """Return the fault of a conversation's reference that a family of base models cannot take.

    For other rows packing chooses the reference, and can replace it.
    """
    for heard in takewhile(lambda heard: not heard.is_target, row.utterances):
        place, seconds = f"turn {heard.turn_number}", measured[heard.recording]["duration_seconds"]
        faults = (of_family.reference_fault(place, seconds) for of_family in rules)
        if fault := next(filter(None, faults), None):
            return fault
    return None


def _audio_fault(span: Span, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the fault of a recording; too short takes precedence over all others."""
    found = measured[span]
    seconds = found["duration_seconds"]
    if seconds is not None and seconds < limits.min_clip_seconds:
        fact = f"lasts {seconds:.3f} s, less than {limits.min_clip_seconds:g} s"
        return Fault(Reason.TOO_SHORT, f"{span.name} {fact}")
    if found["reason"] is not None:
        return Fault(Reason[found["reason"].upper()], found["fact"])
    return None


def _filtered(clip: ClippedRow, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the first filter that rejects a target of the clip's row, or None."""
    targets = [("", clip)]
    for heard in clip.row.utterances:
        if heard.is_target and not heard.is_own:
            other = clip_of(alone(clip.row, heard.text), measured[heard.recording])
            targets.append((f"turn {heard.turn_number}: ", other))
    for place, target in targets:
        if found := filters.faults(target, limits.filters):
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
