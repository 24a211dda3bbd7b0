"""Rows that passed their own checks, as clips."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from higgs_pipe.data.clips.splits import OtherRecording
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.quality import measure_text
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import AUDIO_MEASURE_COLUMNS, FILE_COLUMNS, SPEECH_COLUMNS
from higgs_pipe.data.speech import word_error_rate

MEASURED_NAMES = [
    column.name for column in (*FILE_COLUMNS, *AUDIO_MEASURE_COLUMNS, *SPEECH_COLUMNS)
]

# A row of MEASURED for each span.
Measured: TypeAlias = Mapping[Span, Mapping[str, Any]]
# A row of CLIPS.
Clip: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sound row as a clip, and the other recordings of its conversation.

    ``clip`` is a row of CLIPS; its split, reference_id and conversation are not set yet.
    """

    row: Row
    clip: Clip
    others: tuple[OtherRecording, ...]


def candidate_of(row: Row, measured: Measured, is_transcript: bool) -> Candidate:
    """Return a sound row as a clip; ``is_transcript`` tells where its text is from."""
    others = tuple(
        OtherRecording(
            {
                **measured[heard.recording],
                "text": heard.text,
                "speaker": row.speaker,
                "dialogue_id": None,
            },
            heard.is_target,
        )
        for heard in row.utterances
        if not heard.is_own
    )
    return Candidate(row, clip_of(row, measured[row.span], is_transcript), others)


def alone(row: Row, text: str) -> Row:
    """Return the row of another recording that ``row`` names, without scene, dialogue and turns."""
    return replace(row, text=text, scene=None, dialogue_id=None, turn=None, conversation=None)


def clip_of(row: Row, recording: Mapping[str, Any], is_transcript: bool = False) -> Clip:
    """Return a row of CLIPS; its split, reference_id and conversation are None.

    Args:
        row: The row.
        recording: Its row of MEASURED.
        is_transcript: The text of the row is the recording's transcript.
    """
    transcript = recording["transcript"]
    compares = transcript is not None and not is_transcript
    return {
        "clip_id": row.clip_id,
        **Span.of(recording)._asdict(),
        "manifest": row.manifest,
        "line": row.line,
        "text": row.text,
        "speaker": row.speaker,
        "language": row.language,
        "scene": row.scene,
        "dialogue_id": row.dialogue_id,
        "turn": row.turn,
        "conversation": None,
        "reference_id": None,
        "split": None,
        **{name: recording[name] for name in MEASURED_NAMES},
        **vars(measure_text(row.text, row.language, recording["duration_seconds"])),
        "word_error_rate": word_error_rate(row.text, transcript) if compares else None,
        "text_source": "transcript" if is_transcript else "manifest",
    }
