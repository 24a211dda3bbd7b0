"""Parts of texts that may not be spoken as they are written, counted by kind."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.data.clips.candidates import Clip
from higgs_pipe.data.clips.results import TextFinding
from higgs_pipe.data.conversation import ClipId, Conversation
from higgs_pipe.data.specs import REFERENCE

TEXT_COLUMNS = (
    "clip_id", "manifest", "line", "split",
    "text", "scene", "conversation", "reference_id",
)  # fmt: skip
CLIPS_AT_ONCE = 2_000
NUM_EXAMPLES = 5
NUM_EXAMPLE_CHARACTERS = 80

NO_VALUE = r"(?:nan|none|null|n/a|undefined)"
# A text without any of these has no finding; most have none.
SUSPECT = re.compile(
    r"[<>&\[\](){}*\d@\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|://|www\.|[^\x00-\x7f]|^[^a-z]*$|"
    rf"^\s*{NO_VALUE}\s*$",
    re.IGNORECASE,
)
# Joiners belong between letters of scripts such as Arabic and Devanagari.
STRAY_JOINER = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
INVISIBLE = r"\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
# What the bytes 80 to BF of UTF-8 are in Latin-1 or Windows-1252.
MISREAD = r"\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
OPENING, CLOSING = r"(\[{（［【｛", r")\]}）］】｝"
PATTERNS = {
    # HTML and SSML, with HTML's names of characters.
    "tags": re.compile(r"</?[A-Za-z][^<>]*>|<[!?][^<>]*>|&(?:#\d+|#[xX][\da-fA-F]+|[A-Za-z]+);"),
    "urls": re.compile(
        r"\b(?:https?|ftp)://\S|\bwww\.[^\s.]+\.\w|\b[\w.+-]+@[\w-]+\.\w", re.IGNORECASE
    ),
    "emojis": re.compile(
        "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\ufe0f\u20e3\U000e0020-\U000e007f]"
    ),
    "invisible_characters": re.compile(f"[{INVISIBLE}]|{STRAY_JOINER}"),
    "control_characters": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    # Characters lost, or text in UTF-8 that was read as Latin-1: cafÃ©, donâ€™t.
    "wrong_encoding": re.compile(
        rf"[\ufffd\x80-\x84\x86-\x9f]|[ÃÂ][{MISREAD}]|â€|(?:[ÐÑ][{MISREAD}]){{2}}|"
        rf"(?:[ã-é][{MISREAD}]{{2}}){{2}}"
    ),
    # What tables write where there is nothing.
    "no_value": re.compile(rf"^\s*{NO_VALUE}\s*$", re.IGNORECASE),
    "no_letters_or_digits": re.compile(r"^[\W_]*$"),
    "digits": re.compile(r"\d"),
    # Cleaning makes spaces of round ones; the words in any of them are spoken.
    "brackets": re.compile(rf"[{OPENING}][^{CLOSING}]*\w[^{CLOSING}]*[{CLOSING}]|\*[^*]*\w[^*]*\*"),
}
# The model's own marks: who speaks, and sound events.
OWN_MARKS = re.compile(r"\[SPEAKER\d+\]|<(SE(?:_[se])?)>\[[^\[\]]*\]</\1>")


def find_in_texts(clips: pa.Table) -> dict[str, TextFinding]:
    """Count the clips with a text that may not be spoken as written.

    Args:
        clips: The table of CLIPS with their references, TEXT_COLUMNS at least.

    Returns:
        By kind (a key of ``PATTERNS``), the number of rows and the first few texts with their
        places. Kinds without a row are left out.
    """
    is_reference = pc.field("split") == REFERENCE
    referred = clips.filter(is_reference).select(["clip_id", "text"])
    references = dict(zip(*(column.to_pylist() for column in referred.columns), strict=True))
    num_rows: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    batches = clips.filter(~is_reference).to_batches(CLIPS_AT_ONCE)
    for clip in chain.from_iterable(batch.to_pylist() for batch in batches):
        kinds: dict[str, str] = {}
        for text in _texts_of(clip, references):
            if SUSPECT.search(text):
                for kind in _kinds(text):
                    kinds.setdefault(kind, text)
        num_rows.update(kinds.keys())
        for kind, text in kinds.items():
            if len(examples[kind]) < NUM_EXAMPLES:
                place = f"{clip['manifest']}:{clip['line']}"
                examples[kind].append(f"{place}: {text:.{NUM_EXAMPLE_CHARACTERS}}")
    return {
        kind: TextFinding(num_rows=num_rows[kind], examples=examples[kind])
        for kind in PATTERNS
        if kind in num_rows
    }


def _texts_of(clip: Clip, references: Mapping[str, str]) -> Iterator[str]:
    """Yield every text of a clip that reaches a prompt."""
    if clip["conversation"] is None:
        yield clip["text"]
    else:
        for turn in Conversation.from_json(clip["conversation"], ClipId.of).turns:
            yield from turn.texts
    if clip["reference_id"] is not None:
        yield references[clip["reference_id"]]
    if clip["scene"] is not None:
        yield clip["scene"]


def _kinds(text: str) -> list[str]:
    text = OWN_MARKS.sub(" ", text)
    return [kind for kind, pattern in PATTERNS.items() if pattern.search(text)]
