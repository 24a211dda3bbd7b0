"""The validate stage: rows and recordings in, tables of clips out."""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from helpers import (
    REAL_SPEECH,
    ROOT,
    environment_with,
    has_line_with,
    judge_rows,
    needs_real_speech,
    run_validation,
    write_stage_config,
)

from higgs_pipe.data.audio import Audio, AudioFile
from higgs_pipe.data.clips.reasons import Reason
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.specs import CLIPS, REJECTED, SHARD_CLIPS
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError

DEMO = ROOT / "examples" / "demo" / "manifest.jsonl"
RATE = 16_000

Fields = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """What one run wrote."""

    folder: Path

    @property
    def clips(self) -> list[Fields]:
        rows: list[Fields] = read_table(self.folder / "clips.parquet", CLIPS).to_pylist()
        return rows

    @property
    def rejected(self) -> list[Fields]:
        rows: list[Fields] = read_table(self.folder / "rejected.parquet", REJECTED).to_pylist()
        return rows

    @property
    def summary(self) -> Fields:
        summary: Fields = json.loads((self.folder / "validation.json").read_text(encoding="utf-8"))
        return summary

    @property
    def references(self) -> list[Fields]:
        return [clip for clip in self.clips if clip["split"] == "reference"]

    def shard(self, number: int) -> list[Fields]:
        path = self.folder / "shards" / f"shard-{number:05d}.parquet"
        rows: list[Fields] = read_table(path, SHARD_CLIPS).to_pylist()
        return rows

    def clip(self, clip_id: str) -> Fields:
        return next(clip for clip in self.clips if clip["clip_id"] == clip_id)

    @property
    def is_there(self) -> bool:
        """Whether judging wrote anything."""
        tables = {"rows.parquet", "recordings", "measured"}
        return any(path.name not in tables for path in self.folder.glob("*"))

    def bytes_by_name(self) -> dict[str, bytes]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def tone(frequency_hz: float, seconds: float = 1.0, peak: float = 0.5) -> npt.NDArray[np.float32]:
    """A sine on the 16-bit grid: equal as WAV and as FLAC."""
    times = np.arange(round(seconds * RATE)) / RATE
    wave = np.rint(peak * 32767 * np.sin(2 * math.pi * frequency_hz * times)) / 32768
    return wave.astype(np.float32)


def record(folder: Path, name: str, samples: npt.NDArray[np.float32], **options: Any) -> None:
    sf.write(folder / name, samples, options.pop("rate", RATE), **options)


def write_manifest(folder: Path, rows: list[Fields]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(
    folder: Path, rows: list[Fields], out: str = "out", num_threads: int = 1, **sections: Any
) -> Outputs:
    """Run the stages on ``rows``; unless told otherwise, any share may be rejected."""
    sections = {"validate": {"max_rejected_fraction": 1.0}, **sections}
    manifest = str(write_manifest(folder, rows))
    data = run_validation(folder / out, num_threads, None, manifest=manifest, **sections)
    return Outputs(data)


def run_processes(folder: Path, manifest: Path) -> subprocess.CompletedProcess[str]:
    """Run the stages' command lines, one shard, as the workflow does, up to one that fails."""
    for name, section in (
        ("list_rows", {"manifest": str(manifest), "data": {"num_shards": 1}}),
        ("measure", {}),
        ("validate", {"manifest": str(manifest), "data": {"num_shards": 1}}),
    ):
        write_stage_config(folder / f"config/{name}.json", **section)
    commands = (
        "list_rows --config config/list_rows.json --rows out/rows.parquet"
        " --recordings-dir out/recordings",
        "measure --config config/measure.json --recordings out/recordings/shard-00000.parquet"
        " --measured out/measured/shard-00000.parquet",
        "validate --config config/validate.json --rows out/rows.parquet"
        " --measured-dir out/measured --clips out/clips.parquet --rejected out/rejected.parquet"
        " --validation out/validation.json --shards-dir out/shards --families higgs_audio_v2",
    )
    environment = environment_with()
    for words in commands:
        process = subprocess.run(
            [sys.executable, "-m", *f"higgs_pipe.{words}".split()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            break
    return process


@pytest.fixture(autouse=True)
def _log_reaches_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)


@pytest.fixture
def rows(tmp_path: Path) -> list[Fields]:
    """Three good rows, a, b and c, with their recordings beside the manifest."""
    for index, name in enumerate("abc"):
        record(tmp_path, f"{name}.wav", tone(200 + 50 * index))
    return [
        {"audio": "a.wav", "text": "A.", "speaker": "ada", "language": "en"},
        {"audio": "b.wav", "text": "B.", "speaker": "ada", "language": "en"},
        {"audio": "c.wav", "text": "C.", "speaker": "ben", "language": "de"},
    ]


# --- Accepted clips -------------------------------------------------------------------------------


def test_a_clip_keeps_the_fields_of_its_row_and_gains_measures(
    tmp_path: Path, rows: list[Fields]
) -> None:
    stereo = np.stack([tone(300, seconds=2, peak=0.5), np.zeros(2 * RATE)], axis=1)
    record(tmp_path, "s.flac", stereo, rate=RATE)
    row = {"id": "x", "audio": "s.flac", "text": " Two. ", "speaker": "s", "scene": "A hall."}
    clip = run(tmp_path, [*rows, row]).clip("x")
    assert clip["audio_path"] == str(tmp_path / "s.flac")
    assert (clip["manifest"], clip["line"]) == (str(tmp_path / "manifest.jsonl"), 4)
    assert (clip["text"], clip["speaker"], clip["scene"]) == (" Two. ", "s", "A hall.")
    assert (clip["language"], clip["reference_id"]) == (None, None)
    assert (clip["duration_seconds"], clip["sample_rate_hz"], clip["num_channels"]) == (2, RATE, 2)
    assert clip["peak"] == pytest.approx(0.5, abs=1e-4)
    # A sine of peak 1/2 has mean square 1/8; its mean with silence has a quarter of that.
    assert clip["rms_dbfs"] == pytest.approx(10 * math.log10(1 / 32), abs=0.01)


def test_clips_come_in_the_order_of_the_manifest(tmp_path: Path, rows: list[Fields]) -> None:
    outputs = run(tmp_path, rows[::-1], num_threads=4)
    assert [clip["clip_id"] for clip in outputs.clips] == ["c", "b", "a"]


def test_audio_sha256_is_the_hash_of_the_file(tmp_path: Path, rows: list[Fields]) -> None:
    clip = run(tmp_path, rows).clip("a")
    printed = subprocess.run(["sha256sum", tmp_path / "a.wav"], capture_output=True, check=True)
    assert printed.stdout.decode().startswith(clip["audio_sha256"])


def test_the_summary_matches_hand_counts(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "d.wav", tone(400, seconds=4))
    rows[0]["split"] = rows[1]["split"] = "train"
    rows[2]["split"] = "eval"
    rows += [
        {"audio": "d.wav", "text": rows[0]["text"], "split": "train", "language": "en", "gain": 4},
        {"audio": "none.wav", "text": "N.", "split": "train"},
    ]
    summary = run(tmp_path, rows).summary
    assert (summary["num_rows"], summary["num_clips"], summary["num_rejected"]) == (5, 4, 1)
    assert summary["num_rejected_by_reason"] == {"audio_missing": 1}
    assert summary["largest_group_num_clips"] == 2  # of three; a and d say the same
    assert summary["hours"] == pytest.approx(7 / 3600)
    assert summary["splits"] == {
        "train": {"num_clips": 3, "seconds": 6, "hours": pytest.approx(6 / 3600)},
        "eval": {"num_clips": 1, "seconds": 1, "hours": pytest.approx(1 / 3600)},
    }
    assert summary["clip_seconds"] == {"min": 1, "median": 1, "max": 4}
    ada = {"num_clips": 2, "seconds": 2, "hours": pytest.approx(2 / 3600)}
    ben = {"num_clips": 1, "seconds": 1, "hours": pytest.approx(1 / 3600)}
    assert summary["speakers"] == {
        "ada": ada | {"num_train_clips": 2, "num_eval_clips": 0},
        "ben": ben | {"num_train_clips": 0, "num_eval_clips": 1},
    }
    assert list(summary["languages"]) == ["de", "en"]
    assert (summary["num_clips_without_speaker"], summary["num_clips_without_language"]) == (1, 0)
    assert summary["ignored_manifest_keys"] == {"gain": 1}


@pytest.mark.parametrize(("num_blocks", "num_separate"), [(2, 0), (8, 1)])
def test_clips_whose_channels_are_separate_for_a_tenth_are_counted(
    tmp_path: Path, rows: list[Fields], num_blocks: int, num_separate: int
) -> None:
    """Of 24 blocks, each channel is alone in so many at one end: n of 48 - 2 n with sound."""
    stereo = np.repeat(tone(300, seconds=24 * 4096 / RATE)[:, None], 2, axis=1)
    stereo[: num_blocks * 4096, 0] = stereo[-num_blocks * 4096 :, 1] = 0
    record(tmp_path, "s.flac", stereo, rate=RATE)
    found = run(tmp_path, [*rows, {"audio": "s.flac", "text": "Both at once."}])
    share = found.clip("s")["separate_share"]
    assert share == pytest.approx(num_blocks / (48 - 2 * num_blocks), abs=1e-3)
    assert found.summary["num_clips_of_separate_channels"] == num_separate


def test_speakers_with_one_clip_are_named_because_cloning_falls_back(
    tmp_path: Path, rows: list[Fields], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="higgs_pipe"):
        told = run(tmp_path, rows).summary["speakers_with_one_clip"]
    assert told["speakers"] == ["ben"]
    assert "falls back to plain speech" in told["message"]
    assert "\n  ben" in caplog.text


def test_copies_of_a_recording_count_as_one_clip_for_cloning(
    tmp_path: Path, rows: list[Fields]
) -> None:
    record(tmp_path, "copy.flac", tone(300))
    rows.append({"audio": "copy.flac", "text": "C.", "speaker": "ben"})
    assert run(tmp_path, rows).summary["speakers_with_one_clip"]["speakers"] == ["ben"]


def test_a_clip_with_its_own_reference_needs_no_other(tmp_path: Path, rows: list[Fields]) -> None:
    rows[2] |= {"ref_audio": "a.wav", "ref_text": "A."}
    assert run(tmp_path, rows).summary["speakers_with_one_clip"]["speakers"] == []


def test_the_log_shows_what_was_kept(
    tmp_path: Path, rows: list[Fields], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="higgs_pipe"):
        run(tmp_path, [*rows, {"audio": "a.wav", "id": "e", "text": " ", "gain": "en"}])
    squeezed = " ".join(caplog.text.split())
    for words in ("all 3 0.001 1 0.000", "text_empty 1 0.000", "ada 2", "ben 1", "speakers: 2"):
        assert words in squeezed
    assert "the manifest's key 'gain' is not used (in 1 rows)" in squeezed


# --- Rejected rows --------------------------------------------------------------------------------


def make_bad_recordings(folder: Path) -> None:
    record(folder, "silent.wav", tone(300, peak=0.5e-4))
    record(folder, "short.wav", tone(300, seconds=0.299))
    record(folder, "long.wav", tone(300, seconds=31))
    holed = tone(300)
    holed[[5, 6]] = [np.nan, np.inf]
    record(folder, "nan.wav", holed, subtype="FLOAT")
    (folder / "page.wav").write_text("<!DOCTYPE html>")
    record(folder, "whole.wav", tone(300))
    (folder / "cut.wav").write_bytes((folder / "whole.wav").read_bytes()[:20_000])
    record(folder, "a.flac", tone(200))


@pytest.mark.parametrize(
    ("bad", "reason", "fact"),
    [
        ({"audio": "none.wav"}, "audio_missing", "none.wav"),
        ({"audio": "page.wav"}, "audio_unreadable", "<!DOCTYPE html>"),
        ({"audio": "cut.wav"}, "audio_unreadable", "cut.wav"),
        ({"audio": "nan.wav"}, "audio_non_finite", "2 samples"),
        ({"text": " \n"}, "text_empty", "`text`"),
        ({"scene": "\u200b"}, "text_empty", "`scene`"),
        ({"ref_audio": "b.wav", "ref_text": "\u200b\u2060"}, "text_empty", "`ref_text`"),
        ({"text": "A <|eot_id|> B"}, "control_token", "`text` contains <|eot_id|>"),
        ({"scene": "<|x|>"}, "control_token", "`scene` contains <|x|>"),
        (
            {"ref_audio": "b.wav", "ref_text": "<|AUDIO|>"},
            "control_token",
            "`ref_text` contains <|AUDIO|>",
        ),
        ({"audio": "silent.wav"}, "silent", "6.1e-05"),
        ({"audio": "short.wav"}, "too_short", "0.299 s, less than 0.3 s"),
        ({"audio": "long.wav"}, "too_long", "31.000 s, more than 30 s"),
        ({"ref_audio": "none.wav", "ref_text": "R."}, "reference_missing", "none.wav"),
        ({"ref_audio": "page.wav", "ref_text": "R."}, "reference_unreadable", "<!DOCTYPE html>"),
        ({"ref_audio": "long.wav", "ref_text": "R."}, "reference_unreadable", "more than 30 s"),
        ({"ref_audio": "silent.wav", "ref_text": "R."}, "reference_unreadable", "silent.wav"),
        ({"ref_audio": "a.flac", "ref_text": "A."}, "reference_is_target", "`ref_audio`"),
    ],
)
def test_a_bad_row_is_rejected_with_reason_fact_and_remedy(
    tmp_path: Path,
    rows: list[Fields],
    caplog: pytest.LogCaptureFixture,
    bad: Fields,
    reason: str,
    fact: str,
) -> None:
    make_bad_recordings(tmp_path)
    row = {"id": "bad", "audio": "a.wav", "text": "Bad.", "speaker": "eve"} | bad
    outputs = run(tmp_path, [rows[0], row, *rows[1:]])
    assert [clip["clip_id"] for clip in outputs.clips] == ["a", "b", "c"]
    (rejected,) = outputs.rejected
    message = rejected.pop("message")
    assert rejected == {
        "clip_id": "bad",
        "audio": row["audio"],
        "manifest": str(tmp_path / "manifest.jsonl"),
        "line": 2,
        "speaker": "eve",
        "language": None,
        "duration_seconds": rejected["duration_seconds"],
        "reason": reason,
    }
    assert fact in message
    assert message.endswith({str(code): code.remedy for code in Reason}[reason])
    assert f"{tmp_path}/manifest.jsonl:2: {reason}: {message}" in caplog.text
    assert outputs.summary["num_rejected_by_reason"] == {reason: 1}


def test_texts_become_nfc_and_unspeakable_parts_are_counted_with_examples(
    tmp_path: Path, rows: list[Fields]
) -> None:
    decomposed = unicodedata.normalize("NFD", "Café")
    rows[0] |= {"text": f"{decomposed} <b>1</b>", "speaker": decomposed}
    outputs = run(tmp_path, rows)
    assert (outputs.clip("a")["text"], outputs.clip("a")["speaker"]) == ("Café <b>1</b>", "Café")
    example = {"num_rows": 1, "examples": [f"{tmp_path}/manifest.jsonl:1: Café <b>1</b>"]}
    assert outputs.summary["text_findings"] == {"tags": example, "digits": example}


def test_a_recording_given_to_both_splits_rejects_the_train_row(
    tmp_path: Path, rows: list[Fields]
) -> None:
    record(tmp_path, "copy.flac", tone(200))
    rows[0]["split"] = "train"
    rows.append({"audio": "copy.flac", "text": "A.", "split": "eval"})
    outputs = run(tmp_path, rows)
    (rejected,) = outputs.rejected
    assert (rejected["clip_id"], rejected["reason"]) == ("a", "split_conflict")
    assert f"'eval' for the same audio at {tmp_path}/manifest.jsonl:4" in rejected["message"]
    assert outputs.clip("copy")["split"] == "eval"


def test_segments_that_overlap_never_cross_the_split(tmp_path: Path, rows: list[Fields]) -> None:
    sweep = np.concatenate([tone(200 + 50 * i) for i in range(6)])
    record(tmp_path, "long.wav", sweep)
    overlapping = [
        {"id": name, "audio": "long.wav", "text": name, "start_seconds": s, "end_seconds": s + 1.5}
        for name, s in (("x", 0.0), ("y", 1.0), ("z", 2.0))
    ]
    for seed in range(12):
        data = {"eval_fraction": 0.5, "split_seed": seed}
        outputs = run(tmp_path, [*rows, *overlapping], data=data)
        assert len({outputs.clip(name)["split"] for name in "xyz"}) == 1
    given = [overlapping[0] | {"split": "train"}, overlapping[1] | {"split": "eval"}]
    (rejected,) = run(tmp_path, [*rows, *given]).rejected
    assert (rejected["clip_id"], rejected["reason"]) == ("x", "split_conflict")


@pytest.mark.parametrize("other", ["copy.wav", "link.wav", "x/../long.wav"])
def test_a_recording_is_recognised_under_any_path(
    tmp_path: Path, rows: list[Fields], other: str
) -> None:
    record(tmp_path, "long.wav", np.concatenate([tone(200 + 50 * i) for i in range(6)]))
    shutil.copy(tmp_path / "long.wav", tmp_path / "copy.wav")
    (tmp_path / "link.wav").symlink_to("long.wav")
    (tmp_path / "x").mkdir()
    first: Fields = {"id": "x", "audio": "long.wav", "text": "X.", "end_seconds": 2.0}
    overlapping = first | {"id": "y", "audio": other, "text": "Y.", "start_seconds": 1.5}
    overlapping |= {"end_seconds": 3.0, "split": "eval"}
    (rejected,) = run(tmp_path, [*rows, first | {"split": "train"}, overlapping]).rejected
    assert (rejected["clip_id"], rejected["reason"]) == ("x", "split_conflict")
    cloned = first | {"ref_audio": other, "ref_text": "All of it."}
    (rejected,) = run(tmp_path, [*rows, cloned]).rejected
    assert (rejected["clip_id"], rejected["reason"]) == ("x", "reference_is_target")


def test_every_reason_has_a_remedy_and_its_name_as_code() -> None:
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert len(reason.remedy) > 10


def test_the_length_of_a_long_file_is_judged_without_decoding_it(
    tmp_path: Path, rows: list[Fields], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = AudioFile.decode

    def decode_and_note(file: AudioFile, *segment: float | None) -> Audio:
        decoded.append(file.path.name)
        return decode(file, *segment)

    monkeypatch.setattr(AudioFile, "decode", decode_and_note)
    make_bad_recordings(tmp_path)
    run(tmp_path, [*rows, {"audio": "long.wav", "text": "L."}])
    assert sorted(decoded) == ["a.wav", "b.wav", "c.wav"]


def test_clips_at_the_length_limits_are_accepted(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "short.wav", tone(300, seconds=0.3))
    record(tmp_path, "long.wav", tone(310, seconds=2))
    rows += [{"audio": "short.wav", "text": "S."}, {"audio": "long.wav", "text": "L."}]
    outputs = run(tmp_path, rows, validate={"max_clip_seconds": 2.0})
    assert len(outputs.clips) == 5


@pytest.mark.parametrize("rate_hz", [1, 7_999])
def test_a_sample_rate_below_8_khz_is_rejected_by_default(
    tmp_path: Path, rows: list[Fields], rate_hz: int
) -> None:
    sf.write(tmp_path / "low.wav", 0.1 * np.random.default_rng(0).random(20 * rate_hz), rate_hz)
    rows.append({"audio": "low.wav", "text": "Low."})
    limits = {"max_rejected_fraction": 0.5}
    outputs = run(tmp_path, rows, validate=limits)
    assert [row["reason"] for row in outputs.rejected] == ["low_sample_rate"]
    off = {"filters": {"min_sample_rate_hz": None}}
    assert run(tmp_path, rows, validate=limits | off).rejected == []


# --- What stops the run ---------------------------------------------------------------------------


def test_recordings_without_any_text_are_reported_as_one_cause(tmp_path: Path) -> None:
    rows = [{"audio": f"{pitch}.wav", "text": ""} for pitch in (300, 310, 320)]
    for row, pitch in zip(rows, (300, 310, 320), strict=True):
        record(tmp_path, row["audio"], tone(pitch))
    with pytest.raises(UserError) as caught:
        run(tmp_path, rows, validate={})
    assert has_line_with(str(caught.value), " 3 recordings ", "300.wav", "fill_missing_text")
    assert "310.wav" not in str(caught.value)


def bad_rows(num_rows: int) -> list[Fields]:
    return [{"audio": f"none-{index}.wav", "text": "N."} for index in range(num_rows)]


def test_more_rejected_rows_than_allowed_stop_the_run(
    tmp_path: Path, rows: list[Fields], caplog: pytest.LogCaptureFixture
) -> None:
    limit = {"max_rejected_fraction": 0.25}
    assert len(run(tmp_path, rows + bad_rows(1), "one", validate=limit).rejected) == 1
    with (
        pytest.raises(UserError, match=r"2 of 5 rows ") as caught,
        caplog.at_level("INFO", logger="higgs_pipe"),
    ):
        run(tmp_path, rows + bad_rows(2), "two", validate=limit)
    [table] = [text for text in caplog.messages if "hours lost" in text]
    assert [table.splitlines()[1].split()[i] for i in (0, 1, 3)] == ["all", "3", "2"]
    assert "  audio_missing" in table
    message = str(caught.value)
    for line in (4, 5):
        assert f"{tmp_path}/manifest.jsonl:{line}: audio_missing: {tmp_path}/none-" in message
    assert "validate.max_rejected_fraction = 0.25" in message
    assert not Outputs(tmp_path / "two/data").is_there


def test_an_unmeasured_recording_stops_the_run(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "new.wav", tone(777))
    outputs = run(tmp_path, [*rows, {"audio": "new.wav", "text": "New."}])
    earlier = run(tmp_path, rows, "earlier")
    shutil.rmtree(outputs.folder / "measured")
    shutil.copytree(earlier.folder / "measured", outputs.folder / "measured")
    with pytest.raises(UserError, match=r":4: .*new\.wav .* --forcerun measure_shard"):
        judge_rows(tmp_path / "out/config/validate.json", outputs.folder)


def test_a_rejected_fraction_of_exactly_the_limit_is_allowed(
    tmp_path: Path, rows: list[Fields]
) -> None:
    good = [row | {"id": f"{row['text']}{index}"} for index in range(7) for row in rows]
    # In floating point 0.58 * 50 is below 29, but 29 / 50 is 0.58.
    limit = {"max_rejected_fraction": 0.58, "check_texts": False}
    assert len(run(tmp_path, good + bad_rows(29), validate=limit).rejected) == 29


def test_only_the_first_twenty_rejected_rows_are_listed(tmp_path: Path, rows: list[Fields]) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, rows + bad_rows(24), validate={})
    assert str(caught.value).count("audio_missing") == 20
    assert "... and 4 more" in str(caught.value)


def test_a_manifest_without_an_accepted_row_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: audio_missing"):
        run(tmp_path, bad_rows(2))
    assert not Outputs(tmp_path / "out/data").is_there


def test_a_single_recording_cannot_be_split(tmp_path: Path, rows: list[Fields]) -> None:
    copies = [rows[0] | {"id": name} for name in ("one", "two")]
    with pytest.raises(UserError, match=r"for eval: .*: 1\. 4 clips share their audio"):
        run(tmp_path, copies)
    assert not Outputs(tmp_path / "out/data").is_there


@pytest.mark.parametrize(("given", "missing"), [("train", "eval"), ("eval", "train")])
def test_rows_given_to_one_split_only_stop_the_run(
    tmp_path: Path, rows: list[Fields], given: str, missing: str
) -> None:
    with pytest.raises(UserError, match=f"for {missing}: .* in {given}") as caught:
        run(tmp_path, [row | {"split": given} for row in rows])
    assert f'"split": "{missing}"' in str(caught.value)


@pytest.mark.usefixtures("processes_as_forks")
@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "manifest.jsonl: "),
        ("\n", "manifest.jsonl: "),
        ('\n{"audio": "a.wav",\n', "manifest.jsonl:2: "),
        ('{"audio": "no.wav", "text": "N."}', "manifest.jsonl:1: audio_missing"),
        ('{"audio": "a.wav", "text": ""}', "validate.fill_missing_text"),
        ('{"audio": "a.wav", "text": "A."}', "for eval"),
        ('{"id": "x", "audio": "a", "text": "A."}\n' * 2, "manifest.jsonl:2: the id 'x'"),
    ],
)
def test_a_user_error_exits_with_2_and_a_message_and_writes_nothing(
    tmp_path: Path, content: str | None, fact: str
) -> None:
    record(tmp_path, "a.wav", tone(200))
    manifest = tmp_path / "manifest.jsonl"
    if content is not None:
        manifest.write_text(content, encoding="utf-8")
    process = run_processes(tmp_path, manifest)
    assert process.returncode == 2
    assert fact in process.stderr
    assert "Traceback" not in process.stderr
    assert not Outputs(tmp_path / "out").is_there


@pytest.mark.usefixtures("processes_as_forks")
def test_the_command_line_reports_what_it_kept(tmp_path: Path, rows: list[Fields]) -> None:
    process = run_processes(tmp_path, write_manifest(tmp_path, rows))
    assert (process.returncode, process.stdout) == (0, "")
    assert "rows kept" in process.stderr
    assert len(Outputs(tmp_path / "out").clips) == 3


# --- Splits, shards and equal bytes ---------------------------------------------------------------


def test_copies_of_a_recording_never_cross_the_split(tmp_path: Path, rows: list[Fields]) -> None:
    for index, row in enumerate(rows[:3]):
        record(tmp_path, f"copy-{index}.flac", tone(200 + 50 * index))
        rows.append(row | {"audio": f"copy-{index}.flac"})
    pairs = [["a", "copy-0"], ["b", "copy-1"], ["c", "copy-2"]]
    sides = set()
    for seed in range(8):
        outputs = run(tmp_path, rows, data={"split_seed": seed, "eval_fraction": 0.5})
        splits = {clip["clip_id"]: clip["split"] for clip in outputs.clips}
        assert all(splits[first] == splits[second] for first, second in pairs)
        assert outputs.summary["overlap"]["audio"] == 0
        assert sorted(outputs.summary["duplicates"]) == pairs
        sides.add(splits["a"])
    assert sides == {"train", "eval"}


def test_a_split_given_to_one_copy_holds_for_the_other(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "copy.flac", tone(200))
    rows.append({"audio": "copy.flac", "text": "A.", "split": "eval"})
    outputs = run(tmp_path, rows)
    assert outputs.clip("a")["split"] == outputs.clip("copy")["split"] == "eval"


def test_reruns_and_thread_counts_give_the_same_bytes(tmp_path: Path, rows: list[Fields]) -> None:
    make_bad_recordings(tmp_path)
    rows += [{"audio": f"{name}.wav", "text": "X."} for name in ("page", "nan", "cut", "whole")]
    rows[0] |= {"ref_audio": "b.wav", "ref_text": "B."}
    first, second, threaded = (
        run(tmp_path, rows, out, num_threads).bytes_by_name()
        for out, num_threads in (("one", 1), ("two", 1), ("three", 4))
    )
    assert len(first) == 4 + 3 * 2
    assert first == second == threaded


@pytest.mark.parametrize("num_shards", [1, 8])
def test_clips_are_sharded_by_the_hash_of_their_id(
    tmp_path: Path, rows: list[Fields], num_shards: int
) -> None:
    rows[2] |= {"ref_audio": "a.wav", "ref_text": "A."}
    bad = {"audio": "none.wav", "text": "N."}
    outputs = run(tmp_path, [*rows[::-1], bad], data={"num_shards": num_shards})
    by_id = {clip["clip_id"]: clip for clip in outputs.clips}
    found = []
    for number in range(num_shards):
        ids = [clip["clip_id"] for clip in outputs.shard(number)]
        assert ids == sorted(ids)
        assert all(shard_of(clip_id, num_shards) == number for clip_id in ids)
        found += outputs.shard(number)
    assert len(found) == 4
    for clip in found:
        assert clip == {column: by_id[clip["clip_id"]][column] for column in clip}


def test_adding_a_row_changes_only_its_own_shard(tmp_path: Path, rows: list[Fields]) -> None:
    shards = {"num_shards": 8}
    before = run(tmp_path, rows, "before", data=shards).bytes_by_name()
    record(tmp_path, "new.wav", tone(500))
    new = {"id": "new", "audio": "new.wav", "text": "N.", "speaker": "ada"}
    after = run(tmp_path, [new, *rows], "after", data=shards).bytes_by_name()
    changed = {name for name in before if name.startswith("shards") and after[name] != before[name]}
    assert changed == {f"shards/shard-{shard_of('new', 8):05d}.parquet"}


def test_changing_a_text_changes_no_shard(tmp_path: Path, rows: list[Fields]) -> None:
    before = run(tmp_path, rows, "before").bytes_by_name()
    after = run(tmp_path, [rows[0] | {"text": "Else."}, *rows[1:]], "after").bytes_by_name()
    assert all(after[name] == before[name] for name in before if name.startswith("shards"))
    assert after["clips.parquet"] != before["clips.parquet"]


def test_surplus_shards_of_an_earlier_run_are_removed(tmp_path: Path, rows: list[Fields]) -> None:
    run(tmp_path, rows, data={"num_shards": 5})
    outputs = run(tmp_path, rows, data={"num_shards": 2})
    names = sorted(path.name for path in (outputs.folder / "shards").iterdir())
    assert names == ["shard-00000.parquet", "shard-00001.parquet"]
    assert len(outputs.shard(0)) + len(outputs.shard(1)) == 3


# --- Reference recordings -------------------------------------------------------------------------


def test_a_reference_becomes_a_row_named_by_its_target(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "ref.wav", tone(700, seconds=3))
    rows[1] |= {"ref_audio": "ref.wav", "ref_text": "Reference.", "scene": "A hall."}
    outputs = run(tmp_path, rows)
    (reference,) = outputs.references
    assert reference["clip_id"] == f"ref-{reference['pcm_sha256'][:16]}"
    assert outputs.clip("b")["reference_id"] == reference["clip_id"]
    assert outputs.clip("a")["reference_id"] is None
    assert (reference["text"], reference["speaker"]) == ("Reference.", "ada")
    assert (reference["line"], reference["scene"], reference["reference_id"]) == (2, None, None)
    assert (reference["duration_seconds"], outputs.summary["num_references"]) == (3, 1)
    # A prompt is nothing to train on: it counts towards no hours.
    assert outputs.summary["num_clips"] == outputs.summary["seconds"] == 3


def test_rows_with_the_same_reference_share_one_reference_row(
    tmp_path: Path, rows: list[Fields]
) -> None:
    record(tmp_path, "ref.wav", tone(700))
    record(tmp_path, "ref.flac", tone(700))
    rows[0] |= {"ref_audio": "ref.wav", "ref_text": "R."}
    rows[1] |= {"ref_audio": "ref.flac", "ref_text": "R."}
    outputs = run(tmp_path, rows)
    (reference,) = outputs.references
    assert reference["audio_path"] == str(tmp_path / "ref.wav")
    assert [clip["reference_id"] for clip in outputs.clips[:2]] == [reference["clip_id"]] * 2


def test_the_same_reference_with_another_text_gets_its_own_id(
    tmp_path: Path, rows: list[Fields]
) -> None:
    record(tmp_path, "ref.wav", tone(700))
    for row, text in zip(rows, ("One.", "Two.", "One."), strict=True):
        row |= {"ref_audio": "ref.wav", "ref_text": text}
    outputs = run(tmp_path, rows)
    first, second = outputs.references
    assert (first["text"], second["text"]) == ("One.", "Two.")
    assert first["clip_id"] == f"ref-{first['pcm_sha256'][:16]}"
    assert second["clip_id"].startswith("ref-")
    ids = [outputs.clip(clip_id)["reference_id"] for clip_id in "abc"]
    assert ids == [first["clip_id"], second["clip_id"], first["clip_id"]]
    assert len(set(ids)) == 2


def test_the_reference_of_a_rejected_row_is_left_out(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "ref.wav", tone(700))
    bad = {"audio": "none.wav", "text": "N.", "ref_audio": "ref.wav", "ref_text": "R."}
    assert run(tmp_path, [*rows, bad]).references == []


# --- Quality --------------------------------------------------------------------------------------


def test_a_filter_rejects_by_the_measured_value(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "clipped.wav", np.clip(3 * tone(300), -1, 1))
    rows.append({"audio": "clipped.wav", "text": "D.", "language": "en"})
    assert run(tmp_path, rows).clip("clipped")["clipping_fraction"] > 0.3
    limits = {"max_rejected_fraction": 1.0, "filters": {"max_clipping_fraction": 0.01}}
    outputs = run(tmp_path, rows, validate=limits)
    (rejected,) = outputs.rejected
    assert (rejected["clip_id"], rejected["reason"]) == ("clipped", "clipped")
    assert "more than validate.filters.max_clipping_fraction = 0.01" in rejected["message"]
    assert (rejected["language"], rejected["duration_seconds"]) == ("en", 1)


def test_speaking_rate_is_text_length_per_second_of_the_clip(
    tmp_path: Path, rows: list[Fields]
) -> None:
    rows[0]["text"] = "Zwei Worte."
    clip = run(tmp_path, rows).clip("a")
    found = (clip["num_characters"], clip["num_words"], clip["words_per_second"], clip["script"])
    assert found == (10, 2, 2, "Latn")
    assert clip["fits_language"] is True


def test_an_outlier_among_its_speakers_clips_is_listed(
    tmp_path: Path, rows: list[Fields], caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(9):
        peak = 0.02 if index == 4 else 0.5 + 0.01 * index
        record(tmp_path, f"e{index}.wav", tone(300 + 10 * index, peak=peak))
        rows.append({"audio": f"e{index}.wav", "text": f"E {index}.", "speaker": "eve"})
    with caplog.at_level("INFO", logger="higgs_pipe"):
        outputs = run(tmp_path, rows)
    found = outputs.summary["outliers"]["eve"]["rms_dbfs"]
    assert (list(found["clips"]), found["num_clips"]) == (["e4"], 1)
    assert "eve, rms_dbfs: 1, farthest e4 with -36.99 dBFS" in caplog.text


def test_hours_lost_are_counted_by_reason_speaker_and_language(
    tmp_path: Path, rows: list[Fields]
) -> None:
    record(tmp_path, "long.wav", tone(400, seconds=36))
    rows += [
        {"audio": "long.wav", "text": "L.", "speaker": "ben", "language": "de"},
        {"audio": "none.wav", "text": "N.", "speaker": "ben"},
    ]
    lost = run(tmp_path, rows).summary["rejected"]
    too_long = {"num_rows": 1, "num_rows_of_unknown_length": 0, "hours": 0.01}
    missing = {"num_rows": 1, "num_rows_of_unknown_length": 1, "hours": 0.0}
    both = {"num_rows": 2, "num_rows_of_unknown_length": 1, "hours": 0.01}
    assert lost["reasons"] == {"audio_missing": missing, "too_long": too_long}
    assert lost["speakers"] == {"ben": both}
    assert lost["languages"] == {"de": too_long}


def test_recordings_outside_the_root_are_accepted_and_listed(
    tmp_path: Path, rows: list[Fields]
) -> None:
    (tmp_path / "in").mkdir()
    rows[0]["audio"] = "../a.wav"
    for name in "bc":
        (tmp_path / f"{name}.wav").rename(tmp_path / f"in/{name}.wav")
    outside = run(tmp_path / "in", rows).summary["outside_root"]
    place = f"{tmp_path}/in/manifest.jsonl:1: ../a.wav"
    assert outside == {"num_rows": 1, "first_rows": [place]}


# --- What the split goes by -----------------------------------------------------------------------


def many_rows(folder: Path) -> list[Fields]:
    """Twelve recordings of four speakers."""
    for index in range(12):
        record(folder, f"{index}.wav", tone(200.3 + 20 * index, seconds=2))
    return [
        {"audio": f"{index}.wav", "text": f"Text {index}.", "speaker": f"s{index % 4}"}
        for index in range(12)
    ]


def sides(outputs: Outputs, column: str) -> dict[Any, set[str]]:
    """The splits in which each value of a column lies."""
    found: dict[Any, set[str]] = {}
    for clip in outputs.clips:
        found.setdefault(clip[column], set()).add(clip["split"])
    return found


def test_split_by_speaker_holds_out_whole_speakers(tmp_path: Path) -> None:
    data = {"split_by": "speaker", "eval_fraction": 0.4}
    outputs = run(tmp_path, many_rows(tmp_path), data=data)
    assert all(len(splits) == 1 for splits in sides(outputs, "speaker").values())
    assert set(outputs.summary["overlap"].values()) == {0}
    assert outputs.summary["overlap"]["speakers"] == 0


def test_split_by_recording_keeps_the_segments_of_a_file_together(tmp_path: Path) -> None:
    rows = [
        row
        | {"id": f"{row['audio']}-{start}", "start_seconds": start, "end_seconds": start + 1}
        | {"text": f"{row['text']} {start}"}
        for row in many_rows(tmp_path)
        for start in (0, 1)
    ]
    by_clip = run(tmp_path, rows, data={"eval_fraction": 0.4})
    assert any(len(splits) == 2 for splits in sides(by_clip, "audio_path").values())
    outputs = run(tmp_path, rows, data={"eval_fraction": 0.4, "split_by": "recording"})
    assert all(len(splits) == 1 for splits in sides(outputs, "audio_path").values())
    assert outputs.summary["overlap"]["recordings"] == 0


def test_clips_with_one_text_stay_in_one_split_unless_allowed_to_cross(tmp_path: Path) -> None:
    rows = [
        row | {"text": f"Text {i % 6}{'!?'[i % 2]}"} for i, row in enumerate(many_rows(tmp_path))
    ]
    data: Fields = {"eval_fraction": 0.5}
    together = run(tmp_path, rows, data=data).summary["overlap"]
    assert together == {"audio": 0, "texts": 0, "dialogues": 0, "context": 0}
    data["keep_text_together"] = False
    assert run(tmp_path, rows, data=data).summary["overlap"]["texts"] > 0


def test_split_by_given_needs_a_split_for_every_row(tmp_path: Path) -> None:
    rows = [
        row | {"split": "eval" if i < 3 else "train"} for i, row in enumerate(many_rows(tmp_path))
    ]
    outputs = run(tmp_path, rows, data={"split_by": "given"})
    assert [clip["split"] for clip in outputs.clips] == ["eval"] * 3 + ["train"] * 9
    del rows[5]["split"]
    with pytest.raises(UserError, match=r"1 of 12 rows .*`split`:\n .*jsonl:6: 5\n"):
        run(tmp_path, rows, data={"split_by": "given"})


def test_split_by_speaker_needs_a_speaker_for_every_row(tmp_path: Path, rows: list[Fields]) -> None:
    del rows[1]["speaker"]
    with pytest.raises(UserError, match=r"data\.split_by is speaker.* 1 of 3 rows .*`speaker`"):
        run(tmp_path, rows, data={"split_by": "speaker"})


@pytest.mark.parametrize(
    ("shared", "data", "what"),
    [
        ({"text": "Same."}, {}, "text"),
        ({"dialogue_id": "d"}, {}, "dialogue"),
        ({"speaker": "s"}, {"split_by": "speaker"}, "speaker"),
    ],
)
def test_a_train_row_tied_to_a_held_out_row_is_rejected(
    tmp_path: Path, rows: list[Fields], shared: Fields, data: Fields, what: str
) -> None:
    rows[0] |= {"split": "train", **shared} | ({"turn": 1} if what == "dialogue" else {})
    rows[1] |= {"split": "eval", **shared} | ({"turn": 2} if what == "dialogue" else {})
    record(tmp_path, "d.wav", tone(400))
    rows.append({"audio": "d.wav", "text": "D.", "speaker": "ada"})
    rejected = {row["clip_id"]: row for row in run(tmp_path, rows, data=data).rejected}
    assert rejected["a"]["reason"] == "split_conflict"
    assert f"'eval' for the same {what} at {tmp_path}/manifest.jsonl:2" in rejected["a"]["message"]


def test_a_train_row_that_another_row_links_with_a_held_out_row_is_rejected(
    tmp_path: Path, rows: list[Fields]
) -> None:
    rows[0]["split"], rows[1]["split"], rows[2]["split"] = "train", "eval", "eval"
    shutil.copy(tmp_path / rows[2]["audio"], tmp_path / "copy.wav")
    rows.append({"audio": "copy.wav", "text": rows[0]["text"]})  # links the first and the third
    record(tmp_path, "d.wav", tone(700))
    rows.append({"audio": "d.wav", "text": "D.", "split": "train"})
    (rejected,) = run(tmp_path, rows).rejected
    assert (rejected["clip_id"], rejected["reason"]) == ("a", "split_conflict")
    assert f"linked with it at {tmp_path}/manifest.jsonl:3" in rejected["message"]


def test_a_dialogue_that_loses_a_turn_to_a_conflict_of_splits_is_rejected(
    tmp_path: Path, rows: list[Fields]
) -> None:
    for turn, row in enumerate(rows[:2]):
        row |= {"dialogue_id": "d", "turn": turn}
    rows[0]["split"] = "train"
    shutil.copy(tmp_path / rows[0]["audio"], tmp_path / "copy.wav")
    rows.append({"audio": "copy.wav", "text": "A copy.", "split": "eval"})
    rejected = {row["clip_id"]: row for row in run(tmp_path, rows).rejected}
    reasons = {clip_id: row["reason"] for clip_id, row in rejected.items()}
    assert reasons == {"a": "split_conflict", "b": "dialogue_incomplete"}
    assert "lacks turn 0, rejected as split_conflict" in rejected["b"]["message"]


def test_a_rejected_row_has_the_length_of_its_own_recording(
    tmp_path: Path, rows: list[Fields]
) -> None:
    record(tmp_path, "long.wav", tone(400, seconds=2.0))
    rows[0] |= {"text": "<|audio|>", "ref_audio": "long.wav", "ref_text": "A reference."}
    (rejected,) = run(tmp_path, rows).rejected
    assert (rejected["clip_id"], rejected["duration_seconds"]) == ("a", 1)


def test_the_field_that_links_all_clips_into_one_group_is_named(tmp_path: Path) -> None:
    rows = [row | {"text": "Yes."} for row in many_rows(tmp_path)]
    with pytest.raises(UserError) as caught:
        run(tmp_path, rows)
    message = str(caught.value)
    assert "12 clips share their text" in message
    assert "data.keep_text_together" in message
    rows = [row | {"speaker": "one"} for row in many_rows(tmp_path)]
    with pytest.raises(UserError, match=r"12 clips share their speaker .*data\.split_by"):
        run(tmp_path, rows, data={"split_by": "speaker"})


# --- Dialogues ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "lack"),
    [
        ([0, 1, 2], None),
        ([3, 1, 2], None),
        ([1, 3, 4], "lacks turn 2"),
        ([2, 3, 4], "lacks turn 1"),
        ([0, 1, 1], "has turn 1 twice"),
    ],
)
def test_dialogue_turns_must_be_consecutive_from_0_or_1(
    tmp_path: Path, rows: list[Fields], turns: list[int], lack: str | None
) -> None:
    record(tmp_path, "d.wav", tone(400))
    record(tmp_path, "e.wav", tone(450))
    rows = [row | {"dialogue_id": "talk", "turn": n} for row, n in zip(rows, turns, strict=True)]
    rows += [{"audio": f"{name}.wav", "text": name} for name in "de"]
    outputs = run(tmp_path, rows)
    assert [clip["turn"] for clip in outputs.clips if clip["turn"] is not None] == (
        [] if lack else turns
    )
    assert len(outputs.rejected) == (3 if lack else 0)
    for row in outputs.rejected:
        assert row["reason"] == "dialogue_incomplete"
        assert f"the dialogue 'talk' {lack}" in row["message"]


def test_a_rejected_turn_takes_its_dialogue_with_it(tmp_path: Path, rows: list[Fields]) -> None:
    record(tmp_path, "d.wav", tone(400))
    bad = {"audio": "none.wav", "text": "N.", "speaker": "ben"}
    rows = [
        rows[0],
        *(row | {"dialogue_id": "t", "turn": n} for n, row in enumerate([*rows[1:], bad])),
    ]
    rows.append({"audio": "d.wav", "text": "D."})
    outputs = run(tmp_path, rows)
    assert {row["clip_id"]: row["reason"] for row in outputs.rejected} == {
        "b": "dialogue_incomplete",
        "c": "dialogue_incomplete",
        "none": "audio_missing",
    }
    place = f"{tmp_path}/manifest.jsonl:4"
    assert f"lacks turn 2, rejected as audio_missing ({place})" in outputs.rejected[0]["message"]
    assert [clip["clip_id"] for clip in outputs.clips] == ["a", "d"]


def test_a_dialogue_stays_in_one_split(tmp_path: Path) -> None:
    rows = [
        row | {"dialogue_id": f"d{i % 3}", "turn": i // 3}
        for i, row in enumerate(many_rows(tmp_path))
    ]
    outputs = run(tmp_path, rows, data={"eval_fraction": 0.4})
    assert all(len(splits) == 1 for splits in sides(outputs, "dialogue_id").values())
    assert outputs.summary["overlap"]["dialogues"] == 0


# --- Whole corpora --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "num_clips", "speakers"),
    [
        pytest.param(
            REAL_SPEECH,
            13,
            {"LJ": 3, "spk1": 5, "spk2": 5},
            marks=needs_real_speech,
        ),
        pytest.param(
            DEMO,
            60,
            {"ada": 20, "ben": 20, "clara": 20},
            marks=pytest.mark.skipif(not DEMO.exists(), reason="no demo corpus here"),
        ),
    ],
    ids=["real_speech", "demo"],
)
def test_a_whole_corpus_is_accepted(
    tmp_path: Path, manifest: Path, num_clips: int, speakers: dict[str, int]
) -> None:
    outputs = Outputs(run_validation(tmp_path, num_threads=2, manifest=str(manifest)))
    assert outputs.rejected == []
    summary = outputs.summary
    assert summary["num_clips"] == num_clips
    assert {name: part["num_clips"] for name, part in summary["speakers"].items()} == speakers
    assert all(part["num_clips"] > 0 for part in summary["splits"].values())
    assert summary["overlap"]["audio"] == 0
