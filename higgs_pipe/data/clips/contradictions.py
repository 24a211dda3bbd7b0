"""Recordings of which the rows say different things: other words, or another speaker."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import NamedTuple

from higgs_pipe.data.clips.candidates import Clip
from higgs_pipe.data.clips.keys import may_repeat
from higgs_pipe.data.clips.results import Contradictions
from higgs_pipe.data.text import bare_words

SAID_COLUMNS = ("clip_id", "pcm_sha256", "text", "speaker", "reference_id", "manifest", "line")
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
        targets: Rows of CLIPS, SAID_COLUMNS at least; read twice.
        references: Rows of CLIPS that the targets name as their references.

    Returns:
        By ``texts`` and ``speakers``; what no recording has is left out.
    """
    is_repeated = may_repeat(said.pcm_sha256 for said in _all_said(targets, references))
    texts: dict[str, dict[str, _Said]] = defaultdict(dict)
    speakers: dict[str, dict[str, _Said]] = defaultdict(dict)
    for said in compress(_all_said(targets, references), is_repeated):
        texts[said.pcm_sha256].setdefault(bare_words(said.text), said)
        if said.speaker is not None:
            speakers[said.pcm_sha256].setdefault(said.speaker, said)
    found = {
        "speakers": [
            _example([(speaker, said.place) for speaker, said in by_speaker.items()])
            for by_speaker in speakers.values()
            if len(by_speaker) > 1
        ],
        "texts": [
            _example([(said.text, said.place) for said in by_text.values()])
            for by_text in texts.values()
            if len(by_text) > 1
        ],
    }
    return {
        kind: Contradictions(num_recordings=len(examples), examples=examples[:NUM_EXAMPLES])
        for kind, examples in found.items()
        if examples
    }


def _all_said(targets: Iterable[Clip], references: Iterable[Clip]) -> Iterator[_Said]:
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
