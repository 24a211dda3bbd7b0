"""``validation.json``: what validation accepted and rejected, counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from higgs_pipe.data.results import Result, ResultPart


class Share(ResultPart):
    """Clips and their length."""

    num_clips: int
    seconds: float
    hours: float


class NamedShare(Share):
    """Clips of a speaker or language, also by split."""

    num_train_clips: int
    num_eval_clips: int


class Loss(ResultPart):
    """Rejected rows; ``hours`` sums the rows of known length."""

    num_rows: int
    num_rows_of_unknown_length: int
    hours: float


class Losses(ResultPart):
    """Rejected rows by reason, speaker and language."""

    reasons: dict[str, Loss]
    speakers: dict[str, Loss]
    languages: dict[str, Loss]


@dataclass(frozen=True)
class Hours:
    """Clips kept and rows rejected, for the table that validation prints."""

    kept: Share
    splits: Mapping[str, Share]
    speakers: Mapping[str, Share]
    languages: Mapping[str, Share]
    lost: Losses


class ClipSeconds(ResultPart):
    """Lengths of the clips, in seconds."""

    min: float
    median: float
    max: float


class SpeakersWithOneClip(ResultPart):
    """Speakers without a second recording to clone from, and the consequence in words."""

    speakers: list[str]
    message: str


class Outliers(ResultPart):
    """Clips whose measure is far from the median of their speaker; the farthest first."""

    median: float
    num_clips: int
    clips: dict[str, float]


class TextFinding(ResultPart):
    """Rows with a text that may not be spoken as written, and the first of them."""

    num_rows: int
    examples: list[str]


class Contradictions(ResultPart):
    """Recordings of which rows say different things, and the first of them with their places."""

    num_recordings: int
    examples: list[str]


class OutsideRoot(ResultPart):
    """Rows with a recording outside the root of their manifest."""

    num_rows: int
    first_rows: list[str]


class LeftOut(ResultPart):
    """Files in a folder given as a manifest that no row uses."""

    num_files: int
    first_files: list[str]


class ValidationSummary(Result):
    """``validation.json``; references are counted apart from clips."""

    made_by: ClassVar[str] = "judge_clips"

    num_rows: int
    num_clips: int
    seconds: float
    hours: float
    num_rejected: int
    num_rejected_by_reason: dict[str, int]
    rejected: Losses
    num_texts_from_transcripts: int
    num_references: int
    num_clips_of_one_channel: int
    num_clips_of_separate_channels: int  # such as a voice in each
    splits: dict[str, Share]
    split_by: str
    overlap: dict[str, int]
    largest_group_num_clips: int
    clip_seconds: ClipSeconds
    speakers: dict[str, NamedShare]
    num_clips_without_speaker: int
    languages: dict[str, NamedShare]
    num_clips_without_language: int
    speakers_with_one_clip: SpeakersWithOneClip
    duplicates: list[list[str]]
    contradictions: dict[str, Contradictions]  # texts, speakers
    outliers: dict[str, dict[str, Outliers]]
    text_findings: dict[str, TextFinding]
    outside_root: OutsideRoot
    ignored_manifest_keys: dict[str, int]
    manifest_notes: list[str]  # such as names of columns that were guessed
    left_out: dict[str, LeftOut]  # by reason
    shared_scene: str | None  # the scene of all clips

    @property
    def hours_by_part(self) -> Hours:
        """The clips kept and the rows lost, by split, speaker, language and reason."""
        return Hours(
            kept=Share(num_clips=self.num_clips, seconds=self.seconds, hours=self.hours),
            splits=self.splits,
            speakers=self.speakers,
            languages=self.languages,
            lost=self.rejected,
        )
