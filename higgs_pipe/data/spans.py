"""A span: a recording or a part of one, the unit that is measured, trained on and compared."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A file or a part of it, in seconds; None is the file's own start or end."""

    audio_path: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Span":
        """Return the span that a row of a table names."""
        return cls(columns["audio_path"], columns["start_seconds"], columns["end_seconds"])

    @classmethod
    def in_file(cls, columns: Mapping[str, Any]) -> "Span":
        """Return the span with the hash of its file as the path: equal for copies and links."""
        return cls(columns["audio_sha256"], columns["start_seconds"], columns["end_seconds"])

    @property
    def name(self) -> str:
        """Name for a message."""
        if self.is_whole_file:
            return self.audio_path
        return f"the segment of {self.audio_path} from {self.start_seconds or 0:.3f} s"

    @property
    def is_whole_file(self) -> bool:
        """Return whether neither end is given."""
        return self.start_seconds is None and self.end_seconds is None

    @property
    def bounds_seconds(self) -> tuple[float, float]:
        """Start and end in the file; infinity stands for the file's own end."""
        return self.start_seconds or 0.0, math.inf if self.end_seconds is None else self.end_seconds

    def overlaps(self, other: "Span") -> bool:
        """Return whether both are parts of one file and share some of its time."""
        (start, end), (other_start, other_end) = self.bounds_seconds, other.bounds_seconds
        return self.audio_path == other.audio_path and start < other_end and other_start < end
