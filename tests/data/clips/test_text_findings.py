"""Counts of text that is not spoken as written."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from higgs_pipe.data.clips.text_findings import PATTERNS, TEXT_COLUMNS, find_in_texts
from higgs_pipe.data.conversation import ClipId, Conversation, Turn
from higgs_pipe.data.specs import CLIPS


def clips_of(*clips: dict[str, Any]) -> pa.Table:
    """A table of clips of one manifest, each on its own line."""
    fields = [CLIPS.schema.field(name) for name in TEXT_COLUMNS]
    rows = [
        {"clip_id": str(line), "manifest": "m.jsonl", "line": line, "split": "train", **clip}
        for line, clip in enumerate(clips)
    ]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def kinds_of(text: str) -> set[str]:
    return set(find_in_texts(clips_of({"text": text})))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Plain words, and a comma.", set()),
        ("Über 'it's' – «so» … 你好。", set()),
        ("<speak>Hello</speak>", {"tags"}),
        ('A <break time="500ms"/> pause', {"tags", "digits"}),
        ("a < b and c > d", set()),
        ("Bread &amp; butter", {"tags"}),
        ("Bread & butter; tea", set()),
        ("See https://example.org now", {"urls"}),
        ("Write to ada@example.org.", {"urls"}),
        ("See WWW.example.org", {"urls"}),
        ("So funny 😂", {"emojis"}),
        ("I ❤️ it", {"emojis"}),
        ("zero\u200bwidth", {"invisible_characters"}),
        ("\ufeffHello", {"invisible_characters"}),
        ("joined\u200dhere", {"invisible_characters"}),
        *((text, {"no_value"}) for text in ("nan", "NULL", " None ", "N/A")),
        ("None.", set()),
        ("bell\x07 and escape", {"control_characters"}),
        ("Tabs\tand\nlines\r\n", set()),
        *((text, {"wrong_encoding"}) for text in ("lost \ufffd letter", "don\x92t", "Â«so\xa0Â»")),
        *(
            (text.encode().decode(wrong), {"wrong_encoding"})
            for text in ("café", "Über", "don’t", "“so”", "привет", "你好")
            for wrong in ("latin-1", "cp1252")
            if (wrong == "latin-1") or text not in ("“so”", "привет")  # not all bytes are there
        ),
        ("„Spaß“ für MANHÃ, NÃO, Ñandú, VOILÂ; café”…", set()),
        ("Раз ÐÑ два, ã 你好，「世界」。", set()),
        ("می\u200cخواهم", set()),  # Persian writes it so
        ("?!...", {"no_letters_or_digits"}),
        ("…", {"no_letters_or_digits"}),
        ("It was 1984.", {"digits"}),
        ("١٩٨٤", {"digits"}),
        ("Well (laughs) yes", {"brackets"}),
        ("[sighs] yes", {"brackets"}),
        ("*sighs* yes", {"brackets"}),
        ("【笑】好", {"brackets"}),
        ("[SPEAKER0] Hello. [SPEAKER1] Hi.", set()),
        ("Ha <SE>[Laughter]</SE>", set()),
        ("Ha <SE>[Laughter]", {"tags", "brackets"}),
        ("2 * 3 * 4", {"digits", "brackets"}),
    ],
)
def test_each_text_has_the_expected_findings(text: str, kinds: set[str]) -> None:
    assert kinds_of(text) == kinds


def test_rows_are_counted_once_with_the_first_texts_and_their_places() -> None:
    clips = [{"text": f"It was {year}.", "scene": "Room 5"} for year in (1, 2, 3)]
    found = find_in_texts(clips_of(*clips, {"text": "No number."}))
    assert list(found) == ["digits"]
    assert found["digits"].num_rows == 3
    assert found["digits"].examples[0] == "m.jsonl:0: It was 1."


@pytest.mark.parametrize("where", ["reference", "scene", "turn"])
def test_every_text_of_a_prompt_is_searched(where: str) -> None:
    link = "See www.example.org"
    own = Turn("assistant", (ClipId("0"),), is_target=True)
    turns: tuple[Turn[ClipId], ...] = (Turn("user", (link,)), own)
    clip = {
        "reference": {"reference_id": "r"},
        "scene": {"scene": link},
        "turn": {"conversation": Conversation(turns).to_json()},
    }[where]
    reference = {"clip_id": "r", "text": link if where == "reference" else "", "split": "reference"}
    found = find_in_texts(clips_of({"text": "Hello.", **clip}, reference))
    assert {kind: finding.num_rows for kind, finding in found.items()} == {"urls": 1}


def test_the_fast_path_misses_no_pattern() -> None:
    examples = ["<b>", "http://a", "ftp://a", "www.a.b", "a@b.c", "☃", "\u00ad", "-", "", "7"]
    for text in [*examples, "\x07", "\x7f", "\ufffd", "Ã©", "null", "{a}", "(a)", "[a]", "*a*"]:
        kinds = {kind for kind, pattern in PATTERNS.items() if pattern.search(text)}
        assert kinds_of(text) == kinds != set()
