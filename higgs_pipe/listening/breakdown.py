"""Breakdown of the loss: by group of clips, within a clip, at its end, and the worst clips."""

from typing import ClassVar, Literal

from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.listening.intervals import Difference

Kind = Literal["speaker", "language", "task", "length", "position"]
HEADINGS: dict[Kind, str] = {
    "speaker": "Speaker",
    "language": "Language",
    "task": "Task",
    "length": "Length of the clip",
    "position": "Part of the clip",
}


class GroupLoss(ResultPart):
    """Audio loss over a group, nats per label."""

    kind: Kind
    name: str
    num_clips: int
    base: float
    adapter: float
    difference: Difference  # adapter minus base


class Stopping(ResultPart):
    """Calibration of the end: means over the clips, of codebook 0 at temperature 1.

    ``at_end`` is the probability of stopping at the true end, ``before_end`` that of having stopped
    in any frame before it.
    """

    at_end: float
    before_end: float


class WorstClip(ResultPart):
    """A clip with a high audio loss of the adapter, nats per label."""

    clip_id: str
    text: str
    speaker: str | None
    base: float
    adapter: float


class Breakdown(Result):
    """``breakdown.json``."""

    made_by: ClassVar[str] = "eval_adapter"

    groups: list[GroupLoss]
    base_stopping: Stopping
    adapter_stopping: Stopping
    worst_clips: list[WorstClip]

    def by_kind(self) -> list[tuple[str, list[GroupLoss]]]:
        """Return the groups of each kind under its heading."""
        kinds = [(HEADINGS[kind], [g for g in self.groups if g.kind == kind]) for kind in HEADINGS]
        return [(heading, groups) for heading, groups in kinds if groups]
