"""Recordings of which the rows say different things: other words, or another speaker."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from higgs_pipe.data.clips.candidates import Clip
from higgs_pipe.data.clips.results import Contradictions
from higgs_pipe.data.text import bare_words

NUM_EXAMPLES = 5
NUM_SHOWN_CHARACTERS = 40


class _Said(NamedTuple):
    """Text and speaker that a row gives to a recording, its own or its reference."""

    pcm_sha256: str
    text: str
    speaker: str | None
    place: str


def find_contradictions(
    targets: Sequence[Clip], references: Sequence[Clip]
) -> dict[str, Contradictions]:
    """Count the recordings with several texts, and those with several speakers.

    Equal samples are one recording. Texts count by their bare words.

    Args:
        targets: Rows of CLIPS.
        references: Rows of CLIPS that the targets name as their references.

    Returns:
        By ``texts`` and ``speakers``; what no recording has is left out.
    """
    by_recording: dict[str, list[_Said]] = defaultdict(list)
    for said in _all_said(targets, references):
        by_recording[said.pcm_sha256].append(said)
    found: dict[str, list[str]] = defaultdict(list)
    for rows in by_recording.values():
        texts = {bare_words(row.text): row for row in reversed(rows)}
        speakers = {row.speaker: row for row in reversed(rows) if row.speaker is not None}
        if len(texts) > 1:
            found["texts"].append(_example([(row.text, row.place) for row in texts.values()]))
        if len(speakers) > 1:
            pairs = [(speaker, row.place) for speaker, row in speakers.items()]
            found["speakers"].append(_example(pairs))
    return {
        kind: Contradictions(num_recordings=len(examples), examples=examples[:NUM_EXAMPLES])
        for kind, examples in sorted(found.items())
    }


def _all_said(targets: Sequence[Clip], references: Sequence[Clip]) -> Iterator[_Said]:
    by_id = {clip["clip_id"]: clip for clip in references}
    for clip in targets:
        place = f"{clip['manifest']}:{clip['line']}"
        yield _Said(clip["pcm_sha256"], clip["text"], clip["speaker"], place)
        if (reference := by_id.get(clip["reference_id"])) is not None:
            yield _Said(reference["pcm_sha256"], reference["text"], clip["speaker"], place)


def _example(said: Sequence[tuple[str, str]]) -> str:
    """Return the first two things that are said of a recording, each with its place."""
    pairs = sorted(said, key=lambda pair: pair[1])[:2]
    return ", ".join(f"{what:.{NUM_SHOWN_CHARACTERS}} ({place})" for what, place in pairs)
