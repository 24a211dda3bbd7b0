"""JSON results: they survive a round trip, and anything else is refused with its place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from higgs_pipe.data.results import Result, ResultPart, write_hashed
from higgs_pipe.errors import UserError


class Share(ResultPart):
    hours: float
    num_clips: int


class Counts(Result):
    made_by: ClassVar[str] = "count_rule"

    title: str
    shares: dict[str, Share]
    ids: tuple[str, ...] = ()
    longest: float | None = None


COUNTS = Counts(title="ä", shares={"ada": Share(hours=0.5, num_clips=2)}, ids=("a", "b"))
TEXT = json.dumps(COUNTS.model_dump())


def test_results_are_written_as_indented_json_in_field_order(tmp_path: Path) -> None:
    COUNTS.write(tmp_path / "counts.json")
    written = (tmp_path / "counts.json").read_text(encoding="utf-8")
    expected: dict[str, Any] = {
        "title": "ä",
        "shares": {"ada": {"hours": 0.5, "num_clips": 2}},
        "ids": ["a", "b"],
        "longest": None,
    }
    expected["sha256"] = hashlib.sha256(json.dumps(expected).encode()).hexdigest()
    assert written == json.dumps(expected, indent=2, ensure_ascii=False) + "\n"
    assert Counts.read(tmp_path / "counts.json") == COUNTS


def test_a_result_with_a_changed_digit_is_refused(tmp_path: Path) -> None:
    COUNTS.write(path := tmp_path / "counts.json")
    path.write_text(path.read_text().replace("0.5", "0.7"))
    with pytest.raises(UserError, match="count_rule") as caught:
        Counts.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_user_error_that_names_the_rule(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="count_rule") as caught:
        Counts.read(tmp_path / "counts.json")
    assert str(tmp_path / "counts.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"title": 3}, "title"),
        ({"shares": {"ada": {"hours": 0.5}}}, "shares.ada.num_clips"),
        ({"shares": {"ada": {"hours": float("nan"), "num_clips": 2}}}, "shares.ada.hours"),
        ({"shares": {"ada": {"hours": float("inf"), "num_clips": 2}}}, "shares.ada.hours"),
        ({"shares": {"ada": {"hours": "0.5", "num_clips": 2}}}, "shares.ada.hours"),
        ({"shares": {"ada": {"hours": True, "num_clips": 2}}}, "shares.ada.hours"),
        ({"shares": {"ada": {"hours": 0.5, "num_clips": 2.5}}}, "shares.ada.num_clips"),
        ({"of_another_version": 1}, "of_another_version"),
    ],
)
def test_a_wrong_value_is_refused_with_file_key_and_rule(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(json.loads(TEXT) | change))
    with pytest.raises(UserError) as caught:
        Counts.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"`{key}`" in message
    assert "--forcerun count_rule" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", TEXT[:-1]])
def test_text_that_is_not_a_valid_json_object_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UserError, match=r"counts.jsonl:3"):
        Counts.parse(text, "counts.jsonl:3")


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    text = json.dumps(json.loads(TEXT) | {"title": 3, "longest": "long", "other": 1})
    with pytest.raises(UserError) as caught:
        Counts.parse(text, "counts.json")
    assert [key for key in json.loads(text) if f"`{key}`" in str(caught.value)] == [
        "title",
        "longest",
        "other",
    ]


@pytest.mark.parametrize("content", [b"\xff", 100_000 * b"["], ids=["not UTF-8", "nested"])
def test_a_file_of_other_bytes_is_refused_with_file_and_rule(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "counts.json").write_bytes(content)
    with pytest.raises(UserError, match=r"(?s)counts\.json: ?.*--forcerun count_rule"):
        Counts.read(tmp_path / "counts.json")


def test_nan_is_refused_on_writing() -> None:
    with pytest.raises(ValidationError, match=r"hours"):
        Share(hours=float("nan"), num_clips=1)


class Beside(Result):
    """A result whose hash is in a file beside it."""

    made_by: ClassVar[str] = "beside_rule"
    is_hash_beside: ClassVar[bool] = True

    number: int


def test_a_hash_beside_a_result_is_checked(tmp_path: Path) -> None:
    Beside(number=5).write(path := tmp_path / "a.json")
    assert json.loads(path.read_text()) == {"number": 5}
    assert Beside.read(path).number == 5
    path.write_text(path.read_text().replace("5", "6"))
    with pytest.raises(UserError, match=r"a\.json: changed since it was written"):
        Beside.read(path)


def test_files_that_belong_to_a_result_are_checked_with_it(tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "a.bin"
    other.write_bytes(b"as written")
    COUNTS.write(path, beside=["a.bin"])
    assert Counts.read(path) == COUNTS
    other.write_bytes(b"changed")
    with pytest.raises(UserError, match=r"a\.bin: changed since it was written"):
        Counts.read(path)
    other.unlink()
    with pytest.raises(UserError, match=r"a\.bin: the file is missing"):
        Counts.read(path)


def test_each_file_beside_a_result_has_its_own_hash(tmp_path: Path) -> None:
    path, others = tmp_path / "counts.json", [tmp_path / "a.bin", tmp_path / "b.bin"]
    for other in others:
        other.write_text(other.name)
    COUNTS.write(path, beside=["a.bin", "b.bin"])
    assert Counts.read(path) == COUNTS
    others[1].write_text("a.bin")
    with pytest.raises(UserError, match=r"b\.bin: changed since it was written"):
        Counts.read(path)


@pytest.mark.parametrize("beside", [{"../a.bin": ""}, {"": ""}, ["a.bin"], "a.bin"])
def test_only_files_of_its_own_folder_belong_to_a_result(tmp_path: Path, beside: Any) -> None:
    write_hashed(tmp_path / "a.json", {"number": 5, "sha256_beside": beside})
    with pytest.raises(UserError, match="names files elsewhere"):
        Beside.read(tmp_path / "a.json")
