"""Texts of rows, judged by what every family of base models in use can speak."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import run_validation, tone

from higgs_pipe.data.specs import CLIPS, REJECTED
from higgs_pipe.data.tables import read_table
from higgs_pipe.errors import UserError
from higgs_pipe.planning.families import PUBLISHED, family_of
from higgs_pipe.planning.model_types import V2, V3

BOTH = (V2, V3)
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"text": "Well, this is plain."},
    "simple": {"text": "And this is plain, too."},
    "tagged": {"text": "<|emotion:anger|>Well, this <|prosody:pause|> is not."},
    "misspelt": {"text": "<|emotion:angry|>Well, this is not."},
    "command": {"text": "Well, <|audio|> this is not."},
    "laughing": {"text": "Well, [laugh] this is not."},
    "scene": {"text": "Well, this is there.", "scene": "A quiet room."},
    "reference": {"text": "Well, so.", "ref_audio": "other.wav", "ref_text": "<|sfx:sigh|>Uh."},
}


def judged(folder: Path, families: tuple[str, ...]) -> dict[str, str]:
    """The reason of each rejected row, ``""`` of each accepted one."""
    tone(folder / "other.wav", 1.0, 500.0)
    rows = []
    for number, (name, fields) in enumerate(ROWS.items()):
        tone(folder / f"{name}.wav", 1.0 + number / 10)
        rows.append({"id": name, "audio": f"{name}.wav", **fields})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    data = run_validation(
        folder,
        families=families,
        manifest=str(manifest),
        data={"num_shards": 1, "eval_fraction": 0.3},
        validate={"max_rejected_fraction": 1.0, "check_texts": False},
    )
    accepted = read_table(data / "clips.parquet", CLIPS).to_pylist()
    rejected = read_table(data / "rejected.parquet", REJECTED).to_pylist()
    return {row["clip_id"]: "" for row in accepted if row["clip_id"] in ROWS} | {
        row["clip_id"]: row["reason"] for row in rejected
    }


def base_of(folder: Path, model_type: str) -> Path:
    """A base of which only the family is there."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder


V2_REASONS = {
    **{"plain": "", "simple": "", "laughing": "", "scene": "", "misspelt": "control_token"},
    **{"command": "control_token", "tagged": "foreign_mark", "reference": "foreign_mark"},
}
V3_REASONS = {
    **{"plain": "", "simple": "", "tagged": "", "reference": "", "misspelt": "unknown_tag"},
    **{"command": "control_token", "laughing": "foreign_mark", "scene": "no_scenes"},
}


def test_each_family_accepts_only_its_own_tags(tmp_path: Path) -> None:
    assert judged(tmp_path / "v2", (V2,)) == V2_REASONS
    assert judged(tmp_path / "v3", (V3,)) == V3_REASONS


def test_a_text_must_be_valid_for_every_base_in_use(tmp_path: Path) -> None:
    reasons = judged(tmp_path, BOTH)
    assert {name for name, reason in reasons.items() if not reason} == {"plain", "simple"}


def test_an_unknown_model_family_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'qwen3'.*higgs_audio_v2.*higgs_multimodal_qwen3"):
        judged(tmp_path, (str(base_of(tmp_path / "body", "qwen3")),))


def test_families_of_known_models_need_no_download_or_build(tmp_path: Path) -> None:
    demos = {"resources/tiny": V2, "resources/tiny-v3": V3}
    for name in (str(base_of(tmp_path / "mine", V3)), "resources/tiny-v3"):
        assert family_of(name, None, demos) == V3
    assert family_of("resources/tiny/", None, demos) == V2
    assert {name: family_of(name, None, demos) for name in PUBLISHED} == PUBLISHED
    assert family_of("acme/base", None, demos) == "acme/base"
    assert family_of("acme/base", "v1.0", demos) == "acme/base@v1.0"


def test_tags_do_not_count_as_words(tmp_path: Path) -> None:
    judged(tmp_path, (V3,))
    clips = {
        row["clip_id"]: row
        for row in read_table(tmp_path / "data/clips.parquet", CLIPS).to_pylist()
    }
    assert clips["tagged"]["num_characters"] == len("Well,thisisnot.")
    assert clips["tagged"]["num_words"] == 4
