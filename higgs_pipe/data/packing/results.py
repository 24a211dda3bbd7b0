"""``packing.json``: packed rows of each split, and the samples that fell back or were rejected."""

from typing import ClassVar, Self

from higgs_pipe.data.results import Result, ResultPart


class PackedSplit(ResultPart):
    """Counts of a packed split; ``fill`` is the share of its positions that hold a sample."""

    num_rows: int
    num_samples: int
    tasks: dict[str, int]
    audio_seconds: float
    num_tokens: int
    num_audio_frames: int
    num_text_labels: int
    num_audio_labels: int
    fill: float

    @classmethod
    def empty(cls) -> Self:
        """Return the counts of a split that is not packed."""
        whole_numbers = (
            "num_rows",
            "num_samples",
            "num_tokens",
            "num_audio_frames",
            "num_text_labels",
            "num_audio_labels",
        )
        return cls(**dict.fromkeys(whole_numbers, 0), tasks={}, audio_seconds=0.0, fill=0.0)


class FallbackCount(ResultPart):
    """Number of samples of a speaker that fell back to a simpler task for one reason."""

    split: str
    speaker: str
    reason: str
    num_clips: int


class RejectedSample(ResultPart):
    """A sample that was not packed: its clip, a reason code and a sentence."""

    clip_id: str
    reason: str
    message: str


class PackingSummary(Result):
    """``packing.json``."""

    made_by: ClassVar[str] = "pack_rows"

    max_tokens: int
    train: PackedSplit
    eval: PackedSplit
    fallbacks: list[FallbackCount]
    rejected: list[RejectedSample]
