"""The card of a full checkpoint, from figures made by hand."""

from typing import Any

import pytest

from higgs_pipe import merge
from higgs_pipe.config.stages import PackStage, Pretrained
from higgs_pipe.higgs.family import V2
from higgs_pipe.merge import checkpoint_card
from higgs_pipe.training.form_results import FirstSecond, FormProof, MergeRecord

RECORD = MergeRecord(
    form="merged",
    dtype="bfloat16",
    base="acme/base",
    base_revision="1" * 40,
    base_fingerprint="b",
    codec="acme/codec",
    codec_revision=None,
    codec_fingerprint="c",
    adapter_sha256="a",
    num_weights=30,
    num_changed=9,
    max_rounding_error=0.5,
    relative_rounding_error=0.001,
    rounding_error_of_change=0.01,
    higgs_pipe="1.2.3",
    git_commit=None,
)
PROOF = FormProof(
    form="merged",
    num_tensors_of_equal_bits=None,
    largest_share_rounded_otherwise=0.0,
    logit_difference=0.001,
    logit_difference_bound=0.002,
    max_logit_difference=0.5,
    logit_change=0.25,
    eval_loss=1.5,
    eval_loss_of_adapter=1.25,
    first_seconds=[
        FirstSecond(
            sample_id=sample_id,
            num_frames=33,
            num_equal_frames=num_equal,
            margin=None,
            largest_margin_of_a_tie=0.1,
        )
        for sample_id, num_equal in (("a", 33), ("b", 20))
    ],
)


def card(form: str = "merged", **changed: str | None) -> str:
    """The card with another record or form."""
    record = RECORD.model_copy(update=changed)
    return checkpoint_card("ada", record, PROOF, PackStage(base_model="base"), V2, V2.forms[form])


def test_the_card_names_a_hub_base_and_its_commit() -> None:
    text = card()
    assert '\nbase_model: "acme/base"\n' in text
    assert f"9 of 30 weights of `acme/base` at commit `{'1' * 40}` were changed" in text
    of_a_folder = card(base="base", base_revision=None)
    assert "base_model" not in of_a_folder
    assert "9 of 30 weights of `base` were changed" in of_a_folder


def test_the_card_counts_equal_frames_over_all_prompts() -> None:
    assert "| 53 of 66, over 2 prompts; " in card()


def test_the_card_mentions_the_codec_only_if_it_was_copied() -> None:
    copied = "as does that of `acme/codec` to `audio_tokenizer/`"
    assert copied in card()
    assert "\nlibrary_name: transformers\n" in card()
    assert copied not in card("original")
    assert "library_name" not in card("original")


@pytest.mark.parametrize(
    ("revision", "bundle", "is_fetched"),
    [("2" * 40, None, True), ("2" * 40, "a bundle", False), (None, None, False)],
)
def test_a_codec_of_the_hub_is_fetched_by_name_unless_it_is_part_of_a_bundle(
    monkeypatch: pytest.MonkeyPatch, revision: str | None, bundle: Any, is_fetched: bool
) -> None:
    codec = Pretrained("codec", "acme/codec", revision)
    monkeypatch.setattr(merge, "bundle_of", {codec: bundle}.__getitem__)
    text = card(codec_revision=revision)
    assert (
        "The codec is `acme/codec`, which Transformers fetches by the name" in text
    ) == is_fetched
    assert (f"has a copy at commit `{revision}`" in text) == is_fetched
    assert ("The codec is in `audio_tokenizer/`." in text) != is_fetched
