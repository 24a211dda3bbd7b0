"""Manifest reading: rows keep their values, and one error lists every fault with file and line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import has_line_with

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.manifests.checking import is_language
from higgs_pipe.data.manifests.fields import is_language_code, is_number
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.row_table import read_rows, write_rows
from higgs_pipe.errors import UserError

GOOD = '{"audio": "a.wav", "text": "A."}'


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def rows_of(folder: Path, *rows: dict[str, Any]) -> tuple[Row, ...]:
    path = write(folder / "m.jsonl", *(json.dumps(row) for row in rows))
    return tuple(read_manifests([path]).rows)


def message_of(*paths: str) -> str:
    with pytest.raises(UserError) as caught:
        read_manifests(paths)
    return str(caught.value)


def test_a_row_has_its_values_its_place_and_absolute_paths(tmp_path: Path) -> None:
    values = {"id": "x", "audio": "wavs/a.wav", "text": " Hi. ", "speaker": "s", "language": "de"}
    values |= {"scene": "A room.", "ref_audio": "r.wav", "ref_text": "R.", "split": "eval"}
    assert rows_of(tmp_path, values) == (
        Row(
            manifest=str(tmp_path / "m.jsonl"),
            line=1,
            clip_id="x",
            audio="wavs/a.wav",
            audio_path=tmp_path / "wavs" / "a.wav",
            text=" Hi. ",
            speaker="s",
            language="de",
            scene="A room.",
            ref_audio_path=tmp_path / "r.wav",
            ref_text="R.",
            split="eval",
        ),
    )


def test_paths_stay_relative_for_a_relative_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "m.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    (row,) = read_manifests(["data/m.jsonl"]).rows
    assert row.audio_path == Path("data/a.wav")
    assert row.place == "data/m.jsonl:1"


def test_a_root_is_relative_to_the_working_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "lists/m.jsonl", GOOD)
    (row,) = read_manifests([ManifestEntry(path=path, root="clips")]).rows
    assert row.audio_path == Path("clips/a.wav")


def test_an_absolute_audio_path_is_kept(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"audio": "/far/a.wav", "text": "A."})
    assert row.audio_path == Path("/far/a.wav")


def test_the_default_id_of_a_row_is_its_audio_path_without_suffix(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path, {"audio": "wavs/a.b.flac", "text": "A."}, {"audio": "./c", "text": "C."}
    )
    assert [row.clip_id for row in rows] == ["wavs/a.b", "./c"]


def test_null_and_blank_optional_values_count_as_missing(tmp_path: Path) -> None:
    optional = ("id", "speaker", "language", "scene", "ref_audio", "ref_text", "split")
    for blank in (None, "", "  "):
        (row,) = rows_of(
            tmp_path, {"audio": "a.wav", "text": "A."} | dict.fromkeys(optional, blank)
        )
        assert row.clip_id == "a"
        assert [row.speaker, row.language, row.scene, row.split] == [None] * 4
        assert [row.ref_audio_path, row.ref_text] == [None] * 2


def test_white_space_around_names_is_stripped(tmp_path: Path) -> None:
    names = {"speaker": " ada\t", "language": "en ", "split": " eval", "id": "one "}
    (row,) = rows_of(tmp_path, {"audio": "a.wav", "text": "A."} | names)
    assert [row.speaker, row.language, row.split, row.clip_id] == ["ada", "en", "eval", "one"]


@pytest.mark.parametrize(
    ("declared", "hz"), [(44.1, 44_100), ("16", 16_000), (8000, 8000), (0, None), ("high", None)]
)
def test_a_declared_sample_rate_below_1000_is_in_kilohertz(
    tmp_path: Path, declared: object, hz: float | None
) -> None:
    (row,) = rows_of(tmp_path, {"audio": "a.wav", "text": "A.", "sample_rate": declared})
    assert row.declared_sample_rate_hz == hz


@pytest.mark.parametrize("word", ["unknown", "Unknown", " N/A "])
def test_a_word_for_unknown_is_neither_a_speaker_nor_a_scene(tmp_path: Path, word: str) -> None:
    (row,) = rows_of(tmp_path, {"audio": "a.wav", "text": "A.", "speaker": word, "scene": word})
    assert (row.speaker, row.scene) == (None, None)


@pytest.mark.parametrize(
    ("paths", "is_outside"),
    [
        ({"audio": "wavs/../a.wav"}, False),
        ({"audio": "../a.wav"}, True),
        ({"audio": "/far/a.wav"}, True),
        ({"audio": "a.wav", "ref_audio": "../r.wav", "ref_text": "R."}, True),
        ({"audio": "a.wav", "ref_audio": "r.wav", "ref_text": "R."}, False),
    ],
)
def test_a_path_that_leads_out_of_the_folder_is_marked(
    tmp_path: Path, paths: dict[str, str], is_outside: bool
) -> None:
    (row,) = rows_of(tmp_path, {"text": "A."} | paths)
    assert row.is_outside_root == is_outside


@pytest.mark.parametrize(
    ("value", "is_known"),
    [
        ("en", True),
        ("Mexican Spanish", True),
        ("old english", True),
        ("Serbian (Latin Script)", True),
        ("the old tongue", False),
        ("Yes.", False),
        ("One Two Three Four Five", False),
    ],
)
def test_a_language_is_a_code_or_a_name_of_a_few_words(value: str, is_known: bool) -> None:
    assert is_language(value) == is_known


@pytest.mark.parametrize("code", ["en", "zh-CN", "pt_BR", " JP ", "cmn"])
def test_a_code_of_a_language_may_name_a_country_or_have_three_letters(code: str) -> None:
    assert is_language_code(code)
    assert not is_language_code(f"x{code}")


@pytest.mark.parametrize(
    ("value", "is_one"),
    [(-1.5, True), (999_999_999, True), (1e9, False), (float("nan"), False), (True, False)],
)
def test_a_number_of_seconds_is_finite_and_no_truth_value(value: object, is_one: bool) -> None:
    assert is_number(value) == is_one


def test_a_text_may_mention_a_file_but_not_be_its_name(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"audio": "a.wav", "text": "Listen to a.wav"})
    assert row.text == "Listen to a.wav"
    path = write(tmp_path / "n.jsonl", '{"audio": "a.wav", "text": "a.wav"}')
    assert has_line_with(message_of(path), "n.jsonl:1", "`text` is the name of a file")


def test_a_declared_length_of_0_or_less_is_none(tmp_path: Path) -> None:
    for seconds, expected in ((-1, None), (0, None), (2.5, 2.5)):
        row = {"audio": "a.wav", "text": "A.", "duration_seconds": seconds}
        assert rows_of(tmp_path, row)[0].declared_seconds == expected


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + f"{GOOD}\r\n\r\n  \r\n".encode() + GOOD[:-1].encode() + b',"id":"b"}'
    )
    assert [row.line for row in read_manifests([str(path)]).rows] == [1, 4]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"audio": "a.wav", "text": "A\u2028\u0085B"}')
    assert read_manifests([path]).rows[0].text == "A\u2028\u0085B"


def test_several_manifests_are_read_in_order_each_relative_to_its_folder(tmp_path: Path) -> None:
    first = write(tmp_path / "one" / "m.jsonl", '{"audio": "a.wav", "text": "A."}')
    second = write(tmp_path / "two" / "m.jsonl", '{"audio": "b.wav", "text": "B."}')
    rows = read_manifests([first, second]).rows
    assert [row.audio_path for row in rows] == [tmp_path / "one/a.wav", tmp_path / "two/b.wav"]
    assert [row.place for row in rows] == [f"{first}:1", f"{second}:1"]


def test_speaker_names_shared_by_several_manifests_are_noted(tmp_path: Path) -> None:
    lines = [
        f'{{"audio": "{name}.wav", "text": "A.", "speaker": "{name[0]}"}}'
        for name in ("a", "b1", "b2", "c")
    ]
    first = write(tmp_path / "one" / "m.jsonl", *lines[:2])
    second = write(tmp_path / "two" / "m.jsonl", *lines[2:])
    (note,) = read_manifests([first, second]).notes
    assert note.startswith("several manifests have the speakers b: ")
    assert read_manifests([first]).notes == ()


def test_rows_and_what_was_found_beside_them_are_the_same_after_writing(tmp_path: Path) -> None:
    manifest = replace(
        read_manifests([write(tmp_path / "m.jsonl", GOOD)]),
        ignored_keys={"Gain": 1},
        notes=("A note.",),
        left_out={"a reason": ["b.wav"]},
    )
    path = tmp_path / "rows.parquet"
    written = []
    for stamp in ("one", "one", "two"):
        write_rows(path, manifest, stamp)
        written.append(path.read_bytes())
        found = read_rows(path)
        assert list(found.rows) == list(manifest.rows)
        assert replace(found, rows=manifest.rows) == manifest
    assert written[0] == written[1] != written[2]


def test_unknown_keys_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.jsonl",
        '{"audio": "a.wav", "text": "A.", "duration": 1.5, "Gain": "s"}',
        '{"audio": "b.wav", "text": "B.", "duration": {"s": 2}, "Gain": "t"}',
    )
    assert read_manifests([path]).ignored_keys == {"Gain": 2, "duration_seconds": 1}


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ('{"audio": "a.wav", "text": "A."', ("JSON", "','", "32")),
        ('["a.wav", "A."]', ("JSON",)),
        ("null", ("JSON",)),
        ('{"text": "A."}', ("'audio'",)),
        ('{"audio": "a.wav"}', ("'text'",)),
        ('{"audio": "a.wav", "text": null}', ("'text'",)),
        ('{"audio": 7, "text": "A."}', ("`audio`", "7")),
        ('{"audio": "a.wav", "text": ["A."]}', ("`text`",)),
        ('{"audio": "a.wav", "text": "A.", "id": 12}', ("`id`", "12")),
        ('{"audio": "a.wav", "text": "A.", "speaker": true}', ("`speaker`",)),
        ('{"audio": " ", "text": "A."}', ("`audio`",)),
        ('{"audio": "a.wav", "text": "A.", "split": "test"}', ("'train'", "'eval'", "'test'")),
        ('{"audio": "a.wav", "text": "A.", "ref_audio": "r.wav"}', ("`ref_audio`", "`ref_text`")),
        ('{"audio": "a.wav", "text": "A.", "ref_text": "R."}', ("`ref_audio`", "`ref_text`")),
        ('{"audio": "a.wav", "text": "A.", "text": "B."}', ("'text'",)),
        ('{"audio": "a.wav", "text": "\\ud83d"}', ("`text`", "'\\ud83d'")),
        ('{"audio": "a\\u0000.wav", "text": "A."}', ("`audio`",)),
        ('{"audio": "a.wav", "text": "A.", "\\ud83d": 1}', ("'\\ud83d'",)),
        ('{"audio": "ref-0123456789abcdef.wav", "text": "A."}', ("ref-0123456789abcdef",)),
        ("[" * 100_000, ("JSON",)),
        ('{"audio": "a.wav", "text": "A.", "n": ' + "9" * 5000 + "}", ("JSON",)),
    ],
)
def test_a_line_that_is_not_a_row_is_a_fault_with_its_place(
    tmp_path: Path, line: str, tokens: tuple[str, ...]
) -> None:
    path = write(tmp_path / "m.jsonl", "", '{"audio": "good.wav", "text": "G."}', line)
    message = message_of(path)
    assert message.startswith("the manifest has 1 fault:\n")
    assert has_line_with(message, f"{path}:3: ", *tokens)
    message.encode()


def test_a_missing_manifest_is_named_with_what_to_do(tmp_path: Path) -> None:
    message = message_of(str(tmp_path / "none.jsonl"))
    assert f"{tmp_path / 'none.jsonl'}: the manifest does not exist" in message
    assert "`manifest` in config.yaml" in message
    assert "empty" not in message


def test_an_empty_directory_is_not_a_manifest(tmp_path: Path) -> None:
    message = message_of(str(tmp_path))
    assert f"{tmp_path}: the manifest fits no format; looked for a JSON object" in message
    assert "a folder with wav.scp, metadata.json" in message


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_manifest_is_a_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.jsonl").write_bytes(content)
    assert f"{tmp_path / 'm.jsonl'}: the manifest is empty" in message_of(str(tmp_path / "m.jsonl"))


def test_an_empty_manifest_next_to_a_good_one_is_a_fault(tmp_path: Path) -> None:
    good, empty = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl")
    assert f"{empty}: the manifest is empty" in message_of(good, empty)


def test_a_table_without_rows_after_a_faulty_manifest_is_a_fault_too(tmp_path: Path) -> None:
    faulty, empty = write(tmp_path / "a.jsonl", "{"), write(tmp_path / "b.csv", "audio,text")
    assert f"{empty}: the manifest is empty" in message_of(faulty, empty)


def test_a_line_in_latin_1_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"audio": "b.wav", "text": "M\xfcller"}\n')
    assert f"{path}:2: not UTF-8 (byte 30)" in message_of(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.jsonl", GOOD),
        ("m.csv", "audio;text\na.wav;Größe"),
        ("m.txt", "audio\ttext\na.wav\tGröße"),  # Excel's "Unicode text"
    ],
)
def test_a_manifest_in_utf_16_is_read(
    tmp_path: Path, name: str, content: str, encoding: str
) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes(f"{mark}{content}\r\n".encode(encoding))
    (row,) = read_manifests([str(tmp_path / name)]).rows
    assert (row.audio, row.text) == ("a.wav", "A." if name == "m.jsonl" else "Größe")


def test_a_truncated_utf_16_character_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("audio;text\na.wav;A".encode("utf-16") + b"x")
    assert has_line_with(message_of(str(tmp_path / "m.csv")), "m.csv", "UTF-16")


def test_a_missing_relative_manifest_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of("my/none.jsonl")
    assert has_line_with(message, "my/none.jsonl: ", str(tmp_path / "my" / "none.jsonl"))


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    rows = [f'{{"id": "{name}", "audio": "{name}.wav", "text": "T."}}' for name in "abcb"]
    path = write(tmp_path / "m.jsonl", *rows)
    assert f"{path}:4: the id 'b' is taken by {path}:2;" in message_of(path)


def test_a_manifest_listed_twice_has_only_duplicate_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", GOOD)
    assert f"{path}:1: the id 'a' is taken by {path}:1;" in message_of(path, path)


def test_all_faults_of_all_manifests_come_in_one_error(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", "{", GOOD, "7", '{"audio": 1, "text": 2}')
    second = write(tmp_path / "b.jsonl", GOOD)
    message = message_of(first, str(tmp_path / "none.jsonl"), second)
    assert message.startswith("the manifest has 6 faults:\n")
    places = [f"{first}:1:", f"{first}:3:", f"{first}:4:", "none.jsonl:", f"{second}:1:"]
    assert all(place in message for place in places)


def test_only_the_first_20_faults_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", *[f"7{i:02}" for i in range(23)])
    message = message_of(path)
    assert f"{path}:20:" in message
    assert f"{path}:21:" not in message
    assert "... and 3 more" in message


def test_a_fault_of_many_rows_is_listed_once_with_its_first_20_places(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", *["{"] * 23)
    (fault,) = [line for line in message_of(path).splitlines() if "JSON:" in line]
    assert f"{path}:20 ... and 3 more: " in fault
    assert f"{path}:21" not in fault
