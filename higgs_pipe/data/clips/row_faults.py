"""Faults of a row by itself: its texts, its conversation, its recordings and what it declares."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product, takewhile
from typing import Any

from higgs_pipe.config.settings import ValidateConfig
from higgs_pipe.data.clips.measured import Measured
from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.conversation import ASSISTANT, SCENE, SYSTEM, USER, Conversation
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.spans import Span
from higgs_pipe.data.text import find_control_token, is_blank

# How far a declared duration may be off.
TOLERANCE_SECONDS = 0.1  # what decoders and rounding add
TOLERANCE_FRACTION = 0.02


def row_fault(
    row: Row, measured: Measured, limits: ValidateConfig, rules: Sequence[PromptRules]
) -> Fault | None:
    """Return the first fault of a row by itself, filters aside.

    Args:
        row: The row.
        measured: The rows of MEASURED of all its spans.
        limits: The settings.
        rules: The prompt rules of each family of base models that the row is for.
    """
    return next(filter(None, _faults(row, measured, limits, rules)), None)


def _faults(
    row: Row, measured: Measured, limits: ValidateConfig, rules: Sequence[PromptRules]
) -> Iterator[Fault | None]:
    for of_family in rules:
        yield from _text_faults(row, of_family)
    yield _conversation_fault(row, measured, limits)
    yield _audio_fault(row.span, measured, limits)
    yield _declared_fault(row, measured[row.span])
    yield _reference_fault(row, measured, limits)
    yield _short_reference(row, measured, rules)


def _text_faults(row: Row, rules: PromptRules) -> Iterator[Fault | None]:
    """Yield the faults of the texts of a row, those of its conversation first, and None between."""
    turns = row.conversation.turns if row.conversation else ()
    for number, turn in enumerate(turns, start=1):
        place = f"turn {number}"
        yield rules.text_fault(place, turn.texts)
        if is_blank(turn.text) and (turn.texts or not turn.recordings):
            yield Fault(Reason.TEXT_EMPTY, f"the text of {place} is empty")
        if turn.role == SYSTEM:
            yield rules.system_message_fault(place, turn.text)
        if turn.role == SCENE:
            yield rules.scene_fault(place)
    for key in ("text", "scene", "ref_text", "speaker"):
        text = getattr(row, key)
        if text is not None and is_blank(text):
            yield Fault(Reason.TEXT_EMPTY, f"`{key}` is empty")
    for key in ("text", "scene", "ref_text"):
        text = getattr(row, key)
        if text is not None:
            yield rules.text_fault(f"`{key}`", [text])
    if row.scene is not None:
        yield rules.scene_fault("`scene`")
    if row.speaker is not None and (token := find_control_token([row.speaker])):
        yield Fault(Reason.CONTROL_TOKEN, f"`speaker` contains {token:.60}")


def _layout_fault(conversation: Conversation[Span]) -> Fault | None:
    """Return why a conversation is unlike any prompt at inference, or None.

    At inference a turn has text, or is an assistant turn with one recording of the text of the user
    turn before it, and the last turn is an assistant's.
    """
    for number, turn in enumerate(conversation.turns, start=1):
        num_recordings = len(turn.recordings)
        if num_recordings and turn.role != ASSISTANT:
            fact = f"turn {number} ({turn.role}) holds a recording"
        elif num_recordings > 1:
            fact = f"turn {number} holds {num_recordings} recordings"
        elif num_recordings and not is_blank(turn.text):
            fact = f"turn {number} has another text with its recording than the user turn before it"
        else:
            continue
        return Fault(Reason.CONVERSATION_LAYOUT, fact)
    if conversation.turns[-1].role == USER:
        fact = f"turn {len(conversation.turns)} is a user's, without an answer"
        return Fault(Reason.CONVERSATION_LAYOUT, fact)
    for utterance in conversation.utterances():
        if is_blank(utterance.text):
            fact = f"the recording of turn {utterance.turn_number} has no text"
            return Fault(Reason.TEXT_EMPTY, fact)
    return None


def _conversation_fault(row: Row, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the first fault of a turn, or of a prompt that holds audio of a target."""
    if row.conversation and (fault := _layout_fault(row.conversation)):
        return fault
    for utterance in row.utterances:
        if fault := _audio_fault(utterance.recording, measured, limits):
            return Fault(fault.reason, f"turn {utterance.turn_number}: {fault.fact}")
    for prompt, target in product(row.utterances, row.utterances):
        if prompt.is_target or not target.is_target:
            continue
        one, other = measured[prompt.recording], measured[target.recording]
        has_equal_samples = one["pcm_sha256"] == other["pcm_sha256"]
        if has_equal_samples or Span.in_file(one).overlaps(Span.in_file(other)):
            fact = f"turn {prompt.turn_number} holds audio of turn {target.turn_number}, a target"
            return Fault(Reason.REFERENCE_IS_TARGET, fact)
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


def _declared_fault(row: Row, measured: Mapping[str, Any]) -> Fault | None:
    """Return the fault if the recording contradicts its manifest row, or None.

    Args:
        row: The row; facts that it does not declare are not compared.
        measured: The row of MEASURED of its span.
    """
    seconds, sample_rate_hz = measured["duration_seconds"], measured["sample_rate_hz"]
    if row.declared_seconds is not None and not _agrees(row, seconds, sample_rate_hz):
        fact = (
            f"the manifest says {row.declared_seconds:g} s, {row.span.name} lasts {seconds:.3f} s"
        )
        return Fault(Reason.DURATION_MISMATCH, fact)
    declared_hz = row.declared_sample_rate_hz
    if declared_hz is not None and abs(declared_hz - sample_rate_hz) > 1:
        fact = f"the manifest says {declared_hz:g} Hz, {row.span.name} has {sample_rate_hz:,} Hz"
        return Fault(Reason.SAMPLE_RATE_MISMATCH, fact)
    return None


def _agrees(row: Row, seconds: float, sample_rate_hz: int) -> bool:
    """Return whether a declared length is that of the recording, in s, ms or samples."""
    declared = row.declared_seconds or 0.0
    is_rounded = declared == round(declared)
    tolerance = max(0.5 if is_rounded else TOLERANCE_SECONDS, TOLERANCE_FRACTION * seconds)
    if not row.span.is_whole_file and declared >= seconds - tolerance:
        return True  # the length of the file that the segment lies in
    units = (1, 1000, sample_rate_hz)
    return any(abs(declared / per_second - seconds) <= tolerance for per_second in units)


def _reference_fault(row: Row, measured: Measured, limits: ValidateConfig) -> Fault | None:
    """Return the fault of the row's own reference, or None."""
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


def _short_reference(row: Row, measured: Measured, rules: Sequence[PromptRules]) -> Fault | None:
    """Return the fault of a conversation's reference that a family of base models cannot take.

    For other rows packing chooses the reference, and can replace it.
    """
    references = takewhile(lambda utterance: not utterance.is_target, row.utterances)
    for reference in references:
        place, recording = f"turn {reference.turn_number}", reference.recording
        seconds = measured[recording]["duration_seconds"]
        faults = (of_family.reference_fault(place, seconds) for of_family in rules)
        if fault := next(filter(None, faults), None):
            return fault
    return None
