"""Rows that passed their own checks, as clips."""

from pathlib import Path

import pytest

from higgs_pipe.data.clips.candidates import clip_of
from higgs_pipe.data.manifests.row import Row


def row(text: str) -> Row:
    return Row(
        manifest="m.jsonl",
        line=1,
        clip_id="a",
        audio="a.wav",
        audio_path=Path("/x/a.wav"),
        text=text,
        speaker=None,
        language="en",
        scene=None,
        ref_audio_path=None,
        ref_text=None,
        split=None,
    )


@pytest.mark.parametrize(
    ("transcript", "is_transcript", "rate"),
    [
        ("One two.", False, 0.5),  # two of the four words of the text are missing
        ("One two three four five six.", False, 0.5),
        (None, False, None),
        ("One two three four.", True, None),
    ],
)
def test_the_errors_of_a_transcript_are_counted_per_word_of_the_text(
    transcript: str | None, is_transcript: bool, rate: float | None
) -> None:
    recording = {"transcript": transcript, "duration_seconds": 2.0}
    clip = clip_of(row("One two three four."), recording, is_transcript)
    assert clip.word_error_rate == rate
    assert clip.text_source == ("transcript" if is_transcript else "manifest")
    assert (clip["words_per_second"], clip["fits_language"]) == (2.0, True)
