"""File lists of other trainers: fields are recognised from the whole file, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import has_line_with

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.manifests import reading
from higgs_pipe.data.manifests.fields import RowFault
from higgs_pipe.data.manifests.formats import delimited, roles
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.errors import UserError

# Path, text, speaker, language.
SAID = [
    ("wavs/a.wav", "Hello there.", "ada", "en"),
    ("wavs/b.wav", "Good morning, everyone!", "ben", "en"),
    ("wavs/c.wav", "How are you?", "ada", "de"),
    ("wavs/d.wav", "It rained all day.", "ben", "en"),
]
LAYOUTS = {
    "GPT-SoVITS": "{path}|{speaker}|{language}|{text}",
    "StyleTTS2": "{path}|{text}|{speaker}",
    "VITS": "{path}|{speaker}|{text}",
    "Tacotron": "{path}|{text}",
    "four fields": "{path}|{text}|{text} |{speaker}",
    "speaker in the middle": "{path}|{text}|{speaker}|{text}",
    "speaker, then language last": "{path}|{text}|{speaker}|{language}",
    "text first": "{text}|{path}|{speaker}",
    "Bert-VITS2, cleaned": "{path}|{speaker}|{language}|{text}|_ h e _|0 1 1 0|1 2 1",
    "with a trailing delimiter": "{path}|{speaker}|{text}|",
    "with a length": "{path}|{speaker}|{text}|1.25",
}


def listed(folder: Path, *lines: str, name: str = "list.txt", **options: object) -> tuple[Row, ...]:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    entry = ManifestEntry.model_validate({"path": str(folder / name), **options})
    return tuple(read_manifests([entry]).rows)


def refusal(folder: Path, *lines: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(folder, *lines, **options)
    return str(caught.value)


def lines_of(layout: str, speakers: dict[str, str] | None = None) -> list[str]:
    names = speakers or {}
    return [
        layout.format(path=path, text=text, speaker=names.get(speaker, speaker), language=language)
        for path, text, speaker, language in SAID
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["train.txt", "metadata.csv"])
def test_the_fields_of_a_file_list_are_recognised_by_their_content(
    tmp_path: Path, layout: str, name: str
) -> None:
    rows = listed(tmp_path, *lines_of(LAYOUTS[layout]), name=name)
    assert [(row.audio, row.text) for row in rows] == [(path, text) for path, text, *_ in SAID]
    if "speaker" in LAYOUTS[layout]:
        assert [row.speaker for row in rows] == ["ada", "ben", "ada", "ben"]
    if "language" in LAYOUTS[layout]:
        assert [row.language for row in rows] == ["en", "en", "de", "en"]


@pytest.mark.parametrize("names", [{"ada": "0", "ben": "17"}, {"ada": "Ada Low", "ben": "Ben May"}])
def test_a_speaker_may_be_a_number_or_a_full_name(tmp_path: Path, names: dict[str, str]) -> None:
    for layout in ("{path}|{speaker}|{text}", "{path}|{text}|{speaker}"):
        rows = listed(tmp_path, *lines_of(layout, names))
        assert [row.text for row in rows] == [text for _, text, *_ in SAID]
        assert [row.speaker for row in rows] == [names["ada"], names["ben"]] * 2


def test_three_lines_suffice_even_if_each_speaker_has_only_one(tmp_path: Path) -> None:
    lines = ["wavs/a.wav|Hello.|ada", "wavs/b.wav|Good day.|ben", "wavs/c.wav|Bye now.|cleo"]
    rows = listed(tmp_path, *lines)
    assert [(row.text, row.speaker) for row in rows] == [
        ("Hello.", "ada"),
        ("Good day.", "ben"),
        ("Bye now.", "cleo"),
    ]


@pytest.mark.parametrize(
    ("header", "layout"),
    [
        ("audio_file|text|speaker_name", "{path}|{text}|{speaker}"),
        ("Path|Speaker|Transcript", "{path}|{speaker}|{text}"),
        ("speaker_id|text|file_name|duration", "{speaker}|{text}|{path}|"),
    ],
)
def test_a_header_names_the_fields_of_a_file_list(tmp_path: Path, header: str, layout: str) -> None:
    rows = listed(tmp_path, header, *lines_of(layout), name="metadata.csv")
    assert [(row.audio, row.text, row.speaker) for row in rows] == [said[:3] for said in SAID]
    assert [row.line for row in rows] == [2, 3, 4, 5]


def test_a_header_with_unknown_names_is_not_a_row(tmp_path: Path) -> None:
    lines = ["klang|raw_text|normalized|wer", *lines_of("{path}|{text}|{text}|{speaker}")]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = read_manifests([str(tmp_path / "list.txt")])
    assert [(row.line, row.speaker) for row in found.rows] == [
        (2, "ada"),
        (3, "ben"),
        (4, "ada"),
        (5, "ben"),
    ]
    assert has_line_with("\n".join(found.notes), "list.txt:1", "header")


def test_a_speaker_named_unknown_is_ignored(tmp_path: Path) -> None:
    rows = listed(tmp_path, *lines_of("{path}|{text}|unknown"))
    assert {row.speaker for row in rows} == {None}


def test_a_list_of_id_speaker_text_is_told_from_ljspeech(tmp_path: Path) -> None:
    rows = listed(tmp_path, *(f"{p[5]}|{s}|{t}" for p, t, s, _ in SAID), name="metadata.csv")
    assert [(row.clip_id, row.text, row.speaker) for row in rows][:2] == [
        ("a", "Hello there.", "ada"),
        ("b", "Good morning, everyone!", "ben"),
    ]
    assert rows[0].audio == "wavs/a.wav"


def test_a_list_with_paths_is_read_correctly_although_declared_as_ljspeech(tmp_path: Path) -> None:
    rows = listed(tmp_path, *lines_of("{path}|{text}|{speaker}"), format="ljspeech")
    assert [(row.audio, row.text) for row in rows] == [(path, text) for path, text, *_ in SAID]


@pytest.mark.parametrize(
    "lines",
    [
        ["wavs/a.wav|Yes|ada", "wavs/b.wav|No|ben", "wavs/c.wav|Stop|cleo"],  # either may be names
        ["wavs/a.wav|How are you?|Wie geht es?", "wavs/b.wav|It rains.|Es regnet."],
        ["wavs/a.wav|wavs/r.wav|How are you?", "wavs/b.wav|wavs/r.wav|It rains."],
        ["wavs/a.wav|Hello there.|ada|happy", "wavs/b.wav|Good day.|ben|sad"],
        ["wavs/a.wav|Hello there.|happy", "wavs/b.wav|Good day.|sad"],  # no speaker
        ["wavs/a.wav|Hello there.|m", "wavs/b.wav|Good day.|f"],
        ["wavs/a.wav|Hello there.|train", "wavs/b.wav|Good day.|val"],
        ["wavs/a.wav|Hello there.|0.25|1.5", "wavs/b.wav|Good day.|1.5|2.75"],  # a segment
        ["a|How are you?|Wie geht es?", "b|It rains.|Es regnet."],  # of ids
        ["a|卡尔普陪外孙玩滑梯。|ka2 er2 pu3", "b|假语村言别再拥抱我。|jia2 yu3 cun1"],
        [f"wavs/{i}.wav|utt{i}|This is {i}." for i in range(8)],  # another one in each line
        [f"{i}|wavs/{i}.wav|This is {i}." for i in range(8)],
        [f"ada|Good day, {i}.|Yes, {i}.|And {i}?" for i in range(4)],  # no recording, no id
    ],
)
def test_an_ambiguous_list_is_refused_and_shows_its_lines(tmp_path: Path, lines: list[str]) -> None:
    message = refusal(tmp_path, *lines)
    assert has_line_with(message, "list.txt", "columns: {audio: '1'")
    assert lines[0].replace("|", " | ") in message


def test_columns_can_refer_to_list_fields_by_number(tmp_path: Path) -> None:
    columns = {"audio": "1", "text": "2", "speaker": "3"}
    lines = ["wavs/a.wav|Yes|ada|happy", "wavs/b.wav|No|ben|sad"]
    rows = listed(tmp_path, *lines, columns=columns, format="filelist")
    assert [(row.text, row.speaker) for row in rows] == [("Yes", "ada"), ("No", "ben")]


def test_a_field_number_that_no_line_has_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.wav|Yes|ada", columns={"audio": "1", "text": "9"})
    assert has_line_with(message, "list.txt", "field 9", "text", "3")
    message = refusal(tmp_path, "a.wav|Yes|ada", columns={"audio": "0", "text": "2"})
    assert has_line_with(message, "list.txt", "field 0", "audio", "3")


def test_phonemes_instead_of_text_are_refused(tmp_path: Path) -> None:
    lines = ["wavs/a.wav|0|həlˈoʊ ðˈɛɹ", "wavs/b.wav|1|ɡʊd mˈɔːɹnɪŋ", "wavs/c.wav|0|hˈaʊ ɑːɹ juː"]
    assert has_line_with(refusal(tmp_path, *lines), "list.txt", "phonemes", "həlˈoʊ")


@pytest.mark.parametrize("sign", [";", ",", "\t"])
@pytest.mark.parametrize("header", ["Audio{0}Text{0}Speaker", "path{0}sentence{0}client_id", ""])
def test_tables_with_other_delimiters_or_without_a_header_are_read(
    tmp_path: Path, sign: str, header: str
) -> None:
    lines = [sign.join((p, f'"{t}"' if "," in t else t, s)) for p, t, s, _ in SAID]
    head = [header.format(sign)] if header else []
    rows = listed(tmp_path, *head, *lines, name="table.csv")
    assert [(row.audio, row.text, row.speaker) for row in rows] == [said[:3] for said in SAID]


def test_guessed_column_names_are_noted(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("wav;txt\na.wav;A.\n")
    (note,) = read_manifests([str(tmp_path / "m.csv")]).notes
    assert all(word in note for word in ("m.csv", "'wav' as audio", "'txt' as text"))


def test_two_candidate_text_columns_are_a_single_fault(tmp_path: Path) -> None:
    lines = ["path,sentence,txt", *(f"{i}.wav,A {i}.,B {i}." for i in range(30))]
    message = refusal(tmp_path, *lines, name="m.csv")
    assert message.startswith("the manifest has 1 fault:")
    assert has_line_with(message, "m.csv:1", "'sentence'", "'txt'", "columns")


def test_an_unrecognised_header_is_a_single_fault_that_lists_its_names(tmp_path: Path) -> None:
    lines = ["Klang,Wortlaut", *(f"{i},A {i}." for i in range(25))]
    message = refusal(tmp_path, *lines, name="m.csv")
    assert message.startswith("the manifest has 1 fault:")
    assert has_line_with(message, "m.csv:2", "'audio'", "'Klang'", "'Wortlaut'")


def test_likely_columns_with_unknown_names_are_suggested(tmp_path: Path) -> None:
    lines = ["Datei;Jahr;Inhalt", *(f"{i}.wav;2020;So {i}." for i in range(25))]
    message = refusal(tmp_path, *lines, name="m.csv")
    assert message.startswith("the manifest has 1 fault:")
    assert has_line_with(message, "m.csv:2", "columns: {audio: Datei, text: Inhalt}")
    rows = listed(tmp_path, *lines, name="m.csv", columns={"audio": "Datei", "text": "Inhalt"})
    assert (rows[24].audio, rows[24].text) == ("24.wav", "So 24.")


@pytest.mark.parametrize("header", ["path|text|normalized_text", "path|Text_Normalized|text"])
def test_normalized_text_is_preferred_over_text(tmp_path: Path, header: str) -> None:
    texts = ["It was 5.", "It was five."]
    texts = texts if header.endswith("normalized_text") else texts[::-1]
    (row,) = listed(tmp_path, header, f"a.wav|{texts[0]}|{texts[1]}", name="metadata.csv")
    assert row.text == "It was five."
    (row,) = listed(tmp_path, header, f"a.wav|{texts[0]}|{texts[1]}", columns={"text": "text"})
    assert row.text == "It was 5."


def test_a_plain_json_array_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        '[\n {"audio": "a.wav", "text": "A."},\n {"file": "b.wav", "txt": "B."}]\n'
    )
    rows = read_manifests([str(tmp_path / "m.json")]).rows
    assert [(row.audio, row.text, row.line) for row in rows] == [
        ("a.wav", "A.", 1),
        ("b.wav", "B.", 2),
    ]


def test_an_excel_workbook_is_a_single_fault_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "m.xlsx").write_bytes(b"PK\x03\x04" + b"\0" * 40)
    with pytest.raises(UserError) as caught:
        read_manifests([str(tmp_path / "m.xlsx")])
    assert has_line_with(str(caught.value), "m.xlsx", "Excel", "CSV")


def test_text_quoted_by_a_table_library_is_unquoted(tmp_path: Path) -> None:
    rows = listed(tmp_path, "audio_file|text", 'a.wav|"He said ""no""."', 'b.wav|"No," he said.')
    assert [row.text for row in rows] == ['He said "no".', '"No," he said.']


def test_numeric_texts_are_told_from_speaker_names(tmp_path: Path) -> None:
    names = ["ada", "ben"] * 3
    said = ["12", "55", "1905", "7", "33", "4"]
    lines = [
        f"wavs/{i}.wav|{n}|{name}" for i, (n, name) in enumerate(zip(said, names, strict=True))
    ]
    rows = listed(tmp_path, *lines)
    assert [(row.text, row.speaker) for row in rows] == list(zip(said, names, strict=True))


@pytest.mark.parametrize("header", ["", "audio_file|text|speaker", '"audio_file"|"text"|"speaker"'])
@pytest.mark.parametrize("layout", ['"{path}"|"{text}"|"{speaker}"', '{path}|"{text}"|{speaker}'])
def test_quotes_around_all_values_of_a_field_are_removed(
    tmp_path: Path, header: str, layout: str
) -> None:
    rows = listed(tmp_path, *filter(None, [header]), *lines_of(layout))
    assert [(row.audio, row.text, row.speaker) for row in rows] == [said[:3] for said in SAID]


def test_quoted_text_in_a_list_without_a_header_is_unquoted(tmp_path: Path) -> None:
    rows = listed(tmp_path, 'a.wav|"He said ""no""."', 'b.wav|"No," he said.')
    assert [row.text for row in rows] == ['He said "no".', '"No," he said.']


def test_times_in_milliseconds_are_converted_to_seconds(tmp_path: Path) -> None:
    lines = ["audio,text,start_ms,end_ms,duration_ms", "a.wav,A.,1500,2750,1250"]
    (row,) = listed(tmp_path, *lines, name="m.csv")
    assert (row.start_seconds, row.end_seconds, row.declared_seconds) == (1.5, 2.75, 1.25)
    message = refusal(tmp_path, lines[0], "a.wav,A.,soon,2750,1250", name="m.csv")
    assert has_line_with(message, "m.csv:2", "`start_ms`")


@pytest.mark.parametrize(
    ("roles", "values", "text"),
    [
        (("id", "speaker", "text"), ["a", "s", "one", "two"], "one|two"),
        (("id", "raw text", "text"), ["a", "5 €", "five euros"], "five euros"),
        (("id", "raw text", "text"), ["a", "5 €", " "], "5 €"),
        (("id", "raw text", "text"), ["a", "5 €"], "5 €"),
        (("id", "text", "raw text"), ["a", "five euros", "5 €"], "five euros"),
    ],
)
def test_the_text_of_a_line_is_the_normalized_one_with_its_delimiters(
    tmp_path: Path, roles: tuple[Any, ...], values: list[str], text: str
) -> None:
    assert delimited._fields_by_role(values, roles, tmp_path)["text"] == text


def test_a_line_of_id_and_text_has_two_fields(tmp_path: Path) -> None:
    with pytest.raises(RowFault, match="3 fields, but most lines have 2"):
        delimited._fields_by_role(["a", "one", "two"], ("id", "text"), tmp_path)


def test_a_recording_is_found_by_its_name_with_or_without_ending(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs/a.wav").touch()
    (tmp_path / "b.flac").touch()
    names = [delimited.find_recording(tmp_path, name) for name in ("a.wav", "a", "b", "c", "")]
    assert names == ["wavs/a.wav", "wavs/a.wav", "b.flac", None, None]
    fields = [delimited._fields_by_role([n, "T."], ("audio", "text"), tmp_path) for n in "abc"]
    assert [found["audio"] for found in fields] == ["wavs/a.wav", "b.flac", "c"]


@pytest.mark.parametrize(
    ("values", "is_name"),
    [
        (("ada", "ben"), True),
        (("Ada Low", "Ben May") * 2, True),
        (("Ada Low", "Ben May", "Cleo Day", "Dan Fry"), False),  # no one speaks twice
        (("Yes, sir.", "No, sir.") * 2, False),
        (("1", "2"), True),
        (("你好吗", "我很好"), False),
    ],
)
def test_a_name_is_a_single_word_or_comes_again_and_is_no_sentence(
    values: tuple[str, ...], is_name: bool
) -> None:
    assert roles.FieldValues(values).is_name == is_name


@pytest.mark.parametrize(("num_nested", "is_path"), [(1, False), (8, False), (9, True)])
def test_names_of_files_without_an_ending_are_most_values_of_their_field(
    num_nested: int, is_path: bool
) -> None:
    values = ("and/or",) * num_nested + ("either",) * (10 - num_nested)
    assert roles.FieldValues(values).is_path == is_path


@pytest.mark.parametrize("num_distinct", [8, 9, 10])
def test_ids_of_a_list_differ_in_nine_of_ten_lines(num_distinct: int) -> None:
    rows = [(f"a{min(i, num_distinct - 1)}", f"This is {i}.") for i in range(10)]
    if num_distinct >= 9:
        assert roles.roles_of(rows) == ("id", "text")
    else:
        with pytest.raises(RowFault, match="cannot tell"):
            roles.roles_of(rows)


def test_words_that_are_codes_of_languages_are_the_text_if_there_is_no_other() -> None:
    assert roles.roles_of([("a.wav", "no"), ("b.wav", "so")]) == ("audio", "text")


def test_roles_are_those_of_the_most_frequent_number_of_fields() -> None:
    rows = [(path, text) for path, text, *_ in SAID]
    assert roles.roles_of([*rows, ("wavs/e.wav", "Yes", "ada", "No.")]) == ("audio", "text")


def test_the_text_suggested_is_the_longest_on_average_the_audio_the_first() -> None:
    values = {"many": ["so so"] * 9, "long": ["It rained today."], "b": ["b.wav"], "a": ["a.wav"]}
    assert reading._likely_columns(values) == {"audio": "b", "text": "long"}


@pytest.mark.parametrize(
    ("paths", "is_header"),
    [
        (["klang", "b.wav", "c.wav"], True),
        (["klang", "b.wav", "c"], False),  # not all others are recordings
        (["wavs/a", "b.wav", "c.wav"], False),
        (["a.wav", "b.wav", "c.wav"], False),
    ],
)
def test_a_header_is_the_only_line_without_a_recording(paths: list[str], is_header: bool) -> None:
    rows = [(line, [path, "A."]) for line, path in enumerate(paths, start=1)]
    assert delimited._is_unknown_header(rows, ("audio", "text")) == is_header


def test_quotes_around_some_values_of_a_field_are_text(tmp_path: Path) -> None:
    rows = listed(tmp_path, 'a.wav|"Hello there."', "b.wav|He said so.")
    assert [row.text for row in rows] == ['"Hello there."', "He said so."]


def test_rows_without_values_are_skipped(tmp_path: Path) -> None:
    rows = listed(tmp_path, "audio,text", "a.wav,A.", ", ", "b.wav,B.", name="m.csv")
    assert [(row.line, row.text) for row in rows] == [(2, "A."), (4, "B.")]
