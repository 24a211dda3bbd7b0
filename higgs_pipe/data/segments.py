"""A recording, or a part of one: what is measured at once."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Segment(NamedTuple):
    """A recording or a part of it, in seconds; None is the file's own start or end."""

    audio_path: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Segment":
        """That of a row of a table."""
        return cls(columns["audio_path"], columns["start_seconds"], columns["end_seconds"])

    @property
    def name(self) -> str:
        """What a message calls it."""
        if self.start_seconds is None and self.end_seconds is None:
            return self.audio_path
        return f"the segment of {self.audio_path} from {self.start_seconds or 0:.3f} s"
