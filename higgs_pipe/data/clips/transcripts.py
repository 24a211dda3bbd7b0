"""Check of a whole corpus for texts that are not transcripts of its recordings."""

import re
from collections import defaultdict
from collections.abc import Sequence

from higgs_pipe.data.clips.candidates import Candidate
from higgs_pipe.data.quality import SPACELESS_SCRIPTS
from higgs_pipe.data.text import bare_words
from higgs_pipe.errors import UserError, list_offenders

# Fewer clips than these show too little to stop a run.
MIN_CLIPS = 12
MIN_CLIPS_OF_NAMES = 4
CLIPS_PER_TEXT = 4  # of a corpus that says the same few things
# Slow speech has 6 characters per second, or 2 where a character is a word.
MIN_CHARACTERS_PER_SECOND = 1.2
MIN_UNSPACED_CHARACTERS_PER_SECOND = 0.4
MIN_SECONDS = 1.0  # a shorter clip may be a word with its pauses

INSTRUCTION = re.compile(r"\S+\s+\S[^:：]*[:：]\s*(?=\S)")  # words with a colon before the text
NAME = re.compile(r"[\w@.-]*[\w@]")  # one word without the signs of a sentence


def check_texts(candidates: Sequence[Candidate]) -> None:
    """Stop where the texts look like another column of the manifest.

    Args:
        candidates: The sound rows; conversations are not looked at.

    Raises:
        UserError: Few texts over many clips or few recordings with many texts, texts that are names
            or numbers of speakers, texts that all begin with an instruction, or texts far too short
            for most recordings; shows the rows.
    """
    plain = [candidate for candidate in candidates if candidate.row.conversation is None]
    fact = (
        _few_texts(plain)
        or _few_recordings(plain)
        or _names(plain)
        or _instruction(plain)
        or _short_texts(plain)
    )
    if fact:
        rows = [f"{c.row.place}: {c.row.audio}: {c.row.text!r:.80}" for c in plain]
        raise UserError(
            f"the texts do not look like transcripts of the recordings: {fact}:\n"
            f"{list_offenders(rows)}\n"
            "Name the field or column with the text in the manifest's `columns`, and run again. If "
            "these texts are right, set validate.check_texts to false."
        )


def _few_texts(plain: Sequence[Candidate]) -> str | None:
    """Return how many texts there are, if each speaker says the same few again and again."""
    said = {(c.row.speaker, c.row.text) for c in plain}
    texts, speakers = {text for _, text in said}, {speaker for speaker, _ in said}
    is_few = len(plain) >= MIN_CLIPS and CLIPS_PER_TEXT * len(texts) <= len(plain)
    # Many speakers may read the same texts; sentences as speakers are columns in another order.
    is_swapped = 2 * sum(" " in (speaker or "").strip() for speaker in speakers) > len(plain)
    is_repeated = CLIPS_PER_TEXT * len(said) <= len(plain)
    if is_few and (is_repeated or is_swapped):
        return f"{len(texts):,} different texts in {len(plain):,} clips"
    return None


def _few_recordings(plain: Sequence[Candidate]) -> str | None:
    """Return how many recordings there are, if most rows share theirs with another text."""
    texts: dict[str, set[str]] = defaultdict(set)
    for c in plain:
        texts[c.clip["pcm_sha256"]].add(bare_words(c.row.text))
    num_shared = sum(len(texts[c.clip["pcm_sha256"]]) > 1 for c in plain)
    if len(plain) >= MIN_CLIPS_OF_NAMES and 2 * num_shared > len(plain):
        return f"{len(texts):,} different recordings with {len(plain):,} texts"
    return None


def _names(plain: Sequence[Candidate]) -> str | None:
    """Return what the texts are instead, if they are names or numbers of a few speakers."""
    texts = [c.row.text.strip() for c in plain]
    if len(texts) < MIN_CLIPS_OF_NAMES:
        return None
    is_few = 2 * len(set(texts)) <= len(texts)
    if all(text == c.row.speaker for text, c in zip(texts, plain, strict=True)):
        return "each text is the row's speaker"
    if is_few and all(text.isdigit() for text in texts):
        return f"all texts are numbers, {len(set(texts)):,} different ones in {len(texts):,} clips"
    if is_few and all(map(NAME.fullmatch, texts)):
        return f"all texts are single words, {len(set(texts)):,} in {len(texts):,} clips"
    return None


def _instruction(plain: Sequence[Candidate]) -> str | None:
    """Return the words that all texts begin with, if they end with a colon as an instruction."""
    texts = [c.row.text.strip() for c in plain]
    begin = INSTRUCTION.match(texts[0]) if len(texts) >= MIN_CLIPS_OF_NAMES else None
    if begin and all(text.startswith(begin.group()) for text in texts):
        return f"all texts begin with {begin.group().strip()!r:.80}, which is not spoken"
    return None


def _short_texts(plain: Sequence[Candidate]) -> str | None:
    """Return how many texts are far too short, if most are."""
    short = [c for c in plain if _is_short(c)]
    if len(plain) >= MIN_CLIPS_OF_NAMES and 2 * len(short) > len(plain):
        return f"{len(short):,} of {len(plain):,} texts are far too short for their recordings"
    return None


def _is_short(candidate: Candidate) -> bool:
    clip = candidate.clip
    is_unspaced = clip["script"] in SPACELESS_SCRIPTS
    limit = MIN_UNSPACED_CHARACTERS_PER_SECOND if is_unspaced else MIN_CHARACTERS_PER_SECOND
    is_long = clip["duration_seconds"] >= MIN_SECONDS
    return bool(is_long and clip["characters_per_second"] < limit)
