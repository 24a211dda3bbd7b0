"""Settings of data and validate, each tested by the clips that the stages keep."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from helpers import clips_page_with, judge_rows, run_validation, tone, write_stage_config

from higgs_pipe.config.settings import FilterConfig
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.specs import MEASURED
from higgs_pipe.data.tables import write_table
from higgs_pipe.errors import UserError

Clips = dict[str, dict[str, Any]]
Judge = Callable[..., tuple[Clips, Clips]]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def rows_by_id(path: Path) -> Clips:
    return {row["clip_id"]: row for row in pq.read_table(path).to_pylist()}


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    """A manifest of forty clips that share nothing."""
    rows = []
    for n in range(40):
        tone(tmp_path / f"{n}.wav", 0.5, 100 + 40 * n)
        rows.append({"id": f"{n}", "audio": f"{n}.wav", "text": f"The number {n}."})
    return write_rows(tmp_path, rows)


def test_the_split_follows_its_seed_and_fraction(forty: Path, tmp_path: Path) -> None:
    """A clip that shares nothing is held out by the hash of its samples."""
    for number, (fraction, seed) in enumerate([(0.2, 0), (0.5, 0), (0.5, 3)]):
        data = {"eval_fraction": fraction, "split_seed": seed, "num_shards": 1}
        found = run_validation(tmp_path / f"{number}", manifest=str(forty), data=data)
        for clip in rows_by_id(found / "clips.parquet").values():
            held_out = unit_hash("split", seed, clip["pcm_sha256"]) < fraction
            assert clip["split"] == ("eval" if held_out else "train"), clip["clip_id"]


def test_clips_outside_the_configured_length_limits_are_rejected(tmp_path: Path) -> None:
    for n in range(1, 9):
        tone(tmp_path / f"{n}.wav", 0.5 * n, 100 + 40 * n)
    rows = [{"audio": f"{n}.wav", "text": f"It takes {n} halves."} for n in range(1, 9)]
    limits = {"min_clip_seconds": 1.0, "max_clip_seconds": 3.0, "max_rejected_fraction": 1}
    manifest = str(write_rows(tmp_path, rows))
    data = run_validation(tmp_path / "out", manifest=manifest, validate=limits)
    assert set(rows_by_id(data / "clips.parquet")) == {"2", "3", "4", "5", "6"}
    reasons = {i: row["reason"] for i, row in rows_by_id(data / "rejected.parquet").items()}
    assert reasons == {"1": "too_short", "7": "too_long", "8": "too_long"}


def test_suspicious_texts_are_accepted_when_check_texts_is_off(forty: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"text": "Yes."} for line in forty.read_text().splitlines()]
    sections: dict[str, Any] = {"manifest": str(write_rows(tmp_path, rows))}
    sections["data"] = {"keep_text_together": False, "num_shards": 1}
    with pytest.raises(UserError, match=r"1 different texts in 40 clips"):
        run_validation(tmp_path / "checked", **sections)
    data = run_validation(tmp_path / "free", **sections, validate={"check_texts": False})
    assert len(rows_by_id(data / "clips.parquet")) == 40


def test_values_of_a_manifest_entry_apply_to_rows_without_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"audio": f"{n}.wav", "text": f"Say {n}."} for n in range(4)]
    rows[0] |= {"speaker": "own", "language": "de", "split": "train"}
    for n in range(4):
        tone(tmp_path / f"{n}.wav", 0.5, 100 + 40 * n)
    entry = {"path": str(write_rows(tmp_path, rows))}
    entry |= {"speaker": "given", "language": "en", "split": "eval"}
    clips = rows_by_id(run_validation(tmp_path / "out", manifest=entry) / "clips.parquet")
    values = {i: (c["speaker"], c["language"], c["split"]) for i, c in clips.items()}
    assert values.pop("0") == ("own", "de", "train")
    assert set(values.values()) == {("given", "en", "eval")}


def test_a_manifest_entry_maps_its_columns_and_sets_the_audio_root(tmp_path: Path) -> None:
    lines = ["sound\twords"]
    for n in range(4):
        tone(tmp_path / f"sounds/{n}.wav", 0.5, 100 + 40 * n)
        lines.append(f"{n}.wav\tSay {n}.")
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    entry: dict[str, Any] = {"path": str(tmp_path / "rows.tsv"), "root": str(tmp_path / "sounds")}
    entry |= {"columns": {"audio": "sound", "text": "words"}}
    clips = rows_by_id(run_validation(tmp_path / "out", manifest=entry) / "clips.parquet")
    assert {clip["text"] for clip in clips.values()} == {f"Say {n}." for n in range(4)}


def test_a_manifest_entry_is_read_in_the_format_it_names(tmp_path: Path) -> None:
    """Recordings with texts, plus a Kaldi list that would make detection choose Kaldi."""
    folder = tmp_path / "folder"
    for n in range(4):
        tone(folder / f"{n}.wav", 0.5, 100 + 40 * n)
        (folder / f"{n}.txt").write_text(f"Say {n}.")
    (folder / "wav.scp").write_text("0 0.wav\n")
    entry = {"path": str(folder), "format": "folder"}
    clips = rows_by_id(run_validation(tmp_path / "out", manifest=entry) / "clips.parquet")
    assert {clip["text"] for clip in clips.values()} == {f"Say {n}." for n in range(4)}


# What the models would say of each recording.
HEARD = {"stoi": 0.75, "pesq": 2.5, "si_sdr_db": 11.0, "transcript": "the sound of three"}
MODELS = {"asr": "a", "quality": "b"}


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings in ``data``, as if speech models had listened to them."""
    folder = tmp_path_factory.mktemp("filters")
    rows = []
    for n in range(3):
        rng = np.random.default_rng(n)
        silence = [np.zeros(int(24_000 * seconds)) for seconds in (0.3, 0.5)]
        sound = 0.2 * rng.standard_normal(24_000)
        sound[::20] = 1.0  # clipped, and not around 0
        sound[12_000:] *= 0.1  # the noise below
        samples = np.concatenate([silence[0], sound, silence[1]])
        sf.write(folder / f"{n}.wav", samples, 24_000)
        rows.append({"id": f"{n}", "audio": f"{n}.wav", "text": f"The sound of {n}, it is."})
        rows[-1]["language"] = "en"
    data = run_validation(
        folder,
        manifest=str(write_rows(folder, rows)),
        data={"num_shards": 1, "eval_fraction": 0.3},
        validate={"max_rejected_fraction": 1.0},
    )
    path = data / "measured/shard-00000.parquet"
    write_table(path, MEASURED, [row | HEARD for row in pq.read_table(path).to_pylist()])
    return folder


@pytest.fixture(scope="module")
def judge_again(heard: Path) -> Judge:
    """Judges the same three recordings with other filters."""

    def judge(**filters: Any) -> tuple[Clips, Clips]:
        stage = json.loads((heard / "config/validate.json").read_text())
        stage["validate"] |= {"speech_models": MODELS, "filters": filters}
        judge_rows(write_stage_config(heard / "filtered.json", **stage), heard / "data")
        clips, rejected = (heard / f"data/{name}.parquet" for name in ("clips", "rejected"))
        return rows_by_id(clips), rows_by_id(rejected)

    return judge


BOUNDS = sorted(set(FilterConfig.model_fields) - {"require_language_script"})
NEAR_ZERO = ("max_dc_offset", "min_stoi", "min_pesq")


@pytest.mark.parametrize("setting", BOUNDS)
def test_a_filter_rejects_exactly_the_clips_beyond_it(judge_again: Judge, setting: str) -> None:
    """Each filter bounds the measure of its own name; limits are just beyond and just within it."""
    kind, _, measure = setting.partition("_")
    clips, rejected = judge_again()
    assert rejected == {}
    values = [clip[measure] for clip in clips.values()]
    step = math.ceil if measure == "sample_rate_hz" else float
    margin = max(map(abs, values)) / 100
    above, below = step(max(values) + margin), step(min(values) - margin)
    passing, beyond = (below, above) if kind == "min" else (above, below)
    assert len(judge_again(**{setting: passing})[0]) == 3
    with pytest.raises(UserError, match=f"no row is left.*\n.*{setting}"):
        judge_again(**{setting: beyond})


def test_text_not_in_the_script_of_its_language_is_rejected(forty: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"language": "en"} for line in forty.read_text().splitlines()]
    rows[7]["text"] = "Седьмая запись."
    for is_on, expected in ((True, {"7": "wrong_script"}), (False, {})):
        filters = {"require_language_script": is_on}
        data = run_validation(
            tmp_path / f"{is_on}",
            manifest=str(write_rows(tmp_path, rows[:10])),
            validate={"filters": filters, "max_rejected_fraction": 0.2},
        )
        found = rows_by_id(data / "rejected.parquet")
        assert {name: row["reason"] for name, row in found.items()} == expected


def test_the_clips_page_shows_each_filter(heard: Path, judge_again: Judge) -> None:
    judge_again()
    limits: dict[str, float] = {setting: n for n, setting in enumerate(BOUNDS, start=1)}
    limits |= {s: n / 100 for s, n in limits.items() if "fraction" in s or s in NEAR_ZERO}
    limits |= {"min_rms_dbfs": -5}
    page = clips_page_with(heard, validate={"filters": limits}, report={"num_players": 0})
    shown = dict(re.findall(r"validate\.filters\.(\w+) = (-?[\d.]+): [\d,]+ rows", page))
    assert {setting: float(value) for setting, value in shown.items()} == limits
