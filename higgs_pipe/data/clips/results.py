"""What ``validation.json`` holds."""

from typing import ClassVar

from pydantic import ConfigDict

from higgs_pipe.data.results import Result, ResultPart


class Share(ResultPart):
    """Clips of a split, and their length."""

    num_clips: int
    seconds: float
    hours: float


class NamedShare(Share):
    """Clips of a speaker or language, also by split."""

    num_train_clips: int
    num_eval_clips: int


class ClipSeconds(ResultPart):
    """Lengths of the clips, in seconds."""

    min: float
    median: float
    max: float


class SpeakersWithOneClip(ResultPart):
    """Speakers without a second recording to clone from, and the consequence in words."""

    speakers: list[str]
    message: str


class ValidationSummary(Result):
    """``validation.json``; keys that no later stage reads are not declared."""

    model_config = ConfigDict(extra="allow")
    made_by: ClassVar[str] = "judge_clips"

    num_rows: int
    num_clips: int
    seconds: float
    hours: float
    num_rejected: int
    num_rejected_by_reason: dict[str, int]
    num_references: int
    splits: dict[str, Share]
    num_audio_shared_by_splits: int
    clip_seconds: ClipSeconds
    speakers: dict[str, NamedShare]
    num_clips_without_speaker: int
    languages: dict[str, NamedShare]
    num_clips_without_language: int
    speakers_with_one_clip: SpeakersWithOneClip
    duplicates: list[list[str]]
