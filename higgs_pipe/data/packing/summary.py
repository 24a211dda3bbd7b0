"""``packing.json``: the packed rows of each split, and what fell back or was rejected."""

from typing import ClassVar

from higgs_pipe.data.results import Result, ResultPart


class SplitCounts(ResultPart):
    """The packed rows of a split in numbers."""

    num_rows: int
    num_samples: int
    tasks: dict[str, int]  # number of samples
    audio_seconds: float  # of targets
    num_tokens: int
    num_audio_frames: int
    num_text_labels: int
    num_audio_labels: int
    fill: float  # share of the positions of all rows that are used


class Fallbacks(ResultPart):
    """The samples of a speaker that fell back to a simpler task for one reason."""

    split: str
    speaker: str
    reason: str
    num_clips: int


class RejectedSample(ResultPart):
    """A sample that is not packed: the clip that it is named after, a reason code, the fact."""

    clip_id: str
    reason: str
    message: str


class Packing(Result):
    """``packing.json``."""

    made_by: ClassVar[str] = "pack"

    max_tokens: int
    train: SplitCounts
    eval: SplitCounts
    fallbacks: list[Fallbacks]
    rejected: list[RejectedSample]
