"""What a package reports about its data."""

from typing import Any

from higgs_pipe.data.clips.results import NamedShare, ValidationSummary
from higgs_pipe.data.packing.results import PackedSplit, PackingSummary
from higgs_pipe.publishing.provenance import DataSummary


def test_only_language_codes_are_published_and_other_names_left_out() -> None:
    one = NamedShare(num_clips=1, seconds=36.0, hours=0.01, num_train_clips=1, num_eval_clips=0)
    languages = {"en": one, "pt-BR": one, "as spoken by Ada": one}
    parts: dict[str, Any] = {"splits": {"train": one}, "num_rejected": 0, "languages": languages}
    parts |= {"num_rejected_by_reason": {}, "speakers": {"ada": one}}
    parts["overlap"] = {"audio": 2, "texts": 9, "context": 3}
    empty = PackedSplit.empty()
    packing = PackingSummary(max_tokens=9, train=empty, eval=empty, fallbacks=[], rejected=[])
    found = DataSummary.of(ValidationSummary.model_construct(**parts), packing, {}, False)
    assert list(found.languages) == ["en", "pt-BR"]
    assert found.language_codes == ["en", "pt"]
    assert (found.num_speakers, found.speakers) == (1, None)
    assert found.num_audio_in_both_splits == 5
