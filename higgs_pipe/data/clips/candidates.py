"""Rows that passed their own checks, as clips."""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, cast

from higgs_pipe.data.clips.keys import OtherRecording
from higgs_pipe.data.clips.measured import Measured
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.quality import TextMeasures, measure_text
from higgs_pipe.data.specs import CLIPS, ROW_COLUMNS
from higgs_pipe.data.speech import word_error_rate

# The field of a ClippedRow that holds a column of CLIPS; all others are in its recording.
PART_OF_COLUMN = {
    "clip_id": "row",
    **dict.fromkeys((column.name for column in ROW_COLUMNS), "row"),
    **dict.fromkeys((measure.name for measure in fields(TextMeasures)), "text_measures"),
}

# A row of CLIPS.
Clip: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ClippedRow(Mapping[str, Any]):
    """A row of CLIPS that copies nothing from its manifest row and recording.

    ``text_source`` is manifest or transcript; ``split`` is the given one, and ``conversation``
    names files, until the whole corpus is known.
    """

    row: Row
    recording: Mapping[str, Any]  # its row of MEASURED
    text_measures: TextMeasures
    word_error_rate: float | None
    text_source: str
    split: str | None = None
    reference_id: str | None = None
    conversation: str | None = None

    def __getitem__(self, name: str) -> Any:
        if name in OWN_COLUMNS:
            return getattr(self, name)
        if part := PART_OF_COLUMN.get(name):
            return getattr(getattr(self, part), name)
        return self.recording[name]

    def __iter__(self) -> Iterator[str]:
        return (column.name for column in CLIPS.columns)

    def __len__(self) -> int:
        return len(CLIPS.columns)


OWN_COLUMNS = {"word_error_rate", "text_source", "split", "reference_id", "conversation"}


def others_of_row(place: int, row: Row, measured: Measured) -> Iterator[OtherRecording]:
    """Yield the other recordings in the conversation of a row that becomes clip ``place``."""
    for utterance in row.utterances:
        if not utterance.is_own:
            said = {"text": utterance.text, "speaker": row.speaker, "dialogue_id": None}
            columns = ChainMap(said, cast("dict[str, Any]", measured[utterance.recording]))
            yield OtherRecording(place, columns, utterance.is_target)


def without_context(row: Row, text: str) -> Row:
    """Return a row with another text, and without scene, dialogue and turns."""
    return replace(row, text=text, scene=None, dialogue_id=None, turn=None, conversation=None)


def clip_of(row: Row, recording: Mapping[str, Any], is_transcript: bool = False) -> ClippedRow:
    """Return a row of CLIPS; its split is the given one, and its references are not linked yet.

    Args:
        row: The row.
        recording: Its row of MEASURED.
        is_transcript: The text of the row is the recording's transcript.
    """
    transcript = recording["transcript"]
    compares = transcript is not None and not is_transcript
    return ClippedRow(
        row,
        recording,
        measure_text(row.text, row.language, recording["duration_seconds"]),
        word_error_rate(row.text, transcript) if compares else None,
        "transcript" if is_transcript else "manifest",
        split=row.split,
        conversation=None if row.conversation is None else row.conversation.to_json(),
    )
