"""Duration and sample rate as a manifest declares them, compared with the recording."""

from collections.abc import Mapping
from typing import Any

from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.manifests.row import Row

TOLERANCE_SECONDS = 0.1  # what decoders and rounding add
TOLERANCE_FRACTION = 0.02


def declared_fault(row: Row, measured: Mapping[str, Any]) -> Fault | None:
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
