"""Judging: each row becomes a candidate clip, or is rejected with a reason."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile

from higgs_pipe.config.settings import DataConfig, ValidateConfig
from higgs_pipe.config.stages import ValidateStage
from higgs_pipe.data.clips import filters
from higgs_pipe.data.clips.candidates import Candidate, Measured, alone, candidate_of, clip_of
from higgs_pipe.data.clips.declared import declared_fault
from higgs_pipe.data.clips.layout import layout_fault
from higgs_pipe.data.clips.reasons import Fault, Reason, Rejection
from higgs_pipe.data.clips.splits import Key, groups_of, keys_of
from higgs_pipe.data.clips.text_faults import text_fault
from higgs_pipe.data.clips.trained import TrainedClips
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.data.text import is_blank


@dataclass(frozen=True)
class Judgement:
    """Accepted and rejected rows, both in the manifest's order."""

    accepted: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]


def judge(
    rows: Sequence[Row],
    measured: Measured,
    stage: ValidateStage,
    rules: Sequence[PromptRules],
    trained: TrainedClips | None = None,
) -> Judgement:
    """Judge each row on its own, then against the other rows.

    Args:
        rows: The rows of all manifests.
        measured: The rows of MEASURED of all their spans.
        stage: The settings.
        rules: The prompt rules of each family of base models that the rows are for.
        trained: Clips of another manifest, with which these rows must not overlap.
    """
    found = {row.clip_id: _judge_row(row, measured, stage.validate_, rules) for row in rows}
    faults = {clip_id: fault for clip_id, fault in found.items() if isinstance(fault, Fault)}
    sound = [candidate for candidate in found.values() if isinstance(candidate, Candidate)]
    faults |= _split_conflicts(sound, stage.data)
    if trained is not None:
        faults |= trained.faults(sound, stage.data)
    faults |= _dialogue_faults(rows, faults)
    return Judgement(
        tuple(candidate for candidate in sound if candidate.row.clip_id not in faults),
        tuple(
            Rejection(row, faults[row.clip_id], measured[row.span]["duration_seconds"])
            for row in rows
            if row.clip_id in faults
        ),
    )


def _judge_row(
    given: Row, measured: Measured, limits: ValidateConfig, rules: Sequence[PromptRules]
) -> Candidate | Fault:
    row = _filled(given, measured) if limits.fill_missing_text else given
    faults = (text_fault(row, of_family) for of_family in rules)
    if fault := next(filter(None, faults), None) or _fault(row, measured, limits):
        return fault
    if fault := _short_reference(row, measured, rules):
        return fault
    candidate = candidate_of(row, measured, is_transcript=row is not given)
    return _filtered(candidate, measured, limits) or candidate


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


def _filtered(candidate: Candidate, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the first filter that rejects a target of the row, or None."""
    row = candidate.row
    targets = [("", candidate.clip)]
    for heard in row.utterances:
        if heard.is_target and not heard.is_own:
            clip = clip_of(alone(row, heard.text), measured[heard.recording])
            targets.append((f"turn {heard.turn_number}: ", clip))
    for place, clip in targets:
        if found := filters.faults(clip, limits.filters):
            return replace(found[0], fact=place + found[0].fact)
    return None


def _split_conflicts(sound: Sequence[Candidate], data: DataConfig) -> dict[str, Fault]:
    """Return the rows given to train that share something with a row given to eval."""
    rows = [candidate.row for candidate in sound]
    if not any(row.split == EVAL for row in rows):
        return {}
    others = [candidate.others for candidate in sound]
    keys = keys_of([candidate.clip for candidate in sound], data, others)
    groups = groups_of(keys)
    held_out: dict[Key, Row] = {}
    held_out_groups: dict[str, Row] = {}
    for row, own, group in zip(rows, keys, groups, strict=True):
        if row.split == EVAL:
            held_out_groups.setdefault(group, row)
            for key in own:
                held_out.setdefault(key, row)
    conflicts = {}
    for row, own, group in zip(rows, keys, groups, strict=True):
        if row.split == TRAIN and group in held_out_groups:
            shared = next((key for key in own if key in held_out), None)
            other = (held_out[shared] if shared else held_out_groups[group]).place
            # A row without a split may link the two.
            what = f"the same {shared.kind}" if shared else "clips that are linked with it"
            fact = f"`split` is {TRAIN!r}, and {EVAL!r} for {what} at {other}"
            conflicts[row.clip_id] = Fault(Reason.SPLIT_CONFLICT, fact)
    return conflicts


def _dialogue_faults(rows: Sequence[Row], faults: Mapping[str, Fault]) -> dict[str, Fault]:
    """Return the sound rows of dialogues that lack a turn: these dialogues cannot be trained."""
    dialogues: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        if row.dialogue_id is not None and row.turn is not None:
            dialogues[row.dialogue_id].append((row.turn, row))
    incomplete: dict[str, Fault] = {}
    for dialogue_id, turns in dialogues.items():
        if gap := _gap(turns, faults):
            fault = Fault(Reason.DIALOGUE_INCOMPLETE, f"the dialogue {dialogue_id!r} {gap}")
            sound = (row.clip_id for _, row in turns if row.clip_id not in faults)
            incomplete |= dict.fromkeys(sound, fault)
    return incomplete


def _gap(turns: Sequence[tuple[int, Row]], faults: Mapping[str, Fault]) -> str | None:
    """Return which turns a dialogue lacks, counting from 0 or from 1, or None."""
    places: dict[int, Row] = {}
    for turn, row in turns:
        if turn in places:
            return f"has turn {turn} twice, at {places[turn].place} and {row.place}"
        places[turn] = row
    for turn in range(min(1, *places), max(places) + 1):
        if turn not in places:
            return f"lacks turn {turn}"
        if fault := faults.get(places[turn].clip_id):
            return f"lacks turn {turn}, rejected as {fault.reason} ({places[turn].place})"
    return None
