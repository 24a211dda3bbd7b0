"""The recordings of ``eval.other_manifest``, by which the report says what was forgotten."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.reporting.prompts import Listening


@dataclass(frozen=True)
class OtherRecordings:
    """Counts of the other manifest, and the prompts of it that were spoken."""

    validation: ValidationSummary
    num_left_out: dict[str, int]  # rows by reason, of validate and pack
    listening: Listening


def read_other(other_dir: Path, listening: Listening) -> OtherRecordings:
    """Read the counts of the other manifest.

    Args:
        other_dir: Holds ``data/validation.json`` and ``packed/packing.json``.
        listening: The prompts that were spoken.

    Raises:
        UserError: A file or a value is missing.
    """
    validation = ValidationSummary.read(other_dir / "data" / "validation.json")
    packing = PackingSummary.read(other_dir / "packed" / "packing.json")
    num_left_out = Counter(validation.num_rejected_by_reason)
    num_left_out.update(sample.reason for sample in packing.rejected)
    return OtherRecordings(validation, dict(num_left_out), listening)
