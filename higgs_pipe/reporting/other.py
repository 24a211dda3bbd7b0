"""The results on ``eval.other_manifest``, which show what was forgotten."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.reporting.prompts import Listening


@dataclass(frozen=True)
class OtherRecordings:
    """Counts of the other manifest, and its prompts that were spoken."""

    validation: ValidationSummary
    num_left_out: dict[str, int]  # rows by reason, of validate and pack
    listening: Listening


def read_other(
    validation_path: Path, packing_paths: Sequence[Path], listening: Listening
) -> OtherRecordings:
    """Read the counts of the other manifest.

    Args:
        validation_path: Its ``validation.json``.
        packing_paths: Its ``packing.json`` for each base; a clip left out for any base counts.
        listening: The prompts that were spoken.

    Raises:
        UserError: A file or a value is missing.
    """
    validation = ValidationSummary.read(validation_path)
    num_left_out = Counter(validation.num_rejected_by_reason)
    left_out = {
        (sample.clip_id, sample.reason)
        for path in packing_paths
        for sample in PackingSummary.read(path).rejected
    }
    num_left_out.update(reason for _, reason in sorted(left_out))
    return OtherRecordings(validation, dict(num_left_out), listening)
