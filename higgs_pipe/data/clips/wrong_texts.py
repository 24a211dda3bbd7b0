"""Check of a whole corpus for texts that are not transcripts of its recordings."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from higgs_pipe.data.clips.candidates import Clip
from higgs_pipe.data.clips.drafts import Drafts
from higgs_pipe.data.clips.keys import numbered, numbers_of, words_of
from higgs_pipe.data.manifests.row_table import StoredRows
from higgs_pipe.data.quality import SPACELESS_SCRIPTS
from higgs_pipe.data.table_rows import TableRows
from higgs_pipe.errors import UserError, list_offenders

COLUMNS = (
    "speaker", "text", "pcm_sha256",
    "script", "duration_seconds", "characters_per_second",
)  # fmt: skip
SHOWN_COLUMNS = ("manifest", "line", "clip_id", "text")

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


def check_texts(accepted: Drafts, rows: StoredRows) -> None:
    """Stop where the texts look like another column of the manifest.

    Args:
        accepted: The sound rows; conversations are not looked at.
        rows: The rows of all manifests, for what they call their recordings.

    Raises:
        UserError: Few texts over many clips or few recordings with many texts, texts that are names
            or numbers of speakers, texts that all begin with an instruction, or texts far too short
            for most recordings; shows the rows.
    """
    plain = _plain(accepted, COLUMNS)
    fact = (
        _few_texts(plain)
        or _few_recordings(plain)
        or _names(plain)
        or _instruction(plain)
        or _short_texts(plain)
    )
    if fact:
        audio = {row.clip_id: row.audio for row in rows}
        shown = [
            f"{clip['manifest']}:{clip['line']}: {audio[clip['clip_id']]}: {clip['text']!r:.80}"
            for clip in _plain(accepted, SHOWN_COLUMNS)
        ]
        raise UserError(
            f"the texts do not look like transcripts of the recordings: {fact}:\n"
            f"{list_offenders(shown)}\n"
            "Name the field or column with the text in the manifest's `columns`, and run again. If "
            "these texts are right, set validate.check_texts to false."
        )


def _plain(accepted: Drafts, columns: Sequence[str]) -> TableRows:
    """Return some columns of the clips without a conversation."""
    is_plain = accepted.column("conversation").is_null()
    table = accepted.table(columns)
    return TableRows(table if pc.all(is_plain).as_py() else table.filter(is_plain))


def _few_texts(plain: TableRows) -> str | None:
    """Return how many texts there are, if each speaker says the same few again and again."""
    num_texts = len(plain.table["text"].unique())
    if len(plain) < MIN_CLIPS or CLIPS_PER_TEXT * num_texts > len(plain):
        return None
    said = {(clip["speaker"], clip["text"]) for clip in plain}
    speakers = {speaker for speaker, _ in said}
    # Many speakers may read the same texts; sentences as speakers are columns in another order.
    is_swapped = 2 * sum(" " in (speaker or "").strip() for speaker in speakers) > len(plain)
    is_repeated = CLIPS_PER_TEXT * len(said) <= len(plain)
    if is_repeated or is_swapped:
        return f"{num_texts:,} different texts in {len(plain):,} clips"
    return None


def _few_recordings(plain: TableRows) -> str | None:
    """Return how many recordings there are, if most rows share theirs with another text."""
    recordings = numbers_of(numbered(plain.table["pcm_sha256"]))
    is_repeated = np.bincount(recordings, minlength=1)[recordings] > 1
    if len(plain) < MIN_CLIPS_OF_NAMES or 2 * np.count_nonzero(is_repeated) <= len(plain):
        return None
    words = numbers_of(numbered(words_of(plain.table["text"])))
    said = np.unique(np.stack([recordings, words]), axis=1)  # (2, pairs)
    num_shared = np.count_nonzero(np.bincount(said[0])[recordings] > 1)
    if 2 * num_shared > len(plain):
        return f"{recordings.max() + 1:,} different recordings with {len(plain):,} texts"
    return None


def _names(plain: Sequence[Clip]) -> str | None:
    """Return what the texts are instead, if they are names or numbers of a few speakers."""
    if len(plain) < MIN_CLIPS_OF_NAMES:
        return None
    if all(clip["text"].strip() == clip["speaker"] for clip in plain):
        return "each text is the row's speaker"
    is_number = all(text.isdigit() for text in _texts(plain))
    if not is_number and not all(map(NAME.fullmatch, _texts(plain))):
        return None
    num_texts = len(set(_texts(plain)))
    if 2 * num_texts > len(plain):
        return None
    if is_number:
        return f"all texts are numbers, {num_texts:,} different ones in {len(plain):,} clips"
    return f"all texts are single words, {num_texts:,} in {len(plain):,} clips"


def _instruction(plain: Sequence[Clip]) -> str | None:
    """Return the words that all texts begin with, if they end with a colon as an instruction."""
    if len(plain) < MIN_CLIPS_OF_NAMES:
        return None
    begin = INSTRUCTION.match(next(_texts(plain)))
    if begin and all(text.startswith(begin.group()) for text in _texts(plain)):
        return f"all texts begin with {begin.group().strip()!r:.80}, which is not spoken"
    return None


def _texts(plain: Sequence[Clip]) -> Iterator[str]:
    return (clip["text"].strip() for clip in plain)


def _short_texts(plain: Sequence[Clip]) -> str | None:
    """Return how many texts are far too short, if most are."""
    num_short = sum(map(_is_short, plain))
    if len(plain) >= MIN_CLIPS_OF_NAMES and 2 * num_short > len(plain):
        return f"{num_short:,} of {len(plain):,} texts are far too short for their recordings"
    return None


def _is_short(clip: Clip) -> bool:
    is_unspaced = clip["script"] in SPACELESS_SCRIPTS
    limit = MIN_UNSPACED_CHARACTERS_PER_SECOND if is_unspaced else MIN_CHARACTERS_PER_SECOND
    is_long = clip["duration_seconds"] >= MIN_SECONDS
    return bool(is_long and clip["characters_per_second"] < limit)
