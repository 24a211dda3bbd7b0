"""The control tags of Higgs TTS 3."""

import pytest

from higgs_pipe.higgs.v3.tags import TAGS, nearest_tag


def test_the_number_of_tags_equals_the_tag_ids_of_the_tokenizer() -> None:
    ids = set(range(151681, 151727)) - {151724}  # <|chatml|>
    assert len(TAGS) == len(ids)
    assert {"<|emotion:anger|>", "<|sfx:sneeze|>", "<|prosody:long_pause|>"} <= TAGS


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("<|emotion:angry|>", "<|emotion:anger|>"),
        ("<|Emotion:Anger|>", "<|emotion:anger|>"),
        ("<| sfx: cough |>", "<|sfx:cough|>"),
        ("<|laughter|>", "<|sfx:laughter|>"),
        ("<|sfx:whisper|>", "<|style:whispering|>"),
        ("<|prosody:slow|>", "<|prosody:speed_slow|>"),
        ("<|pause|>", "<|prosody:pause|>"),
        ("<|prosody:long pause|>", "<|prosody:long_pause|>"),
        ("[laugh]", "<|sfx:laughter|>"),
        ("<SE>[Cough]</SE>", "<|sfx:cough|>"),
        ("[sing start]", "<|style:singing|>"),
    ],
)
def test_the_nearest_tag_is_the_one_that_was_meant(written: str, meant: str) -> None:
    assert nearest_tag(written) == meant


@pytest.mark.parametrize("written", ["", "<||>", "<|:|>", "<|?|>", "😀", "<|emotion:|>"])
def test_any_text_has_a_nearest_tag(written: str) -> None:
    assert nearest_tag(written) in TAGS
