"""Folders as found in practice: every file becomes a row or is counted as left out."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from helpers import has_line_with

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.manifests import source
from higgs_pipe.data.manifests.formats.samples import FilesBelow
from higgs_pipe.data.manifests.paths import meant_path
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row_table import ManifestRows, write_rows
from higgs_pipe.errors import UserError
from higgs_pipe.planning import manifests


def fill(folder: Path, *names: str) -> Path:
    """Write files; the text of a transcript contains its own file name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {path.name}.", encoding="utf-8")
    return folder


def read(folder: Path, **options: Any) -> ManifestRows:
    return read_manifests([ManifestEntry.model_validate({"path": str(folder), **options})])


def message_of(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    return str(caught.value)


def facts(folder: Path) -> list[tuple[str, str, str | None]]:
    return [(row.clip_id, row.text, row.speaker) for row in read(folder).rows]


def test_pairs_in_a_subfolder_get_its_name_as_speaker(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{s}/{n}.{e}" for s in ("ada", "ben") for n in "xy" for e in ("wav", "txt")))
    fill(tmp_path, "z.flac", "z.txt")
    assert facts(tmp_path) == [
        ("ada/x", "This is x.txt.", "ada"),
        ("ada/y", "This is y.txt.", "ada"),
        ("ben/x", "This is x.txt.", "ben"),
        ("ben/y", "This is y.txt.", "ben"),
        ("z", "This is z.txt.", None),
    ]
    assert read(tmp_path).rows[0].audio_path == tmp_path / "ada" / "x.wav"
    assert read(tmp_path).left_out == {}


@pytest.mark.parametrize(
    ("name", "speaker", "language"),
    [("en/ada/x", "ada", "en"), ("en/x", "en", None), ("ada/en/x", "ada", None)],
)
def test_a_folder_of_a_language_has_folders_of_speakers_in_it(
    tmp_path: Path, name: str, speaker: str, language: str | None
) -> None:
    fill(tmp_path, f"{name}.wav", f"{name}.txt")
    (row,) = read(tmp_path).rows
    assert (row.speaker, row.language) == (speaker, language)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["metadata.jsonl"], "JSON."),
        (["metadata.csv"], "CSV."),
        (["metadata.csv", "metadata.jsonl"], "JSON."),
    ],
)
def test_the_metadata_of_an_audiofolder_are_found(
    tmp_path: Path, names: list[str], text: str
) -> None:
    contents = {
        "metadata.jsonl": '{"file_name": "x.wav", "text": "JSON."}',
        "metadata.csv": "file_name,text\nx.wav,CSV.",
    }
    for name in names:
        (tmp_path / name).write_text(contents[name])
    assert facts(tmp_path) == [("x", text, None)]


def test_symlinks_do_not_change_the_speaker_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "mia/x.wav", "mia/x.txt")
    for name in ("ada", "ben", "tom", "zoe", "deep/ada"):  # a system lists them in any order
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "mia")
    assert facts(tmp_path) == [("mia/x", "This is x.txt.", "mia")]
    (tmp_path / "mia" / "loop").symlink_to("..")
    assert len(facts(tmp_path)) == 1


def test_a_recording_and_its_transcript_may_differ_in_unicode_normalization(tmp_path: Path) -> None:
    decomposed = "cafe\u0301"
    folder = fill(tmp_path / decomposed, f"ada/{decomposed}.wav")
    (folder / "ada" / "caf\u00e9.txt").write_text("A cup.")
    assert facts(folder) == [("ada/caf\u00e9", "A cup.", "ada")]


def test_a_language_folder_around_speaker_folders_is_not_a_speaker(tmp_path: Path) -> None:
    fill(tmp_path, "en/ada/x.wav", "en/ada/x.txt", "de/ben/x.wav", "de/ben/x.txt")
    found = [(row.speaker, row.language) for row in read(tmp_path).rows]
    assert found == [("ben", "de"), ("ada", "en")]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("train/ada/s1/x.wav", "train/ada/s1/x.lab"), ("train/ada/s1/x", "ada")),  # fish-speech
        (("wav48/p225/x_1.flac", "txt/p225/x_1.txt"), ("wav48/p225/x_1", "p225")),  # VCTK
        (("wavs/x.wav", "transcripts/x.txt"), ("wavs/x", None)),
        (("84/121/x.flac", "84/121/x.normalized.txt"), ("84/121/x", "84")),  # LibriTTS
        (("clips/X.WAV", "clips/X.TXT"), ("clips/X", None)),
        (("x.m4a", "x.txt"), ("x", None)),
        (("ada/x.wav", "ada/x.wav.txt"), ("ada/x", "ada")),
    ],
)
def test_layouts_of_public_corpora_are_read(
    tmp_path: Path, files: tuple[str, str], expected: tuple[str, str | None]
) -> None:
    fill(tmp_path, *files)
    (row,) = read(tmp_path).rows
    assert (row.clip_id, row.speaker) == expected
    assert row.text == f"This is {Path(files[1]).name}."
    assert row.audio_path == tmp_path / files[0]


def test_librispeech_transcripts_are_read(tmp_path: Path) -> None:
    names = [f"84/121/84-121-000{i}.flac" for i in range(3)]
    fill(tmp_path, *names)
    lines = ["84-121-0000 GO ON", "84-121-0001 AS YOU LIKE", "84-121-0007 GONE"]
    (tmp_path / "84/121/84-121.trans.txt").write_text("\n".join(lines) + "\n")
    found = read(tmp_path)
    assert [(row.speaker, row.text, row.line) for row in found.rows] == [
        ("84", "GO ON", 1),
        ("84", "AS YOU LIKE", 2),
        ("84", "", 1),
    ]
    assert found.left_out == {
        "a transcript without a recording of its name": [f"{tmp_path}/84/121/84-121.trans.txt:3"]
    }
    assert str(tmp_path / "84/121/84-121.trans.txt") in manifests.manifest_files(
        {"manifest": str(tmp_path)}
    )


def test_a_configured_speaker_overrides_the_folder_name(tmp_path: Path) -> None:
    fill(tmp_path, "session one/x.wav", "session one/x.txt")
    (row,) = read(tmp_path, speaker="ada").rows
    assert row.speaker == "ada"


def test_a_second_transcript_of_a_recording_is_ignored_and_reported(tmp_path: Path) -> None:
    fill(tmp_path, "x.wav", "x.lab", "x.txt")
    assert facts(tmp_path) == [("x", "This is x.txt.", None)]
    left_out = {"a transcript of this name was taken": [f"{tmp_path}/x.lab"]}
    assert read(tmp_path).left_out == left_out


NOT_WORDS = {
    "0 3000000 sil\n3000000 6100000 hh\n": "labels with times",
    "0 46797 She had your dark suit.": "labels with times",
    "0.000000\t1.500000\tHello there.": "labels with times",
    "0.5\t1.5\tHello\n1.5\t2\t\n": "labels with times",
    "1\n00:00:00,000 --> 00:00:01,500\nHello.\n": "subtitles",
    "WEBVTT\n\n00:00.000 --> 00:01.500\nHello.": "subtitles",
    '{"text": "Hello.", "segments": []}': "JSON",
    'File type = "ooTextFile"\nObject class = "TextGrid"': "a TextGrid",
}
WORDS = (
    "0 800 is the number.",
    "10 20 thirty.",
    "1 2 3\n4 5 6.",
    "0 1234 5678",
    "2 to 1 --> won",
    "{braces} he said",
    "5 6 seven\n3 4 and five",
    "2 1 one\n3 2 two",
    "0 1 one\n1 2 two\nand three",
    "3.5 4.5",
)


def test_a_transcript_with_more_than_words_is_a_fault(tmp_path: Path) -> None:
    for number, text in enumerate(NOT_WORDS):
        fill(tmp_path, f"{number}.wav")
        (tmp_path / f"{number}.txt").write_text(text)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    for number, kind in enumerate(NOT_WORDS.values()):
        assert has_line_with(str(caught.value), f"{number}.txt", f"the transcript holds {kind}")


def test_a_transcript_with_too_many_bytes_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_TRANSCRIPT_BYTES", len("This is x.txt."))
    fill(tmp_path, "x.wav", "x.txt")
    assert [row.text for row in read(tmp_path).rows] == ["This is x.txt."]
    fill(tmp_path, "xy.wav", "xy.txt")
    assert has_line_with(message_of(tmp_path), f"the transcript {tmp_path}/xy.txt")


def test_a_transcript_may_hold_numbers(tmp_path: Path) -> None:
    for number, text in enumerate(WORDS):
        fill(tmp_path, f"{number}.wav")
        (tmp_path / f"{number}.txt").write_text(text)
    assert [row.text for row in read(tmp_path).rows] == list(WORDS)


def test_a_recording_without_a_transcript_is_a_row_without_text(tmp_path: Path) -> None:
    fill(tmp_path, "a.wav", "a.txt", "b.wav")
    assert [(row.clip_id, row.text) for row in read(tmp_path).rows] == [
        ("a", "This is a.txt."),
        ("b", ""),
    ]


def test_a_transcript_elsewhere_does_not_replace_the_one_beside_a_recording(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "wavs/x.wav", "wavs/x.txt", "txt/x.txt")
    found = read(tmp_path)
    assert [row.manifest for row in found.rows] == [str(tmp_path / "wavs/x.txt")]
    assert list(found.left_out.values()) == [[str(tmp_path / "txt/x.txt")]]


def test_a_transcript_that_two_recordings_may_have_is_taken_for_neither(tmp_path: Path) -> None:
    fill(tmp_path, "clips/x.wav", "wavs/x.wav", "txt/x.txt")
    assert facts(tmp_path) == [("clips/x", "", None), ("wavs/x", "", None)]
    assert list(read(tmp_path).left_out.values()) == [[str(tmp_path / "txt/x.txt")]]


def test_recordings_of_a_folder_are_not_below_another_root(tmp_path: Path) -> None:
    fill(tmp_path / "corpus", "x.wav", "x.txt")
    (row,) = read(tmp_path / "corpus", root=str(tmp_path / "other")).rows
    assert row.audio_path == tmp_path / "corpus/x.wav"


def test_files_left_out_of_several_folders_are_sorted(tmp_path: Path) -> None:
    folders = [fill(tmp_path / name, f"{name}.wav", "notes.pdf") for name in "ba"]
    (names,) = read_manifests(list(map(str, folders))).left_out.values()
    assert names == [str(tmp_path / name / "notes.pdf") for name in "ab"]


def test_files_without_a_row_are_listed_by_reason(tmp_path: Path) -> None:
    fill(tmp_path, "a.wav", "a.txt", "a.mp3", "b.txt", "notes.pdf", "._a.wav", "sub/c.TextGrid")
    left_out = read(tmp_path).left_out
    names = sorted(Path(name).name for files in left_out.values() for name in files)
    assert names == ["._a.wav", "a.mp3", "b.txt", "c.TextGrid", "notes.pdf"]
    assert [row.audio for row in read(tmp_path).rows] == ["a.wav"]


def test_hidden_folders_and_those_that_macos_adds_to_a_zip_are_not_read(tmp_path: Path) -> None:
    for folder in (".", ".trash", "__MACOSX"):
        fill(tmp_path / folder, f"{len(folder)}.wav", f"{len(folder)}.txt")
    found = read(tmp_path)
    assert [row.audio for row in found.rows] == ["1.wav"]
    assert found.left_out == {}


def test_of_two_files_of_one_name_the_compressed_one_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.flac", "a.mp3", "b.mp3", "b.wav", "a.txt", "b.txt")
    found = read(tmp_path)
    assert [row.audio for row in found.rows] == ["a.flac", "b.wav"]
    assert list(found.left_out.values()) == [[str(tmp_path / "a.mp3"), str(tmp_path / "b.mp3")]]


def test_symlinked_folders_are_read_once(tmp_path: Path) -> None:
    fill(tmp_path, "far/ada/x.wav", "far/ada/x.txt")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "ada").symlink_to(tmp_path / "far" / "ada")
    (tmp_path / "far" / "ada" / "loop").symlink_to(tmp_path / "far")
    assert [row.clip_id for row in read(tmp_path / "near").rows] == ["ada/x"]


def test_recordings_missing_from_the_metadata_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.wav", "b.wav", "more/c.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,A.\n")
    assert [row.audio for row in read(tmp_path).rows] == ["a.wav"]
    assert list(read(tmp_path).left_out.values()) == [
        [str(tmp_path / "b.wav"), str(tmp_path / "more" / "c.wav")]
    ]
    monkeypatch.chdir(tmp_path)
    assert list(read(Path()).left_out.values()) == [["b.wav", "more/c.wav"]]


def test_transcripts_of_every_kind_are_inputs_of_the_plan(tmp_path: Path) -> None:
    fill(tmp_path, "ada/x.wav", "ada/x.lab", "y.txt", "z.normalized.txt", "dev/metadata.csv")
    config = {"manifest": str(tmp_path)}
    planned = {Path(path).name for path in manifests.manifest_files(config)}
    assert planned >= {"x.lab", "y.txt", "z.normalized.txt", "metadata.csv"}


def test_metadata_in_a_subfolder_describes_only_that_subfolder(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.wav", "test/b.wav", "test/c.wav", "more/d.wav", "more/d.txt")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,transcription\na.wav,A.\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "b.wav", "text": "B."}\n')
    rows = read(tmp_path).rows
    assert [(row.clip_id, row.text) for row in rows] == [
        ("test/b", "B."),
        ("train/a", "A."),
        ("more/d", "This is d.txt."),
    ]
    assert rows[0].audio_path == tmp_path / "test" / "b.wav"
    assert list(read(tmp_path).left_out.values()) == [[str(tmp_path / "test" / "c.wav")]]


def test_references_in_a_subfolder_with_metadata_are_below_it(tmp_path: Path) -> None:
    fill(tmp_path, "one/a.wav", "one/r.wav", "two/b.wav", "two/b.txt")
    lines = ["file_name,text,ref_audio,ref_text", "a.wav,A.,r.wav,R."]
    (tmp_path / "one/metadata.csv").write_text("\n".join(lines))
    (tmp_path / "two/b.txt").write_text("[SPEAKER0] Hi. [SPEAKER1] Ho.")
    references = [{"ref_audio_file": f"{n}.wav", "ref_transcript": f"I am {n}."} for n in (0, 1)]
    entry = {"audio_file": "b.wav", "transcript_file": "b.txt", "ref_speakers": references}
    samples(tmp_path / "two", entry)
    first, second = read(tmp_path).rows
    assert first.ref_audio_path == tmp_path / "one/r.wav"
    heard = [utterance.recording.audio_path for utterance in second.utterances]
    assert heard == [str(tmp_path / f"two/{name}.wav") for name in "01b"]


def test_files_whose_names_are_not_utf8_can_be_counted_as_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "x.wav", "x.txt")
    for name in ("notes\udcff.pdf", "y\udce9.txt"):
        (tmp_path / name).touch()
    found = read(tmp_path)
    write_rows(tmp_path / "rows.parquet", found)
    names = [name for names in found.left_out.values() for name in names]
    assert sorted(names) == [rf"{tmp_path}/notes\xff.pdf", rf"{tmp_path}/y\xe9.txt"]


@pytest.mark.parametrize("named", [".", "metadata.json"])
def test_adding_a_recording_to_a_folder_changes_the_plan(tmp_path: Path, named: str) -> None:
    folders = [fill(tmp_path / "other", "z.wav"), fill(tmp_path / "own", "ada/x.wav", "ada/x.txt")]
    config = {"manifest": [str(folder / named) for folder in folders]}
    before = manifests.recordings_in_folders(config)
    fill(tmp_path / "own", "ada/x.wav", "notes.pdf")
    assert manifests.recordings_in_folders(config) == before
    fill(tmp_path / "own", "ada/y.wav")
    added = manifests.recordings_in_folders(config)
    (tmp_path / "own/ben").mkdir()
    (tmp_path / "own/ada/y.wav").rename(tmp_path / "own/ben/y.wav")
    assert len({before, added, manifests.recordings_in_folders(config)}) == 3


# --- Samples of the older trainers ----------------------------------------------------------------


def samples(folder: Path, *entries: dict[str, Any], name: str = "metadata.json") -> Path:
    (folder / name).write_text(json.dumps({"samples": list(entries)}, ensure_ascii=False))
    return folder


def test_metadata_at_the_root_finds_its_files_in_subfolders(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.wav", "train/a.txt", "eval/b.wav", "eval/b.txt")
    samples(
        tmp_path,
        *({"audio_file": f"{n}.wav", "transcript_file": f"{n}.txt"} for n in "ab"),
    )
    assert [(row.audio_path, row.text) for row in read(tmp_path).rows] == [
        (tmp_path / "train" / "a.wav", "This is a.txt."),
        (tmp_path / "eval" / "b.wav", "This is b.txt."),
    ]


def test_an_ambiguous_file_name_is_not_searched_for_in_subfolders(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.wav", "eval/a.wav", "a.txt")
    samples(tmp_path, {"audio_file": "a.wav", "transcript_file": "a.txt"})
    assert read(tmp_path).rows[0].audio_path == tmp_path / "a.wav"


def test_a_file_that_is_where_it_should_be_is_not_searched_for(tmp_path: Path) -> None:
    fill(tmp_path, "far/a.wav", "near/sub/a.wav")
    below = FilesBelow(tmp_path / "near")
    assert below.find(str(tmp_path / "far/a.wav")) == str(tmp_path / "far/a.wav")
    assert below.find("wavs/a.wav") == "sub/a.wav"


def test_a_reference_uses_the_transcript_next_to_it(tmp_path: Path) -> None:
    fill(tmp_path, "a.wav", "a.txt", "r.wav", "r.txt", "q.wav")
    entry = {"audio_file": "a.wav", "transcript_file": "a.txt"}
    samples(tmp_path, entry | {"ref_audio_file": "r.wav"})
    assert read(tmp_path).rows[0].ref_text == "This is r.txt."
    assert list(read(tmp_path).left_out.values()) == [[str(tmp_path / "q.wav")]]
    samples(tmp_path, entry | {"ref_audio_file": "q.wav"})
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert has_line_with(str(caught.value), "metadata.json:1", "`ref_audio_file`", "`ref_transcr")


def test_without_tags_the_reference_of_the_samples_speaker_is_used(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt")
    references = [
        {"speaker_id": s, "ref_audio_file": f"{s}.wav", "ref_transcript": f"I am {s}."}
        for s in ("ben", "ada")
    ]
    entry = {"audio_file": "a.wav", "transcript_file": "a.txt", "speaker_id": "ada"}
    samples(tmp_path, entry | {"ref_speakers": references})
    (row,) = read(tmp_path).rows
    assert (row.ref_audio_path, row.ref_text) == (tmp_path / "ada.wav", "I am ada.")


def test_a_unified_manifest_of_cloning_pairs_is_read(tmp_path: Path) -> None:
    entry = {"sample_id": "s1", "target_audio_path": "t.wav", "target_transcript": "T."}
    entry |= {"ref_audio_path": "r.wav", "ref_transcript": "R."}
    samples(tmp_path, entry, name="unified_manifest.json")
    (row,) = read(tmp_path / "unified_manifest.json").rows
    assert (row.clip_id, row.audio, row.text) == ("s1", "t.wav", "T.")
    assert (row.ref_audio_path, row.ref_text) == (tmp_path / "r.wav", "R.")


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        ("quiet_room", "Audio is recorded from quiet room."),
        ("Quiet_Room", "Audio is recorded from quiet room."),
        ("Outdoors", "Audio is recorded from outdoors."),
        ("studio", "Audio is recorded from studio."),
        ("a quiet room", "Audio is recorded from a quiet room."),
        ("phone-call", "Audio is recorded from phone call."),
        ("unknown", None),
        ("A quiet room.", "A quiet room."),
        ("SPEAKER0: low voice", "SPEAKER0: low voice"),
        ("安静的房间", "安静的房间"),
    ],
)
def test_a_scene_tag_becomes_the_sentence_used_in_training(
    tmp_path: Path, scene: str, expected: str | None
) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "a", "text": "A.", "scene": scene}))
    assert read(tmp_path / "m.jsonl").rows[0].scene == expected


# --- Paths and texts ------------------------------------------------------------------------------


def test_backslashes_in_a_path_are_slashes_unless_a_file_has_them(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "wavs/a.wav", "wavs/b.wav", "wavs\\b.wav")
    found = [meant_path(tmp_path, f"wavs\\{name}.wav") for name in "abc"]
    assert found == [tmp_path / "wavs/a.wav", tmp_path / "wavs\\b.wav", tmp_path / "wavs\\c.wav"]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_manifest", ["NFC", "NFD"])
def test_a_path_is_found_in_either_unicode_normalization(
    tmp_path: Path, on_disk: str, in_manifest: str
) -> None:
    name = unicodedata.normalize(on_disk, "Bäcker/Müller.wav")  # type: ignore[arg-type]
    fill(tmp_path, name)
    written = unicodedata.normalize(in_manifest, "Bäcker/Müller.wav")  # type: ignore[arg-type]
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"audio": written, "text": "A.", "ref_audio": written, "ref_text": "R."})
    )
    (row,) = read(tmp_path / "m.jsonl").rows
    assert row.audio_path == row.ref_audio_path == tmp_path / name


def test_a_path_with_mixed_normalization_and_backslashes_is_found(tmp_path: Path) -> None:
    name = f"{unicodedata.normalize('NFD', 'Bäcker')}/{unicodedata.normalize('NFC', 'Müller')}.wav"
    fill(tmp_path, name)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "Bäcker\\Müller.wav", "text": "A."}))
    assert read(tmp_path / "m.jsonl").rows[0].audio_path == tmp_path / name


def test_texts_and_names_become_nfc(tmp_path: Path) -> None:
    row = {"audio": "a.wav", "text": "Ja\u0308.", "speaker": "Jose\u0301", "ref_audio": "r.wav"}
    row |= {"ref_text": "No\u0308.", "scene": "Ein Cafe\u0301, abends."}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (found,) = read(tmp_path / "m.jsonl").rows
    assert (found.text, found.speaker, found.ref_text) == ("Jä.", "José", "Nö.")
    assert found.scene == "Ein Café, abends."
