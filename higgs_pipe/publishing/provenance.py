"""``provenance.json``: where an adapter comes from, without paths and personal data."""

from typing import Any, ClassVar

import langcodes

from higgs_pipe.data.clips.results import NamedShare, Share, ValidationSummary
from higgs_pipe.data.packing.results import PackedSplit, PackingSummary
from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.higgs.adapter_files import Ancestor
from higgs_pipe.training.results import Proof

PROVENANCE = "provenance.json"


class Software(ResultPart):
    """This package; the commit ends in ``-dirty`` if it was changed, and is None without git."""

    version: str
    git_commit: str | None


class BaseWeights(ResultPart):
    """The checkpoint that the adapter was trained on; if local, without its folder."""

    name: str
    revision: str | None
    fingerprint: str


class DataSummary(ResultPart):
    """Counts and hashes of the data: no path, text or id of a clip.

    ``languages`` and ``speakers`` hold their clips and hours. Languages are valid codes (BCP 47),
    other names are left out. ``speakers`` is None unless ``package.show_speakers``.
    ``num_audio_in_both_splits`` counts context too (``data.keep_context_together``).
    """

    splits: dict[str, Share]
    num_audio_in_both_splits: int
    num_rejected: int
    num_rejected_by_reason: dict[str, int]
    num_speakers: int
    speakers: dict[str, NamedShare] | None
    languages: dict[str, NamedShare]
    packed: dict[str, PackedSplit]
    sha256: dict[str, str]

    @classmethod
    def of(
        cls,
        validation: ValidationSummary,
        packing: PackingSummary,
        sha256: dict[str, str],
        show_speakers: bool,
    ) -> "DataSummary":
        """Summarize the data.

        Args:
            validation: Counts of validate.
            packing: Counts of pack.
            sha256: Hashes of the tables, by file name.
            show_speakers: Whether to name the speakers.
        """
        return cls(
            splits=validation.splits,
            num_audio_in_both_splits=validation.overlap["audio"] + validation.overlap["context"],
            num_rejected=validation.num_rejected,
            num_rejected_by_reason=validation.num_rejected_by_reason,
            num_speakers=len(validation.speakers),
            speakers=validation.speakers if show_speakers else None,
            languages={
                name: share
                for name, share in validation.languages.items()
                if langcodes.tag_is_valid(name)
            },
            packed={"train": packing.train, "eval": packing.eval},
            sha256=sha256,
        )

    @property
    def language_codes(self) -> list[str]:
        """Language codes as the Hub takes them: without script and region, sorted."""
        codes = {langcodes.get(name).language for name in self.languages}
        return sorted(code for code in codes if code)


class Provenance(Result):
    """``provenance.json``; ``config`` holds the settings of every stage, defaults included."""

    made_by: ClassVar[str] = "package_adapter"

    name: str
    higgs_pipe: Software
    python: str
    packages: dict[str, str]
    base_model: BaseWeights
    ancestor: Ancestor | None  # the adapter that training started from
    codec: CodecInfo
    config: dict[str, Any]
    data: DataSummary
    verification: Proof
