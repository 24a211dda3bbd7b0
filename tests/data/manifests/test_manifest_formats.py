"""The manifest formats: examples against their JSONL twins, detection, and every fault."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from helpers import IMPORT_PEAK, ROOT, has_line_with, run_validation, tone, write_stage_config
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_pipe import list_rows, tokenize_audio
from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.audio import decode
from higgs_pipe.data.manifests import reading, source
from higgs_pipe.data.manifests.columns import columns_of, in_seconds, standard
from higgs_pipe.data.manifests.detection import detect
from higgs_pipe.data.manifests.formats import READERS, tables, toolkits
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.specs import CLIPS, REJECTED, codes_spec
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.v2 import miniature
from higgs_pipe.planning import config_check, manifests

MANIFESTS = ROOT / "examples" / "manifests"
COMMON_VOICE = {"audio": "path", "text": "sentence", "speaker": "client_id"}
DEMO_AUDIO = str(ROOT / "examples" / "demo" / "audio")

# Format: the example, and what its entry in the config needs.
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("manifest.csv", {}),
    "tsv": ("manifest.tsv", {"columns": COMMON_VOICE}),
    "ljspeech": ("metadata.csv", {"root": DEMO_AUDIO, "speaker": "ada", "language": "en"}),
    "kaldi": ("", {}),
    "nemo": ("manifest.jsonl", {}),
    "lhotse": ("cuts.jsonl", {}),
    "audiofolder": ("metadata.csv", {}),
    "filelist": ("train.list", {}),
    "ms-swift": ("train.jsonl", {}),
    "boson-chatml": ("train.json", {}),
    "folder": ("", {}),
}

# Format: the file whose lines these are, the lines of two rows before which a header may stand,
# and the other files of a folder. `{}` is the id.
CUT = (
    '{"id": "{}", "start": 0.0, "duration": 1.0, "type": "MonoCut", "supervisions": '
    '[{"start": 0.0, "duration": 1.0, "text": "T."}], "recording": {"duration": 1.0, '
    '"sources": [{"type": "file", "channels": [0], "source": "a.wav"}]}}'
)
LINES: dict[str, tuple[str, str, str]] = {
    "jsonl": ("m.jsonl", "", '{"id": "{}", "audio": "a.wav", "text": "T."}'),
    "csv": ("m.csv", "id,audio,text", "{},a.wav,T."),
    "tsv": ("m.tsv", "id\taudio\ttext", "{}\ta.wav\tT."),
    "ljspeech": ("metadata.csv", "", "{}|T.|T."),
    "kaldi": ("text", "", "{} T."),
    "nemo": ("m.jsonl", "", '{"id": "{}", "audio_filepath": "a.wav", "text": "T."}'),
    "lhotse": ("m.jsonl", "", CUT),
    "audiofolder": ("metadata.jsonl", "", '{"id": "{}", "file_name": "a.wav", "text": "T."}'),
    "filelist": ("m.list", "", "{}.wav|s|en|T."),
    "ms-swift": (
        "m.jsonl",
        "",
        '{"messages": [{"role": "assistant", "content": "<audio>T."}], "audios": ["{}.wav"]}',
    ),
    "boson-chatml": (
        "m.jsonl",
        "",
        '{"id": "{}", "messages": [{"role": "user", "content": "T."}, '
        '{"role": "assistant", "content": {"type": "audio", "audio_url": "a.wav"}}]}',
    ),
}


def entry_of(name: str, **changes: Any) -> ManifestEntry:
    file, options = EXAMPLES[name]
    return ManifestEntry(path=str(MANIFESTS / name / file), **{**options, **changes})


def nowhere(rows: Iterable[Row]) -> list[Row]:
    """The rows without their places, which differ between twins."""
    return [
        replace(
            row,
            manifest="",
            line=0,
            audio="",
            audio_path=row.audio_path.resolve(),
            is_outside_root=False,
            declared_seconds=None,
            declared_sample_rate_hz=None,
        )
        for row in rows
    ]


def write_lines(folder: Path, name: str, *lines: str) -> ManifestEntry:
    """A manifest of a format, together with the other files its folder needs."""
    file, header, _ = LINES[name]
    text = "".join(f"{line}\n" for line in (header, *lines) if line)
    (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    if name == "kaldi":
        (folder / "wav.scp").write_text("a a.wav\nb b.wav\n")
    return ManifestEntry(path=str(folder if name == "kaldi" else folder / file), format=name)


def row_of(name: str, clip_id: str) -> str:
    return LINES[name][2].replace("{}", clip_id, 1)


def message_of(*entries: ManifestEntry) -> str:
    with pytest.raises(UserError) as caught:
        read_manifests(entries)
    return str(caught.value)


# --- What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("forced", [False, True])
def test_each_example_has_the_rows_of_its_jsonl_twin(name: str, forced: bool) -> None:
    entry = entry_of(name, format=name if forced else "auto")
    rows = read_manifests([entry]).rows
    twin = read_manifests([str(MANIFESTS / name / "twin.jsonl")]).rows
    if name in ("audiofolder", "filelist", "ms-swift", "nemo"):
        assert [row.clip_id for row in rows] == [row.clip_id for row in twin]
    assert nowhere(rows) == nowhere(twin)
    assert all(row.audio_path.is_file() for row in rows)


def test_every_format_has_an_example_and_a_line_in_the_readme() -> None:
    table = (MANIFESTS / "README.md").read_text()
    assert {*EXAMPLES, "jsonl", "parquet"} == set(READERS)
    assert all(f"| `{name}` |" in table for name in READERS)
    assert all(row.audio_path.is_file() for row in read_example_of_jsonl())


def read_example_of_jsonl() -> tuple[Row, ...]:
    return tuple(read_manifests([str(MANIFESTS / "jsonl" / "manifest.jsonl")]).rows)


def test_a_parquet_manifest_has_the_rows_of_its_csv_source(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(MANIFESTS / "csv" / "manifest.csv")
    pq.write_table(table, tmp_path / "m.parquet")
    entry = ManifestEntry(path=str(tmp_path / "m.parquet"), root=str(MANIFESTS / "csv"))
    rows = read_manifests([entry]).rows
    assert [row.line for row in rows] == [1, 2, 3]
    assert nowhere(rows) == nowhere(read_manifests([entry_of("csv")]).rows)


@pytest.mark.parametrize("name", LINES)
def test_the_format_of_a_plain_file_is_detected(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path, name, row_of(name, "a")).path
    assert detect(path, {}) == name


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("m.tsv.gz", "klang\twort", "tsv"),
        ("m.txt", "a.wav\tSay a.wav, b.wav, too.", "tsv"),
        ("m.txt", "a.wav,Say b.wav;c.wav", "csv"),
        ("m.jsonl", '{"text": "T.", "samples": [1]}', "jsonl"),
        ("m.json", '{"text": "T.", "samples": [1]}', "folder"),
    ],
)
def test_the_format_of_a_file_is_told_by_its_name_and_first_line(
    tmp_path: Path, name: str, line: str, expected: str
) -> None:
    (tmp_path / name).write_text(f"{line}\n")
    assert detect(str(tmp_path / name), {}) == expected


@pytest.mark.parametrize("line", ["a|ada|en|What is said.", "file_name|text"])
def test_a_list_with_bars_is_one_of_files_by_its_fields_or_header(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "m.list").write_text(f"{line}\n")
    assert detect(str(tmp_path / "m.list"), {}) == "filelist"


def test_the_format_is_detected_without_a_telling_file_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"audio": ["a.wav"], "text": ["A."]}), tmp_path / "part-0")
    assert detect(str(tmp_path / "part-0"), {}) == "parquet"
    (tmp_path / "metadata.jsonl").write_text(f"{row_of('audiofolder', 'a')}\n")
    assert detect(str(tmp_path), {}) == "audiofolder"


def test_a_csv_with_ids_finds_its_recordings_in_wavs(tmp_path: Path) -> None:
    tone(tmp_path / "wavs" / "a.flac", 1.0)
    (tmp_path / "m.csv").write_text("id,text\na,A.\n")
    (row,) = read_manifests([str(tmp_path / "m.csv")]).rows
    assert (row.clip_id, row.audio, row.text) == ("a", "wavs/a.flac", "A.")


def test_kaldi_durations_become_declared_durations(tmp_path: Path) -> None:
    entry = write_lines(tmp_path, "kaldi", "a T.", "b T.")
    (tmp_path / "utt2dur").write_text("a 1.25\n")
    rows = read_manifests([entry]).rows
    assert [row.declared_seconds for row in rows] == [1.25, None]


def test_an_ms_swift_recognition_sample_uses_the_answer_as_text(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<audio>What is said?"}]
    messages.append({"role": "assistant", "content": "Good day."})
    line = {"messages": messages, "audios": ["a.wav"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    (row,) = read_manifests([str(tmp_path / "m.jsonl")]).rows
    assert (row.audio, row.text) == ("a.wav", "Good day.")


def test_an_ms_swift_text_is_without_its_marks(tmp_path: Path) -> None:
    line = row_of("ms-swift", "a")
    entry = write_lines(tmp_path, "ms-swift", line.replace("<audio>", "<audio><think>"))
    assert [row.text for row in read_manifests([entry]).rows] == ["T."]
    entry = write_lines(tmp_path, "ms-swift", line.replace("<audio>", "<audio><audio>"))
    assert has_line_with(message_of(entry), "m.jsonl:1", "`messages`")


@pytest.mark.parametrize(
    ("cut_start", "start", "duration", "expected"),
    [
        (10.0, 0.5, 2.0, {"start_seconds": 10.5, "end_seconds": 12.5}),
        (10.0, -0.0005, 4.0, {"start_seconds": 9.9995, "end_seconds": 13.9995}),
        (0.0, 0.0, 4.0, {"start_seconds": 0.0, "end_seconds": 4.0}),
        (16.0, 0.0, 4.0, {"start_seconds": 16.0, "end_seconds": 20.0}),  # to the recording's end
    ],
)
def test_the_segment_of_a_lhotse_cut_is_that_of_its_supervision(
    cut_start: float, start: float, duration: float, expected: dict[str, float]
) -> None:
    """Of a cut of 4 s in a recording of 20 s."""
    cut = json.loads(CUT)
    cut |= {"start": cut_start, "duration": 4.0}
    cut["supervisions"][0] |= {"start": start, "duration": duration}
    cut["recording"]["duration"] = 20.0
    found = toolkits._cut_fields(cut)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_a_lhotse_cut_of_the_whole_recording_has_its_length_and_no_segment() -> None:
    cut = json.loads(CUT)
    cut["duration"] = 1.0004
    cut["recording"]["sampling_rate"] = 16_000
    found = toolkits._cut_fields(cut)
    assert "start_seconds" not in found
    assert (found["duration_seconds"], found["sample_rate_hz"]) == (1.0, 16_000)


@pytest.mark.parametrize(
    ("fields", "columns", "start", "end"),
    [
        ({"start_seconds": 1500, "end_seconds": 2500}, {"start_seconds": "Start-ms"}, 1.5, 2500),
        ({"start_seconds": 15, "end_seconds": 25}, {"start_seconds": "streams"}, 15, 25),
        ({"start_seconds": 1.5, "duration_seconds": 2}, {"start_seconds": "offset"}, 1.5, 3.5),
        ({"start_seconds": 1.5, "duration_seconds": 2}, {}, 1.5, None),  # of the recording
        (
            {"start_seconds": 1.5, "end_seconds": 2, "duration_seconds": 9},
            {"start_seconds": "offset"},
            1.5,
            2,
        ),
    ],
)
def test_times_are_in_seconds_and_a_length_ends_a_segment(
    fields: dict[str, Any], columns: dict[str, str], start: float, end: float | None
) -> None:
    found = in_seconds(fields, columns)
    assert (found["start_seconds"], found.get("end_seconds")) == (start, end)


def test_only_minus_1_is_the_end_of_a_kaldi_recording() -> None:
    assert toolkits._kaldi_segment("rec1 1.5 -1") == ("rec1", {"start_seconds": 1.5})
    assert toolkits._kaldi_segment("rec1 1.5 -2")[1]["end_seconds"] == -2


def test_names_of_columns_are_compared_without_case_and_signs() -> None:
    assert standard(' "Audio-File_Path" ') == "audio_file_path"
    names = ["Audio", "wording", "TEXT"]
    assert columns_of(names, {"text": "wording"}) == {"text": "wording", "audio": "Audio"}
    assert columns_of(["audio", "sentence"], {"speaker": "sentence"}) == {"speaker": "sentence"}


def test_lhotse_cuts_may_be_zipped(tmp_path: Path) -> None:
    plain = (MANIFESTS / "lhotse" / "cuts.jsonl").read_bytes()
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(plain))
    entry = ManifestEntry(path=str(tmp_path / "cuts.jsonl.gz"), root=str(MANIFESTS / "lhotse"))
    assert nowhere(read_manifests([entry]).rows) == nowhere(
        read_manifests([entry_of("lhotse")]).rows
    )


def test_ljspeech_recordings_are_in_wavs_and_normalized_text_is_used(
    tmp_path: Path,
) -> None:
    tone(tmp_path / "wavs" / "a.flac", 1.0)
    (tmp_path / "metadata.csv").write_text("a|It was 5.|It was five.\nb|Raw.\n")
    first, second = read_manifests([str(tmp_path)]).rows
    assert (first.audio, first.text) == ("wavs/a.flac", "It was five.")
    assert (second.audio, second.text) == ("wavs/b.wav", "Raw.")


def test_a_folder_of_recordings_and_transcripts_is_a_manifest(tmp_path: Path) -> None:
    for name in "ba":
        tone(tmp_path / f"{name}.wav", 1.0)
        (tmp_path / f"{name}.txt").write_text(f"{name}!\n")
    rows = read_manifests([ManifestEntry(path=str(tmp_path), speaker="s")]).rows
    assert [(row.clip_id, row.text, row.speaker) for row in rows] == [
        ("a", "a!", "s"),
        ("b", "b!", "s"),
    ]
    assert rows[0].place == f"{tmp_path / 'a.txt'}:1"


def test_a_quoted_csv_field_may_contain_commas_quotes_and_newlines(tmp_path: Path) -> None:
    lines = [b"audio,text", b'a.wav,"Well, ""yes"",', b"", b'no."', b"b.wav,B.", b""]
    (tmp_path / "m.csv").write_bytes(b"\r\n".join(lines))
    rows = read_manifests([str(tmp_path / "m.csv")]).rows
    assert [row.text for row in rows] == ['Well, "yes",\r\n\r\nno.', "B."]
    assert [row.line for row in rows] == [2, 5]


def test_quotes_in_tsv_are_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text('audio\ttext\na.wav\t"Hello," he said.\n')
    assert read_manifests([str(tmp_path / "m.tsv")]).rows[0].text == '"Hello," he said.'


def test_columns_map_our_keys_to_names_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav", "said": "A.", "text": "no", "x": 1}\n')
    columns = {"audio": "path", "text": "said"}
    manifest = read_manifests([ManifestEntry(path=str(tmp_path / "m.jsonl"), columns=columns)])
    assert (manifest.rows[0].audio, manifest.rows[0].text) == ("a.wav", "A.")
    assert manifest.ignored_keys == {"x": 1}
    assert manifest.notes == ()


def test_several_manifests_have_their_own_root_speaker_language_and_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"audio": "a.wav", "text": "A."}\n')
    (tmp_path / "b.csv").write_text("audio,text,speaker\nb.wav,B.,own\nc.wav,C.,\n")
    options = {"speaker": "s", "language": "de", "split": "eval", "root": "/far"}
    rows = read_manifests(
        [str(tmp_path / "a.jsonl"), ManifestEntry(path=str(tmp_path / "b.csv"), **options)]
    ).rows
    assert [row.speaker for row in rows] == [None, "own", "s"]
    assert [row.split for row in rows] == [None, "eval", "eval"]
    assert [str(row.audio_path) for row in rows] == [
        str(tmp_path / "a.wav"),
        "/far/b.wav",
        "/far/c.wav",
    ]


def test_segments_of_one_file_get_different_default_ids(tmp_path: Path) -> None:
    lines = [
        {"audio_filepath": "a.wav", "text": "A.", "offset": o, "duration": 2.2} for o in (0, 1.1)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_manifests([str(tmp_path / "m.jsonl")]).rows
    assert [row.clip_id for row in rows] == ["a_0.0-2.2", "a_1.1-3.3"]
    assert [(row.start_seconds, row.end_seconds) for row in rows] == [(0, 2.2), (1.1, 3.3)]
    assert [row.declared_seconds for row in rows] == [None, None]  # it was the span's


# --- Dialogues ------------------------------------------------------------------------------------

TURNS = "audio,text,dialogue_id,turn\na.wav,A.,d,1\nb.wav,B.,d,2\nc.wav,C.,,\n"


@pytest.mark.parametrize("name", ["jsonl", "csv", "tsv", "parquet"])
def test_every_table_format_can_have_dialogue_turns(tmp_path: Path, name: str) -> None:
    table = pyarrow.csv.read_csv(pa.BufferReader(TURNS.encode()))
    lines = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
    path = tmp_path / f"m.{name}"
    if name == "parquet":
        pq.write_table(table, path)
    elif name == "jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text(TURNS.replace(",", "\t") if name == "tsv" else TURNS)
    rows = read_manifests([str(path)]).rows
    assert [(row.dialogue_id, row.turn) for row in rows] == [("d", 1), ("d", 2), (None, None)]


def test_columns_can_map_dialogue_id_and_turn(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("audio,text,talk,no\na.wav,A.,d,0\n")
    columns = {"dialogue_id": "talk", "turn": "no"}
    (row,) = read_manifests([ManifestEntry(path=str(tmp_path / "m.csv"), columns=columns)]).rows
    assert (row.dialogue_id, row.turn) == ("d", 0)


def test_the_example_of_a_dialogue_has_three_turns() -> None:
    rows = read_manifests([str(MANIFESTS / "jsonl" / "dialogue.jsonl")]).rows
    assert [(row.dialogue_id, row.turn) for row in rows] == [("glasses", i) for i in range(3)]
    assert all(row.audio_path.is_file() for row in rows)


def test_integers_stored_as_floats_in_a_column_with_gaps_are_read(tmp_path: Path) -> None:
    """Table libraries turn integers into floats if a column has gaps."""
    columns = {"audio": ["a.wav", "b.wav"], "text": ["A.", "B."], "dialogue_id": ["d", None]}
    pq.write_table(pa.table(columns | {"turn": [3.0, None]}), tmp_path / "m.parquet")
    rows = read_manifests([str(tmp_path / "m.parquet")]).rows
    assert [row.turn for row in rows] == [3, None]


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ({"turn": 1}, ("`dialogue_id`", "`turn`")),
        ({"dialogue_id": "d"}, ("`dialogue_id`", "`turn`")),
        ({"dialogue_id": "d", "turn": "1"}, ("`turn`", "0", '"1"')),
        ({"dialogue_id": "d", "turn": 1.5}, ("`turn`", "0", "1", "5")),
        ({"dialogue_id": "d", "turn": -1}, ("`turn`", "0", "1")),
        ({"dialogue_id": "d", "turn": 1e30}, ("`turn`", "0", "1", "30")),
        ({"dialogue_id": "d", "turn": True}, ("`turn`", "0")),
        ({"dialogue_id": "d", "turn": 10**300}, ("`turn`", "0", "1000")),
        ({"dialogue_id": 7, "turn": 1}, ("`dialogue_id`", "7")),
    ],
)
def test_an_invalid_turn_is_a_fault(
    tmp_path: Path, values: dict[str, Any], tokens: tuple[str, ...]
) -> None:
    row = {"audio": "a.wav", "text": "A.", **values}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    message = message_of(ManifestEntry(path=str(tmp_path / "m.jsonl")))
    assert has_line_with(message, "m.jsonl:1", *tokens)


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_a_missing_manifest_is_named(tmp_path: Path, name: str) -> None:
    message = message_of(ManifestEntry(path=str(tmp_path / "none"), format=name))
    assert str(tmp_path / "none") in message
    assert "does not exist" in message


@pytest.mark.parametrize("name", LINES)
def test_an_empty_manifest_is_a_fault(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path, name)
    assert "the manifest is empty" in message_of(write_lines(tmp_path, name))


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path, name: str) -> None:
    entry = write_lines(tmp_path, name, row_of(name, "a"), row_of(name, "b") + "\udcff")
    line = 3 if LINES[name][1] else 2
    assert f"{LINES[name][0]}:{line}: not UTF-8 (byte " in message_of(entry)


@pytest.mark.parametrize("name", LINES)
def test_a_duplicate_id_is_named_with_both_places(tmp_path: Path, name: str) -> None:
    message = message_of(write_lines(tmp_path, name, row_of(name, "a"), row_of(name, "a")))
    first = 2 if LINES[name][1] else 1
    assert f"{LINES[name][0]}:{first + 1}: " in message
    assert "'a' is taken by " in message
    assert f"{LINES[name][0]}:{first}" in message


@pytest.mark.parametrize(
    ("name", "line", "tokens"),
    [
        ("csv", 'b,"b.wav"x,T.', ("m.csv:3",)),
        ("csv", "b,b.wav", ("m.csv:3", "2", "3")),
        ("tsv", "b\tb.wav\tT.\tmore", ("m.tsv:3", "4", "3")),
        ("csv", "b,,T.", ("m.csv:3", "`audio`")),
        ("csv", "b,b.wav,T." + 1000 * ",", ("m.csv:3", "1,003", "1,000")),
        ("ljspeech", "b", ("metadata.csv:2", "1", "3")),
        ("ljspeech", "b|T.|T.|more", ("metadata.csv:", "4", "3")),
        ("filelist", "b.wav|s|T.", ("m.list:2", "3", "4")),
        ("kaldi", "c T.", ("text:2", "'c'", "wav.scp")),
        ("nemo", "{", ("m.jsonl:2", "JSON")),
        ("nemo", '{"audio_filepath": "b.wav"}', ("m.jsonl:2", "'text'")),
        ("nemo", '{"text": "T."}', ("m.jsonl:2", "'audio'")),
        (
            "nemo",
            '{"audio_filepath": "b.wav", "text": "T.", "offset": "1", "duration": 1}',
            ("m.jsonl:2", "`offset`", "`duration`"),
        ),
        ("lhotse", "[]", ("m.jsonl:2", "JSON")),
        ("lhotse", '{"id": "b"}', ("m.jsonl:2",)),
        ("lhotse", CUT.replace("MonoCut", "MultiCut"), ("m.jsonl:2", "MonoCut")),
        ("lhotse", CUT.replace("[0]", "[0, 1]"), ("m.jsonl:2",)),
        (
            "lhotse",
            CUT.replace('"recording": {', '"recording": {"transforms": [1], '),
            (":2", "transf"),
        ),
        ("lhotse", CUT.replace('[{"start": 0.0', '[{"start": 0.5'), ("m.jsonl:2", "outside")),
        ("lhotse", CUT.replace('[{"start": 0.0', '[{"start": -0.5'), ("m.jsonl:2", "outside")),
        ("lhotse", CUT.replace('"T."', "7"), ("m.jsonl:2", "`text`", "7")),
        ("lhotse", CUT.replace('"T."', "null"), ("m.jsonl:2", "'text'")),
        ("audiofolder", '{"file_name": 3, "text": "T."}', ("`audio`", "3")),
        ("audiofolder", '{"file_name": "b.wav"}', (":2", "'text'")),
        ("ms-swift", '{"messages": [], "audios": ["b.wav"]}', ("m.jsonl:2", "`messages`")),
        (
            "ms-swift",
            '{"messages": [{"role": "system", "content": "<audio>"}, '
            '{"role": "assistant", "content": "T."}], "audios": ["b.wav"]}',
            ("m.jsonl:2", "`messages`"),
        ),
        (
            "ms-swift",
            '{"messages": [{"role": "assistant", "content": "<audio>T."}], "audios": [1]}',
            ("m.jsonl:2", "`audio`", "1"),
        ),
        (
            "jsonl",
            '{"audio": "b.wav", "text": "T.", "start_seconds": "1"}',
            ("`start_seconds`", '"1"'),
        ),
        (
            "jsonl",
            '{"audio": "b.wav", "text": "T.", "start_seconds": -1}',
            ("`start_seconds`", "1"),
        ),
        (
            "jsonl",
            '{"audio": "b.wav", "text": "T.", "start_seconds": 2, "end_seconds": 2}',
            ("`end_seconds`", "`start_seconds`", "2", "2"),
        ),
    ],
)
def test_a_line_that_is_not_a_row_is_a_fault_with_its_place(
    tmp_path: Path, name: str, line: str, tokens: tuple[str, ...]
) -> None:
    assert has_line_with(message_of(write_lines(tmp_path, name, row_of(name, "a"), line)), *tokens)


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({"segments": "a a 0 x\nb b 0 1\n"}, ("segments:1",)),
        ({"segments": "a c 0 1\nb b 0 1\n"}, ("segments:1",)),
        ({"segments": "a a 0 1\n"}, ("text:2", "'b'")),
        ({"utt2spk": "a s\n"}, ("text:2", "'b'", "utt2spk")),
        ({"wav.scp": "a a.wav\nb sox b.sph - |\n"}, ("wav.scp:2", "'b'")),
        ({"wav.scp": "a a.wav\nb b.wav\nc c.wav\n"}, ("wav.scp:3", "'c'")),
        ({"utt2spk": "a s\nb t\na t\n"}, ("utt2spk:3", "'a'")),
    ],
)
def test_the_files_of_a_kaldi_folder_must_agree(
    tmp_path: Path, files: dict[str, str], tokens: tuple[str, ...]
) -> None:
    entry = write_lines(tmp_path, "kaldi", "a T.", "b T.")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert has_line_with(message_of(entry), *tokens)


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("{", ("metadata.json", "JSON")),
        ("[]", ("metadata.json", "`samples`")),
        ('{"samples": []}', ("empty",)),
        ('{"samples": [3]}', ("metadata.json:1", "JSON", "1")),
        ('{"samples": [{"audio_file": "a.wav"}]}', ("metadata.json:1", "'text'")),
        (
            '{"samples": [{"transcript_file": "a.txt"}]}',
            ("metadata.json:1", "'audio'"),
        ),
        ('{"samples": [{"transcript_file": 3}]}', ("metadata.json:1", "`transcript_file`")),
        ('{"samples": [{"transcript_file": "c.txt"}]}', ("c.txt",)),
        ('{"samples": [{"transcript_file": "latin.txt"}]}', ("latin.txt", "UTF-8", "2")),
        ('{"samples": [{"transcript_file": "cut.txt"}]}', ("cut.txt", "gzip")),
        ('{"samples": [{"transcript_file": "a.txt/b.txt"}]}', ("a.txt/b.txt", "Not a directory")),
        ('{"samples": [{"transcript_file": "a\\u0000.txt"}]}', ("metadata.json:1", "file name")),
        (
            '{"samples": [{"id": 1, "audio_file": "a.wav", "transcript_file": "a.txt"}]}',
            ("metadata.json:1", "`id`", "1"),
        ),
        (
            '{"samples": [{"audio_file": "a.wav", "transcript_file": "a.txt"},'
            ' {"audio_file": "a.wav", "transcript_file": "a.txt"}]}',
            ("metadata.json:2", "'a'"),
        ),
    ],
)
def test_a_fault_in_a_folder_is_named(
    tmp_path: Path, content: str | None, tokens: tuple[str, ...]
) -> None:
    (tmp_path / "a.txt").write_text("A.")
    (tmp_path / "latin.txt").write_bytes(b"M\xfcller")
    (tmp_path / "cut.txt").write_bytes(gzip.compress(b"A.")[:-4])
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"")
    if content is not None:
        (tmp_path / "metadata.json").write_text(content)
    assert has_line_with(message_of(ManifestEntry(path=str(tmp_path))), *tokens)


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [
        ({"audio": ["a.wav"]}, ("m.parquet", "'text'")),
        ({"a": ["a.wav"] * 2, "b": ["A."] * 2}, ("m.parquet:1", "'audio' or 'text'", "'a', 'b'")),
        ({"audio": ["a.wav", "b.wav"], "text": ["A.", None]}, (":2", "'text'")),
        ({"audio": ["a.wav"], "text": [7]}, ("m.parquet:1", "`text`", "7")),
        (
            {"audio": [{"bytes": b"x"}], "text": ["A."]},
            ("m.parquet", "'audio'"),
        ),  # nowhere to write
        ({"audio": ["a.wav"] * 2, "text": ["A."] * 2}, (":2", "'a'")),
        ({str(number): [1] for number in range(1001)}, ("m.parquet", "1,001", "1,000")),
        ({"audio": pa.array([], pa.string()), "text": pa.array([], pa.string())}, ("empty",)),
    ],
)
def test_a_fault_in_a_parquet_file_is_named(
    tmp_path: Path, columns: dict[str, Any], tokens: tuple[str, ...]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert has_line_with(message_of(ManifestEntry(path=str(tmp_path / "m.parquet"))), *tokens)


def test_a_duplicate_column_is_named(tmp_path: Path) -> None:
    names = ["audio", "text", "text"]
    columns = [pa.array([value]) for value in ("a.wav", "A.", "B.")]
    pq.write_table(pa.table(columns, names), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("audio,text,text\na.wav,A.,B.\n")
    message = message_of(
        *(ManifestEntry(path=str(tmp_path / f"m.{e}")) for e in ("parquet", "csv"))
    )
    assert has_line_with(message, "m.parquet", "'text'", "twice")
    assert has_line_with(message, "m.csv:1", "'text'", "twice")


def test_a_parquet_column_with_too_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_COLUMN_BYTES", 1000)
    pq.write_table(pa.table({"audio": ["a.wav"], "text": ["A" * 2000]}), tmp_path / "m.parquet")
    message = message_of(ManifestEntry(path=str(tmp_path / "m.parquet")))
    assert has_line_with(message, "m.parquet", "'text'", "1,000")
    table = pa.table({"audio": ["a.wav"], "text": ["A."], "not read": ["A" * 2000]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert len(read_manifests([str(tmp_path / "m.parquet")]).rows) == 1


def test_more_rows_than_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROWS", 2)
    entry = write_lines(tmp_path, "jsonl", *(row_of("jsonl", name) for name in "abc"))
    assert has_line_with(message_of(entry), "m.jsonl", "2 rows")
    entry = write_lines(tmp_path, "jsonl", *(row_of("jsonl", name) for name in "ab"))
    assert len(read_manifests([entry]).rows) == 2


def test_a_json_array_with_too_many_characters_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_JSON_BYTES", 60)
    (tmp_path / "m.json").write_text(f"[{row_of('boson-chatml', 'a')}]".replace(",", ",\n"))
    entry = ManifestEntry(path=str(tmp_path / "m.json"), format="boson-chatml")
    assert has_line_with(message_of(entry), "m.json", "60 characters")


def test_an_impossible_file_name_is_a_fault(tmp_path: Path) -> None:
    entry = ManifestEntry(path=str(tmp_path / "a\0b"))
    assert has_line_with(message_of(entry), "a\\x00b", "name")


HUB_ROWS = {
    "audio": [
        {"bytes": b"one", "path": "84/a b.wav"},
        {"bytes": b"two", "path": None},
        {"bytes": None, "path": "c.wav"},
        {"bytes": b"", "path": "d.wav"},
    ],
    "sentence": ["A.", "B.", "C.", "D."],
    "client_id": ["ada", "ben", "ada", "ben"],
}


def test_recordings_inside_parquet_become_files_named_by_their_hash(tmp_path: Path) -> None:
    corpus, folder = tmp_path / "corpus", tmp_path / "embedded"
    corpus.mkdir()
    pq.write_table(pa.table(HUB_ROWS), corpus / "m.parquet")
    rows = read_manifests([str(corpus / "m.parquet")], folder).rows
    names = [f"{hashlib.sha256(b'one').hexdigest()[:16]}-a_b.wav"]
    names += [f"{hashlib.sha256(b'two').hexdigest()[:16]}-audio"]
    assert [row.audio_path for row in rows] == [
        *(folder / name for name in names),
        corpus / "c.wav",
        corpus / "d.wav",
    ]
    assert [(folder / name).read_bytes() for name in names] == [b"one", b"two"]
    assert [row.clip_id for row in rows] == [*(Path(name).stem for name in names), "c", "d"]
    assert [(row.text, row.speaker) for row in rows] == [
        ("A.", "ada"),
        ("B.", "ben"),
        ("C.", "ada"),
        ("D.", "ben"),
    ]
    assert not any(row.is_outside_root for row in rows)


def test_a_recording_inside_parquet_is_written_once(tmp_path: Path) -> None:
    pq.write_table(pa.table(HUB_ROWS), tmp_path / "m.parquet")
    before: list[tuple[str, int]] = []
    for _ in range(2):
        read_manifests([str(tmp_path / "m.parquet")], tmp_path / "embedded")
        found = sorted(
            (path.name, path.stat().st_mtime_ns) for path in (tmp_path / "embedded").iterdir()
        )
        assert before in ([], found)
        before = found
    assert len(before) == 2
    (cut,) = (tmp_path / "embedded").glob("*-a_b.wav")
    cut.write_bytes(b"o")
    read_manifests([str(tmp_path / "m.parquet")], tmp_path / "embedded")
    assert cut.read_bytes() == b"one"


def test_a_recording_no_longer_in_the_parquet_file_is_removed(tmp_path: Path) -> None:
    config = write_stage_config(tmp_path / "c.json", manifest=str(tmp_path / "m.parquet"), data={})
    rows = tmp_path / "data/rows.parquet"
    (rows.parent / "embedded").mkdir(parents=True)
    (rows.parent / "embedded/notes.txt").touch()
    for table in (pa.table(HUB_ROWS), pa.table(HUB_ROWS).slice(1)):
        pq.write_table(table, tmp_path / "m.parquet")
        list_rows.run(config, rows, tmp_path / "data/recordings")
    kept = f"{hashlib.sha256(b'two').hexdigest()[:16]}-audio"
    assert {path.name for path in (rows.parent / "embedded").iterdir()} == {kept, "notes.txt"}


def test_a_recording_inside_parquet_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table(HUB_ROWS), tmp_path / "m.parquet")
    (tmp_path / "embedded").write_text("a file, not a folder")
    with pytest.raises(UserError) as caught:
        read_manifests([str(tmp_path / "m.parquet")], tmp_path / "embedded")
    assert has_line_with(str(caught.value), "m.parquet:1, ", "m.parquet:2", "embedded")


@pytest.mark.slow
def test_recordings_inside_parquet_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    recording = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    content = np.random.default_rng(0).bytes(2**20)
    schema = pa.schema([("audio", recording), ("text", pa.string())])
    cells = [{"bytes": i.to_bytes(4, "big") + content, "path": f"{i}.wav"} for i in range(200)]
    table = pa.table({"audio": cells, "text": ["A."] * 200}, schema)
    # One group of rows, in pages of four: a page is the least that can be read.
    pq.write_table(table, tmp_path / "m.parquet", use_dictionary=False, write_batch_size=4)
    program = (
        f"{IMPORT_PEAK}; from pathlib import Path\n"
        "from higgs_pipe.data.manifests.reading import read_manifests\n"
        "before = peak_bytes()\n"
        "print(len(read_manifests([sys.argv[1]], Path(sys.argv[2])).rows))\n"
        "print((peak_bytes() - before) // 2**20)\n"
    )
    words = [str(tmp_path / "m.parquet"), str(tmp_path / "embedded")]
    run = subprocess.run(
        [sys.executable, "-c", program, *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    num_rows, num_mib = map(int, run.stdout.split())
    assert num_rows == 200
    assert num_mib < 100  # of 200


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 no table PAR1"])
def test_a_parquet_file_with_other_content_is_a_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.parquet").write_bytes(content)
    assert "not a readable Parquet file" in message_of(
        ManifestEntry(path=str(tmp_path / "m.parquet"))
    )


def test_an_unrecognised_manifest_names_the_formats_tried(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Buy milk.\n")
    message = message_of(ManifestEntry(path=str(tmp_path / "notes.txt")))
    assert "notes.txt: the manifest fits no format; looked for a JSON object" in message
    assert "`path|speaker|language|text`" in message


def test_a_mapped_column_that_no_row_has_is_a_fault(tmp_path: Path) -> None:
    entry = write_lines(tmp_path, "csv", row_of("csv", "a"))
    message = message_of(entry.model_copy(update={"columns": {"speaker": "spk"}}))
    assert "m.csv: no row has 'spk', which `columns` names as speaker" in message


def test_a_column_mapping_for_a_format_without_columns_is_a_fault(tmp_path: Path) -> None:
    entry = write_lines(tmp_path, "kaldi", row_of("kaldi", "a"))
    message = message_of(entry.model_copy(update={"columns": {"text": "t"}}))
    assert has_line_with(message, str(tmp_path), "`columns`", "kaldi")


def test_faults_of_all_formats_come_in_one_error(tmp_path: Path) -> None:
    entries = []
    for name in ("jsonl", "csv", "filelist"):
        (tmp_path / name).mkdir()
        entries.append(write_lines(tmp_path / name, name, row_of(name, name), "?"))
    message = message_of(*entries)
    assert message.startswith("the manifest has 3 faults:")
    assert all(f"{tmp_path / name}/" in message for name in ("jsonl", "csv", "filelist"))


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            *(line.encode() for _, header, line in LINES.values() for line in (header, line)),
            *(b"\n", b'"', b"|", b"\t", b",", b"\x1f\x8b", b"PAR1", b"\xff\xfe", b'{"samples": [{'),
            *(
                b'"offset": NaN, ',
                b'"duration": 1e999, ',
                b"\\ud83d",
                b"\0",
                b"[" * 2000,
                b"a a 0 ",
            ),
        ]
    ),
)


@pytest.mark.parametrize("name", [*READERS, "auto"])
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.lists(PIECES, max_size=6).map(b"".join), min_size=4, max_size=4))
def test_arbitrary_bytes_raise_nothing_but_a_user_error(name: str, contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = {
            "kaldi": ["text", "wav.scp", "segments", "utt2spk"],
            "folder": ["metadata.json", "a.wav", "a.txt", "b.txt"],
            "auto": ["metadata.csv", "text", "wav.scp", "a.txt"],
        }.get(name, ["m.txt"])
        for file, content in zip(names, contents, strict=False):
            (Path(folder) / file).write_bytes(content)
        paths = [folder, *(str(Path(folder) / file) for file in names)]
        for path in paths:
            try:
                read_manifests([ManifestEntry(path=path, format=name)])
            except UserError as error:
                str(error).encode()


# --- The config and the workflow ------------------------------------------------------------------


def test_a_manifest_entry_may_be_an_object_and_its_strings_stay_strings() -> None:
    schema = ROOT / "workflow" / "schemas" / "config.schema.yaml"
    entry = {"path": "1", "speaker": "007", "columns": {"text": "2"}}
    models = {"base_model": "b", "codec": "c"}
    for manifest in (entry, [entry, "3"]):
        loaded = config_check.load_config({"manifest": manifest, **models}, schema)["manifest"]
        first = loaded[0] if isinstance(loaded, list) else loaded
        assert first == ManifestEntry(**entry).model_dump()
    bad = {"path": "m", "formt": "csv", "split": "test", "columns": {"txt": "a"}}
    with pytest.raises(UserError) as caught:
        config_check.load_config({"manifest": ["a", bad], **models}, schema)
    message = str(caught.value)
    assert "manifest.1.formt: unknown key; did you mean manifest.1.format?" in message
    assert "manifest.1.columns: must be one of id, audio, text" in message
    assert "manifest.1.split: must be" in message


def test_a_manifest_folder_stands_for_the_files_its_reader_reads(tmp_path: Path) -> None:
    for name in ("metadata.json", "x.wav", "sub/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    expected = [str(tmp_path / "metadata.json"), str(tmp_path / "sub" / "x.txt")]
    assert manifests.manifest_files({"manifest": {"path": str(tmp_path)}}) == expected
    assert manifests.manifest_files({"manifest": ["a", expected[0]]}) == ["a", *expected]


# --- Segments -------------------------------------------------------------------------------------


def run_validate(folder: Path, manifest: Any, **limits: float) -> tuple[list[Any], list[Any]]:
    """The clips and the rejected rows."""
    out = run_validation(
        folder,
        manifest=manifest,
        data={"num_shards": 1, "keep_text_together": False},
        validate={"max_rejected_fraction": 1, **limits},
    )
    return (
        read_table(out / "clips.parquet", CLIPS).to_pylist(),
        read_table(out / "rejected.parquet", REJECTED).to_pylist(),
    )


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    """A four-second recording, a file with only its second second, and a manifest of segments."""
    tone(tmp_path / "long.wav", 4.0)
    samples, rate = sf.read(tmp_path / "long.wav", dtype="int16")
    sf.write(tmp_path / "cut.wav", samples[rate : 2 * rate], rate)
    times: dict[str, Any] = {
        "second": (1, 2),
        "rest": (2.5, None),
        "over": (3, 4.5),
        "late": (9, None),
    }
    times |= {"brief": (1, 1.1), "whole": (None, None), "rounded": (3.2, 4.009)}
    rows: list[dict[str, Any]] = [{"id": "cut", "audio": "cut.wav", "text": "T.", "speaker": "s"}]
    rows += [
        {"id": name, "audio": "long.wav", "text": "T.", "speaker": "s"}
        | {"start_seconds": start, "end_seconds": end}
        for name, (start, end) in times.items()
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


def append_row(manifest: Path, **row: object) -> None:
    with manifest.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def append_unrelated(manifest: Path) -> None:
    """A recording that shares no audio with the others, so that both splits get clips."""
    samples, rate = sf.read(manifest.with_name("cut.wav"), dtype="int16")
    sf.write(manifest.with_name("other.wav"), samples[::-1] // 2, rate)
    append_row(manifest, id="other", audio="other.wav", text="T.", speaker="s")


def test_each_segment_is_measured_and_judged_on_its_own(segmented: Path) -> None:
    clips, rejected = run_validate(segmented.parent, str(segmented), max_clip_seconds=3)
    by_id = {clip["clip_id"]: clip for clip in clips}
    assert {i: clip["duration_seconds"] for i, clip in by_id.items()} == {
        "cut": 1.0,
        "second": 1.0,
        "rest": 1.5,
        "rounded": pytest.approx(0.8),
    }
    assert (by_id["rest"]["start_seconds"], by_id["rest"]["end_seconds"]) == (2.5, None)
    assert by_id["second"]["pcm_sha256"] == by_id["cut"]["pcm_sha256"]
    assert by_id["second"]["split"] == by_id["cut"]["split"]
    assert {row["clip_id"]: row["reason"] for row in rejected} == {
        "over": "segment_outside",
        "late": "segment_outside",
        "brief": "too_short",
        "whole": "too_long",
    }
    over = next(row["message"] for row in rejected if row["clip_id"] == "over")
    assert "from 3.000 s to 4.500 s" in over
    assert "4.000 s;" in over


def test_codes_of_a_segment_match_those_of_a_cut_out_file(segmented: Path, tiny_base: Path) -> None:
    folder = segmented.parent
    append_unrelated(segmented)
    run_validate(folder, str(segmented))
    codes = folder / "codes.parquet"
    config = write_stage_config(folder / "t.json", codec=str(tiny_base / miniature.AUDIO_TOKENIZER))
    tokenize_audio.run(config, folder / "data" / "shards" / "shard-00000.parquet", codes)
    by_id = {row["clip_id"]: row for row in read_table(codes, codes_spec(8)).to_pylist()}
    assert by_id["second"]["codes"] == by_id["cut"]["codes"]
    assert by_id["whole"]["num_frames"] == 100
    assert by_id["second"]["codes"] != by_id["whole"]["codes"][:25]


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_decoded_segment_equals_that_part_of_the_whole(tmp_path: Path, ending: str) -> None:
    path = tone(tmp_path / f"a.{ending}", 3.0)
    part = decode(path, 0.7, 1.9)
    assert np.array_equal(part.samples, decode(path).samples[16_800:45_600])


def test_a_reference_containing_the_target_segment_is_rejected(segmented: Path) -> None:
    append_unrelated(segmented)
    row = {"audio": "long.wav", "text": "T.", "start_seconds": 1, "end_seconds": 2}
    append_row(segmented, **row, ref_audio="long.wav", ref_text="R.")
    _, rejected = run_validate(segmented.parent, str(segmented))
    assert rejected[-1]["reason"] == "reference_is_target"


def test_a_config_with_every_example_passes_validation(tmp_path: Path) -> None:
    for name in EXAMPLES:
        entry = entry_of(name).model_dump()
        clips, rejected = run_validate(tmp_path / name, [entry])
        assert len(clips) >= 2
        assert rejected == []
