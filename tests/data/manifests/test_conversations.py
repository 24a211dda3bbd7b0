"""Boson's ChatML: samples that become rows, samples that stay conversations, and every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, has_line_with
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.conversation import Conversation, Turn
from higgs_pipe.data.manifests.checking import checked_row
from higgs_pipe.data.manifests.fields import RowFault
from higgs_pipe.data.manifests.formats import chatml, samples
from higgs_pipe.data.manifests.formats.chatml import read_chatml
from higgs_pipe.data.manifests.formats.samples import read_ref_speakers
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.source import RawRow
from higgs_pipe.data.spans import Span
from higgs_pipe.errors import UserError

MANIFESTS = ROOT / "examples" / "manifests"
REQUEST = "Please generate speech for given text in reference audio's voice: "
USUAL = "Generate audio following instruction."

Fields = dict[str, Any]


def text(words: str) -> Fields:
    return {"type": "text", "text": words}


def audio(path: str, **others: Any) -> Fields:
    return {"type": "audio", "audio_url": path, **others}


def system(content: Any) -> Fields:
    return {"role": "system", "content": content}


def user(*content: Any) -> Fields:
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


def assistant(*content: Any) -> Fields:
    return {"role": "assistant", "content": content[0] if len(content) == 1 else list(content)}


def cloning(*content: Any) -> list[Fields]:
    return [user(*content), assistant(text("Target."), audio("t.wav"))]


def row_of(messages: list[Fields], **others: Any) -> Fields:
    """The fields of the row that a sample becomes, without those it does not have."""
    fields, conversation = read_chatml({"messages": messages, **others})
    assert conversation is None
    return {key: value for key, value in fields.items() if value is not None}


def turns_of(messages: list[Fields], **others: Any) -> tuple[Turn[Span], ...]:
    _, conversation = read_chatml({"messages": messages, **others})
    assert conversation is not None
    return conversation.turns


def fault_of(messages: Any, **others: Any) -> str:
    with pytest.raises(RowFault) as caught:
        read_chatml({"messages": messages, **others})
    return str(caught.value)


def said(words: str) -> Turn:
    return Turn("user", (words,))


def heard(path: str, is_target: bool = False) -> Turn:
    return Turn("assistant", (Span(str(Path(path))),), is_target)


# --- Rows ----------------------------------------------------------------------------------------


PLAIN = {"audio": "t.wav", "text": "Target."}
CLONED = {**PLAIN, "ref_audio": "r.wav", "ref_text": "Reference."}


@pytest.mark.parametrize(
    "content",
    [
        (text("Reference."), audio("r.wav"), text(REQUEST + "Target.")),
        (audio("r.wav"), text("Reference."), text(REQUEST + "Target.")),
        (text(REQUEST + "Target."), audio("r.wav"), text("Reference.")),
        (audio("r.wav"), text(f"Reference.\n{REQUEST}Target.")),
        (text("Reference."), audio("r.wav"), text(REQUEST), text("Target.")),
        ("Reference.", audio("r.wav", raw_audio="", duration=None, offset=None), REQUEST.upper()),
    ],
)
def test_a_cloning_sample_becomes_a_row_in_any_order_of_its_parts(content: tuple[Any, ...]) -> None:
    messages = [system("You can speak in the voice of a reference."), *cloning(*content)]
    assert row_of(messages) == row_of(messages, start_index=0) == CLONED


def test_the_target_text_keeps_colons_and_newlines() -> None:
    target = "Note: at 10:30, he said: “Go!”\nThen: silence."
    content = (text("Reference: one."), audio("r.wav"), text(REQUEST + target))
    row = row_of([user(*content), assistant(audio("t.wav"))])
    assert (row["text"], row["ref_text"]) == (target, "Reference: one.")


def test_a_request_phrase_inside_the_target_text_belongs_to_the_text() -> None:
    messages = cloning(audio("r.wav"), text(f"Reference. {REQUEST}{REQUEST}Target."))
    assert row_of(messages) == CLONED
    messages[1] = assistant(audio("t.wav"))
    assert row_of(messages)["text"] == f"{REQUEST}Target."


def test_a_reference_may_have_the_words_of_the_target() -> None:
    messages = cloning(text("Target."), audio("r.wav"), text(f"{REQUEST}Target."))
    assert row_of(messages) == {**CLONED, "ref_text": "Target."}


def test_the_reference_transcript_may_be_only_in_misc() -> None:
    messages = cloning(audio("r.wav"), text(REQUEST + "Target."))
    assert row_of(messages, misc={"ref_transcript": "Reference."}) == CLONED


# The forms in which public trainers write a reference; {"r.wav": "Reference."} before "Target.".
REFERENCE_FORMS: dict[str, tuple[list[Fields], Fields]] = {
    "one turn": ([user(text("Reference."), audio("r.wav"), text("Target."))], {}),
    "recording first": ([user(audio("r.wav"), text("Reference."), text("Target."))], {}),
    "two turns": ([user(text("Reference."), audio("r.wav")), user("Target.")], {}),
    "three turns": ([user("Reference."), user(audio("r.wav")), user("Target.")], {}),
    "words in misc": (
        [user("Target.", audio("r.wav"))],
        {"misc": {"ref_transcript": "Reference."}},
    ),
    "words in metadata": (
        [user(audio("r.wav"), "Target.")],
        {"metadata": {"ref_transcript": "Reference.", "target_transcript": "Target."}},
    ),
    "target in misc, and before the words": (
        [user(text("Target."), text("Reference."), audio("r.wav"))],
        {"misc": {"target_text": "Target."}},
    ),
    "recording in the system message": (
        [system([text(USUAL), audio("r.wav")]), user("Target.")],
        {"misc": {"ref_transcript": "Reference."}},
    ),
}


@pytest.mark.parametrize("form", REFERENCE_FORMS)
@pytest.mark.parametrize("answer", [[audio("t.wav")], [text("Target."), audio("t.wav")]])
def test_a_reference_in_any_published_form_becomes_that_of_the_row(
    form: str, answer: list[Any]
) -> None:
    messages, others = REFERENCE_FORMS[form]
    assert row_of([*messages, assistant(*answer)], **others) == CLONED


def test_a_turn_with_a_recording_that_is_answered_by_text_stays_as_it_is() -> None:
    asked = user(text("Words."), audio("r.wav"), text("Say it."))
    turns = turns_of([asked, assistant("Fine."), user("Target."), assistant(audio("t.wav"))])
    assert turns[0].parts == ("Words.", Span("r.wav"), "Say it.")
    assert turns[1] == Turn("assistant", ("Fine.",))


def test_the_target_text_may_be_in_the_answer_only() -> None:
    messages = [user(text("Reference."), audio("r.wav"))]
    messages.append(assistant(text("Target."), audio("t.wav")))
    assert row_of(messages) == CLONED


def test_a_target_text_spelled_differently_in_the_answer_wins() -> None:
    messages = [user(text("Reference."), audio("r.wav"), text("target"))]
    messages.append(assistant(text("Target."), audio("t.wav")))
    assert row_of(messages) == CLONED


def test_a_null_part_is_ignored() -> None:
    assert row_of([user("T."), assistant(None, audio("t.wav"))]) == row_of(OK)


def test_several_references_in_one_turn_become_separate_turns() -> None:
    parts = [text("[SPEAKER0] A."), audio("a.wav"), text("[SPEAKER1] B."), audio("b.wav")]
    target = "[SPEAKER0] Who? [SPEAKER1] Me."
    turns = turns_of([user(*parts, text(target)), assistant(audio("t.wav"))])
    assert turns == (
        *(said("[SPEAKER0] A."), heard("a.wav"), said("[SPEAKER1] B."), heard("b.wav")),
        *(said(target), heard("t.wav", is_target=True)),
    )


@pytest.mark.parametrize(
    "messages",
    [
        [user(text("Either."), audio("r.wav")), assistant(audio("t.wav"))],
        [user(text("A."), audio("r.wav"), audio("q.wav")), assistant(audio("t.wav"))],
        [system([text("S."), audio("r.wav")]), *[user("T."), assistant(audio("t.wav"))]],
        cloning(audio("r.wav"), text("Target.")),  # no words of the reference
    ],
)
def test_ambiguous_user_turns_are_kept_for_validate_to_reject(
    messages: list[Fields],
) -> None:
    assert any(turn.recordings for turn in turns_of(messages) if turn.role != "assistant")


def test_the_audio_file_is_preferred_over_base64_audio() -> None:
    answer = assistant({"type": "audio", "audio_url": "t.wav", "raw_audio": "UklGRg=="})
    assert row_of([user("Target."), answer]) == PLAIN


@pytest.mark.parametrize(
    "messages",
    [
        [user("Target."), assistant(audio("t.wav"))],
        [system(""), user("Target."), assistant([audio("t.wav")])],
        [system(USUAL), user([text("Target.")]), assistant(text(" Target. "), audio("t.wav"))],
    ],
)
def test_a_text_and_its_recording_are_a_row(messages: list[Fields]) -> None:
    assert row_of(messages) == PLAIN


def test_a_scene_in_the_system_message_becomes_the_scene_of_the_row() -> None:
    wrapped = f"{USUAL}\n\n<|scene_desc_start|>\nA hall.\n\nSPEAKER0: old\n<|scene_desc_end|>"
    plain = [user("Target."), assistant(audio("t.wav"))]
    assert row_of([system(wrapped), *plain]) == {**PLAIN, "scene": "A hall.\n\nSPEAKER0: old"}
    scene = {"role": "scene", "content": [text("A hall.")]}
    assert row_of([system(USUAL), scene, *plain]) == {**PLAIN, "scene": "A hall."}


def test_a_reference_turn_before_the_target_becomes_the_reference_of_the_row() -> None:
    messages = [user("Reference."), assistant(audio("r.wav"))]
    messages += [user("Target."), assistant(audio("t.wav"))]
    assert row_of(messages) == row_of(messages, start_index=3) == CLONED
    assert row_of([system(USUAL), *messages], start_index=4) == CLONED


def test_a_target_may_be_a_segment_of_its_recording() -> None:
    recording = audio("t.wav", offset=1.1, duration=2.2)
    row = row_of([user("Target."), assistant(recording)])
    assert row == {**PLAIN, "start_seconds": 1.1, "end_seconds": 3.3}
    start = audio("t.wav", offset=0, duration=2)
    assert row_of([user("Target."), assistant(start)])["end_seconds"] == 2
    whole = audio("t.wav", offset=None, duration=2.2)
    assert row_of([user("Target."), assistant(whole)]) == PLAIN


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (Path("/far/a b.wav").as_uri(), "/far/a b.wav"),
        ("file:/far/a.wav", "/far/a.wav"),
        ("/far/a.wav", "/far/a.wav"),
        ("w/a.wav", "w/a.wav"),
    ],
)
def test_a_recording_is_a_path_or_a_file_url(url: str, path: str) -> None:
    assert row_of([user("T."), assistant(audio(url))])["audio"] == path


# --- Conversations -------------------------------------------------------------------------------


def test_all_turns_are_kept_and_the_last_assistant_turn_is_the_target() -> None:
    messages = [system("Be brief."), user("One?"), assistant(audio("1.wav"))]
    messages += [user("Two?"), assistant(audio("2.wav")), user("Three?"), assistant(audio("3.wav"))]
    expected: list[Turn] = [Turn("system", ("Be brief.",)), said("One?"), heard("1.wav")]
    expected += [said("Two?"), heard("2.wav"), said("Three?"), heard("3.wav", is_target=True)]
    assert turns_of(messages) == tuple(expected)
    fields, _ = read_chatml({"messages": messages})
    assert (fields["audio"], fields["text"]) == ("3.wav", "Three?")


@pytest.mark.parametrize(
    ("start_index", "targets"), [(0, [1, 3]), (2, [3]), (3, [3]), (None, [3]), (2.0, [3])]
)
def test_targets_begin_at_start_index(start_index: float | None, targets: list[int]) -> None:
    messages = [user("[SPEAKER0] A."), assistant(audio("a.wav"))]
    messages += [user("[SPEAKER1] B."), assistant(audio("b.wav"))]
    turns = turns_of(messages, start_index=start_index)
    assert [index for index, turn in enumerate(turns) if turn.is_target] == targets


def test_a_reference_that_is_also_a_target_stays_a_turn() -> None:
    messages = [user("A."), assistant(audio("a.wav")), user("B."), assistant(audio("b.wav"))]
    assert [turn.is_target for turn in turns_of(messages, start_index=1)] == [False, True] * 2


def test_a_custom_system_message_keeps_the_turns_and_its_scene() -> None:
    wrapped = "Whisper.\n\n<|scene_desc_start|>\nA hall.\n<|scene_desc_end|>"
    turns = turns_of([system(wrapped), user("Target."), assistant(audio("t.wav"))])
    expected: list[Turn] = [Turn("system", ("Whisper.",)), Turn("scene", ("A hall.",))]
    assert turns == (*expected, said("Target."), heard("t.wav", is_target=True))


def test_an_answer_with_other_words_than_the_request_stays_a_conversation() -> None:
    turns = turns_of([user("A joke?"), assistant(text("Knock, knock."), audio("t.wav"))])
    assert turns[1].parts == ("Knock, knock.", Span("t.wav"))
    fields, _ = read_chatml({"messages": [user("A joke?"), assistant("Ha.", audio("t.wav"))]})
    assert fields["text"] == "Ha."


def test_a_reference_segment_stays_a_turn() -> None:
    part = audio("r.wav", offset=2, duration=3)
    turns = turns_of(cloning(text("Reference."), part, text(REQUEST + "Target.")))
    reference = Span("r.wav", 2.0, 5.0)
    middle = Turn("assistant", (reference,))
    assert turns == (said("Reference."), middle, said("Target."), heard("t.wav", is_target=True))


def test_adjacent_texts_become_one_part() -> None:
    turns = turns_of([system("Sing."), user(text("La. "), "La."), assistant(audio("t.wav"))])
    assert turns[1] == said("La. La.")


def test_two_texts_before_a_reference_are_split_only_with_a_transcript() -> None:
    asked = user(text("Target."), text("Reference."), audio("r.wav"))
    (turn, _) = turns_of([asked, assistant(audio("t.wav"))])
    assert turn.recordings == (Span("r.wav"),)  # conversation_layout, in validate
    row = row_of([asked, assistant(audio("t.wav"))], misc={"ref_transcript": "Reference."})
    assert (row["text"], row["ref_text"]) == ("Target.", "Reference.")


def test_a_reference_transcript_is_removed_from_the_system_message() -> None:
    head = {"role": "system", "content": [text("Reference."), audio("r.wav")]}
    messages = [head, user("Target."), assistant(audio("t.wav"))]
    row = row_of(messages, misc={"ref_transcript": "Reference."})
    assert (row["text"], row["ref_text"], row["ref_audio"]) == ("Target.", "Reference.", "r.wav")


# --- Faults --------------------------------------------------------------------------------------


OK = [user("T."), assistant(audio("t.wav"))]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("messages", "others", "tokens"),
    [
        (None, {}, ("`messages`",)),
        ([], {}, ("`messages`",)),
        ({"role": "user"}, {}, ("`messages`",)),
        (["hello"], {}, ("`messages[0]`", "`role`", "`content`")),
        ([*OK, {"role": "user"}], {}, ("`messages[2]`", "`role`")),
        ([{"role": "tool", "content": ""}], {}, ("`messages[0]`",)),
        ([user(7), OK[1]], {}, ("`messages[0]`",)),
        ([user([[text("T.")]]), OK[1]], {}, ("`messages[0]`",)),
        ([user({"type": "image"}), OK[1]], {}, ("`messages[0]`", '"type"', '"text"')),
        ([user(text(None)), OK[1]], {}, ("`messages[0]`",)),  # type: ignore[arg-type]
        ([{**OK[0], "recipient": "tool"}, OK[1]], {}, ("`messages[0]`", "`recipient`")),
        ([user("T.")], {}, ("`messages[0]`",)),
        (OK, {"start_index": 2}, ("`messages[2]`",)),
        (OK, {"start_index": -1}, ("`start_index`",)),
        (OK, {"start_index": True}, ("`start_index`",)),
        (OK, {"start_index": "1"}, ("`start_index`",)),
        (OK, {"start_index": 10**400}, ("`start_index`",)),
        (OK, {"start_index": nested(100_000)}, ("`start_index`", "nested")),
        ([user("T."), assistant("T.")], {}, ("`start_index`",)),
        ([*OK, user("Why?"), assistant("So.")], {}, ("`start_index`",)),
        ([*OK, system("Be brief.")], {}, ("system", "scene")),
        ([{"role": "scene", "content": "A hall."}, system("Sing."), *OK], {}, ("system", "scene")),
        (cloning(text(REQUEST + "T.")), {}, ("reference",)),
        ([user("T."), assistant(audio("https://a.b/t.wav"))], {}, ("https://a.b/t.wav",)),
        ([user("T."), assistant(audio("s3://a/t.wav"))], {}, ("s3://a/t.wav",)),
        ([user("T."), assistant(audio("data:audio/wav;base64,UklG"))], {}, ("base64",)),
        ([user("T."), assistant(audio("", raw_audio="UklG"))], {}, ("base64",)),
        ([user("T."), assistant({"type": "input_audio"})], {}, ("base64",)),
        ([user("T."), assistant({"type": "audio"})], {}, ("`audio_url`",)),
        ([user("T."), assistant(audio("file:a.wav"))], {}, ("file:a.wav",)),
        ([user("T."), assistant(audio("t.wav", offset="1"))], {}, ("`offset`",)),
        ([user("T."), assistant(audio("t.wav", offset=1, duration=0))], {}, ("`duration`",)),
    ],
)
def test_a_fault_in_a_sample_is_named(
    messages: Any, others: Fields, tokens: tuple[str, ...]
) -> None:
    message = fault_of(messages, **others)
    assert has_line_with(message, *tokens)
    message.encode()


def write(folder: Path, name: str, content: str) -> ManifestEntry:
    (folder / name).write_text(content, encoding="utf-8")
    return ManifestEntry(path=str(folder / name))


def message_of(entry: ManifestEntry) -> str:
    with pytest.raises(UserError) as caught:
        read_manifests([entry])
    return str(caught.value)


def test_a_fault_in_a_json_array_has_the_number_of_its_sample(tmp_path: Path) -> None:
    samples: list[Any] = [{"messages": OK}, {"messages": [], "id": "b"}, 7]
    message = message_of(write(tmp_path, "m.json", json.dumps(samples, indent=1)))
    assert f"{tmp_path}/m.json:2: expected `messages`" in message
    assert f"{tmp_path}/m.json:3: expected a JSON object as sample 3" in message


def test_a_fault_in_json_lines_has_its_line(tmp_path: Path) -> None:
    lines = [{"messages": OK}, {"messages": OK[:1]}, {"messages": OK, "scene": "A hall."}]
    lines += [{"messages": [*OK, user("\ud83d"), *OK], "id": "d"}]
    lines += [{"messages": [*OK, user("A" * 100_001), *OK], "id": "e"}]
    message = message_of(write(tmp_path, "m.jsonl", "".join(f"{json.dumps(x)}\n" for x in lines)))
    assert f"{tmp_path}/m.jsonl:2: no message of the assistant" in message
    assert f"{tmp_path}/m.jsonl:3: 'scene' cannot be given with `messages`" in message
    assert has_line_with(message, "m.jsonl:4", "turn 3", "'\\ud83d'")
    assert has_line_with(message, "m.jsonl:5", "turn 3", "100,000")


@pytest.mark.parametrize("content", ["[", "[7", '[{"messages": []}', "[" * 100_000])
def test_a_malformed_json_array_is_a_fault(tmp_path: Path, content: str) -> None:
    entry = write(tmp_path, "m.json", content)
    assert "m.json" in message_of(entry.model_copy(update={"format": "boson-chatml"}))


# --- Manifests -----------------------------------------------------------------------------------


def rows_of(folder: Path, *samples: Fields) -> tuple[Row, ...]:
    return tuple(read_manifests([write(folder, "m.json", json.dumps(samples))]).rows)


def test_a_sample_becomes_a_row_with_place_ids_and_absolute_paths(tmp_path: Path) -> None:
    messages = [system("Sing."), user("T."), assistant(audio("w/t.wav"))]
    first, second = rows_of(
        tmp_path,
        {"messages": OK, "speaker": "ada", "language": "en", "split": "eval", "extra": 1},
        {"messages": messages, "id": "x", "misc": {"speaker": "ben", "sample_id": "s1"}},
    )
    assert (first.clip_id, first.line, first.speaker, first.split) == ("t", 1, "ada", "eval")
    assert first.conversation is None
    assert (second.clip_id, second.line, second.speaker) == ("x", 2, "ben")
    assert second.conversation is not None
    assert second.conversation.turns[-1].parts == (Span(str(tmp_path / "w" / "t.wav")),)
    assert second.audio_path == tmp_path / "w" / "t.wav"


def test_the_declared_length_is_that_of_the_last_target(tmp_path: Path) -> None:
    answer = assistant(audio("t.wav", duration=2.13, offset=None, raw_audio=""))
    details = {"duration": 9.0, "sample_rate": 24_000}
    first, second = rows_of(
        tmp_path,
        {"messages": [user("T."), answer], "id": "a", "misc": details},
        {"messages": OK, "id": "b", "metadata": details},
    )
    assert (first.declared_seconds, second.declared_seconds) == (2.13, 9.0)
    assert first.declared_sample_rate_hz is None


def test_a_length_is_declared_by_the_last_part_of_the_whole_target(tmp_path: Path) -> None:
    said = [user("A."), assistant(audio("t.wav", duration=1)), user("B.")]
    said += [
        assistant(audio("t.wav", duration=2)),
        user("C."),
        assistant(audio("u.wav", duration=3)),
    ]
    cut = [user("T."), assistant(audio("t.wav", offset=1, duration=2))]
    first, second = rows_of(tmp_path, {"messages": said, "id": "a"}, {"messages": cut, "id": "b"})
    assert (first.declared_seconds, second.declared_seconds) == (3, None)
    declared = chatml._declared({"messages": said}, {"audio": "t.wav", "start_seconds": None})
    assert declared == {"duration_seconds": 2}


def test_the_speaker_of_a_sample_comes_before_that_of_its_details() -> None:
    details = {"speaker": "ben"}
    assert chatml._speaker({"speaker": "ada", "misc": details}) == "ada"
    assert chatml._speaker({"speaker": None, "misc": details}) == "ben"
    assert chatml._speaker({"speaker": "x7", "misc": {"sample_id": "x7"}}) is None
    assert chatml._speaker({"speaker": "sample-12"}) is None


def test_what_misc_says_comes_before_what_metadata_says() -> None:
    sample = {"misc": {"a": 1}, "metadata": {"a": 2, "b": 2}}
    assert chatml._details(sample) == {"a": 1, "b": 2}


def test_at_most_two_messages_come_before_the_transcript_of_ms_swift() -> None:
    asked = [{"role": role, "content": "<audio>"} for role in ("user", "system", "user")]
    assert chatml._is_transcript(asked[1:], "Good day.")
    assert not chatml._is_transcript(asked, "Good day.")


def test_a_speaker_before_a_reference_in_the_system_message_is_no_scene() -> None:
    content = [text(f"{USUAL}\n\n<|scene_desc_start|>\nA hall.\nSPEAKER0: "), audio("r.wav")]
    content.append(text("\n<|scene_desc_end|>"))
    messages = [system(content), user("Target."), assistant(audio("t.wav"))]
    assert row_of(messages, misc={"ref_transcript": "Reference."}) == {**CLONED, "scene": "A hall."}


def test_a_speaker_equal_to_the_sample_id_is_ignored(tmp_path: Path) -> None:
    (row,) = rows_of(
        tmp_path, {"messages": OK, "speaker": "sample_0", "misc": {"sample_id": "sample_0"}}
    )
    assert row.speaker is None


def test_the_example_conversations_mark_their_targets() -> None:
    path = MANIFESTS / "boson-chatml" / "conversations.jsonl"
    window, tea = read_manifests([str(path)]).rows
    assert window.conversation is not None
    assert tea.conversation is not None
    assert [turn.is_target for turn in window.conversation.turns] == [False, True, False, True]
    assert [turn.is_target for turn in tea.conversation.turns] == [False, False, False, False, True]
    assert window.text == "[SPEAKER1] Please close the door behind you."
    paths = [heard.recording.audio_path for heard in window.utterances]
    assert all(Path(path).is_file() for path in paths)


def test_the_text_of_a_recording_is_only_the_user_turn_before_it() -> None:
    turns: tuple[Turn[Span], ...] = (
        Turn("system", ("Do as told.",)),
        Turn("assistant", (Span("x.wav"),)),
        Turn("user", ("Said.",)),
        Turn("scene", ("A hall.",)),
        Turn("assistant", (Span("y.wav"),)),
    )
    assert [heard.text for heard in Conversation(turns).utterances()] == ["", "Said."]


# --- References of several speakers --------------------------------------------------------------


def test_a_tag_in_front_of_a_reference_transcript_is_not_repeated() -> None:
    references = [
        {"ref_audio_file": f"{n}.wav", "ref_transcript": f"[SPEAKER{n}] I am {n}."} for n in (0, 1)
    ]
    _, conversation = read_ref_speakers("[SPEAKER0] Hi. [SPEAKER1] Ho.", "a.wav", None, references)
    assert conversation is not None
    asked = [turn.text for turn in conversation.turns if turn.role == "user"]
    assert asked[:2] == ["[SPEAKER0] I am 0.", "[SPEAKER1] I am 1."]


def test_references_of_other_speakers_alone_do_not_count_as_none() -> None:
    references = [
        {"ref_audio_file": "r.wav", "ref_transcript": "R.", "speaker_id": name} for name in "bc"
    ]
    fields = {"text": "T.", "audio": "a.wav", "speaker": "a", "ref_speakers": references}
    with pytest.raises(RowFault, match="there are 2 `ref_speakers`"):
        samples._with_ref_speakers(RawRow("m.json", 1, fields))


def test_each_speaker_of_a_ref_speakers_sample_gets_a_reference_turn() -> None:
    (row,) = read_manifests([str(MANIFESTS / "ref-speakers")]).rows
    assert row.conversation is not None
    assert row.scene is None
    scene, *turns = row.conversation.turns
    assert scene == Turn("scene", ("A small kitchen.",))
    assert [(turn.role, turn.text) for turn in turns] == [
        ("user", "[SPEAKER0] Can you hear the rain on the roof?"),
        ("assistant", ""),
        ("user", "[SPEAKER1] Please close the door behind you."),
        ("assistant", ""),
        ("user", "[SPEAKER0] Please close the kitchen window."),
        ("assistant", ""),
    ]
    names = [Path(heard.recording.audio_path).name for heard in row.utterances]
    assert names == ["ada-005.ogg", "ben-002.wav", "ada-004.flac"]
    assert [turn.is_target for turn in turns] == [False] * 5 + [True]


def test_one_speaker_without_tags_is_an_ordinary_reference() -> None:
    references = [{"ref_audio_file": "r.wav", "ref_transcript": "R."}]
    fields, conversation = read_ref_speakers("T.", "t.wav", "A hall.", references)
    assert conversation is None
    assert (fields["ref_audio"], fields["ref_text"], fields["scene"]) == ("r.wav", "R.", "A hall.")


REFERENCE = {"ref_audio_file": "r.wav", "ref_transcript": "R."}


@pytest.mark.parametrize(
    ("said", "sample", "tokens"),
    [
        ("T.", {"ref_speakers": "ada"}, ("`ref_speakers[0]`",)),
        ("T.", {"ref_speakers": [{"ref_audio_file": "r.wav"}]}, ("`ref_speakers[0]`",)),
        ("T.", {"ref_speakers": [REFERENCE | {"speaker_tag": "A"}]}, ("`speaker_tag`",)),
        ("T.", {"ref_speakers": [REFERENCE, REFERENCE]}, ("[SPEAKER0]",)),
        ("[SPEAKER1] T.", {"ref_speakers": [REFERENCE]}, ("[SPEAKER1]",)),
        ("T.", {"ref_speakers": [REFERENCE], **REFERENCE}, ("`ref_speakers`", "`ref_audio_file`")),
        ("T.", {"ref_speakers": [REFERENCE], "ref_text": "R."}, ("`ref_speakers`", "keep one")),
        ("T.", {"ref_speakers": [REFERENCE], "audio_file": 7}, ("`audio`", "7")),
        ("T.", {"task_type": "multi_speaker_voice_cloning"}, ("`ref_speakers`",)),
    ],
)
def test_malformed_or_ambiguous_ref_speakers_are_a_fault(
    tmp_path: Path, said: str, sample: Fields, tokens: tuple[str, ...]
) -> None:
    (tmp_path / "a.txt").write_text(said)
    sample = {"audio_file": "a.wav", "transcript_file": "a.txt", **sample}
    message = message_of(write(tmp_path, "metadata.json", json.dumps({"samples": [sample]})))
    assert has_line_with(message, "metadata.json:1: ", *tokens)


# --- Anything else -------------------------------------------------------------------------------


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -1, 1e308, float("nan"), float("inf")]),
    st.floats(),
    st.sampled_from(["user", "assistant", "system", "scene", "text", "audio", "t.wav", REQUEST]),
    st.text(st.characters(codec=None), max_size=8),
    st.just("\ud83d"),
)
KEYS = st.sampled_from(
    ["role", "content", "type", "text", "audio_url", "raw_audio", "offset", "duration", "misc"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PARTS = st.builds(text, st.text(max_size=5)) | st.builds(audio, st.text(max_size=5)) | VALUES
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "scene"])},
    optional={"content": PARTS | st.lists(PARTS, max_size=4), "recipient": VALUES},
)
WILD = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES | VALUES, max_size=6) | VALUES},
    optional=dict.fromkeys(("start_index", "speaker", "misc", "id", "scene", "audios"), VALUES),
)
# Samples of sound messages, in any order.
WORDS = st.sampled_from(["T.", f"R. {REQUEST}T.", REQUEST, "[SPEAKER0] T.", " ", USUAL])
RECORDING = st.builds(audio, st.just("t.wav"), offset=st.sampled_from([None, 1]))
SOUND = st.lists(st.builds(text, WORDS) | RECORDING, min_size=1, max_size=3)
TAME = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.builds(lambda parts: user(*parts), SOUND)
            | st.builds(lambda parts: assistant(*parts), SOUND),
            min_size=1,
            max_size=5,
        )
    },
    optional={"start_index": st.integers(0, 4), "misc": st.just({"ref_transcript": "R."})},
)


@settings(max_examples=80, deadline=None)
@given(samples=st.lists(WILD | TAME, min_size=1, max_size=3), is_array=st.booleans())
def test_no_sample_raises_anything_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Fields], is_array: bool
) -> None:
    lines = [json.dumps(sample) for sample in samples]
    content = f"[{','.join(lines)}]" if is_array else "\n".join(lines)
    entry = write(tmp_path_factory.getbasetemp(), "fuzz.json", content)
    for changes in ({}, {"format": "boson-chatml"}):
        try:
            rows = read_manifests([entry.model_copy(update=changes)]).rows
        except UserError as error:
            str(error).encode()
        else:
            assert all(row.text is not None for row in rows)


def test_the_texts_of_a_conversation_become_nfc() -> None:
    turns = (Turn("user", ("Ja\u0308.", Span("r.wav"))), Turn("assistant", (Span("a.wav"),), True))
    raw = RawRow("m.jsonl", 1, {"audio": "a.wav", "text": "Ja\u0308."}, Conversation(turns))
    row = checked_row(raw, Path("/clips"))
    assert row.conversation is not None
    assert [turn.texts for turn in row.conversation.turns] == [("Jä.",), ()]


@pytest.mark.parametrize(("path", "is_outside"), [("r.wav", False), ("../r.wav", True)])
def test_a_conversation_has_a_scene_in_words_and_a_mark_for_paths_outside(
    path: str, is_outside: bool
) -> None:
    reference: tuple[Turn, ...] = (said("R."), heard(path))
    target: tuple[Turn, ...] = (said("quiet_room"), heard("a.wav", is_target=True))
    turns = (Turn("scene", ("quiet_room",)), *reference, *target)
    raw = RawRow("m.jsonl", 1, {"audio": "a.wav", "text": "quiet_room"}, Conversation(turns))
    row = checked_row(raw, Path("/clips"))
    assert row.conversation is not None
    texts = [text for turn in row.conversation.turns for text in turn.texts]
    assert texts == ["Audio is recorded from quiet room.", "R.", "quiet_room"]
    assert row.is_outside_root == is_outside
