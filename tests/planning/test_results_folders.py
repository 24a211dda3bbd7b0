"""Folders that cannot be written to are named before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import has_line_with

from higgs_pipe.errors import UserError
from higgs_pipe.planning.results import check_writable

NOBODY = 65534


@pytest.fixture
def as_a_user(tmp_path: Path) -> Iterator[None]:
    """Permissions do not stop root, so a test run by root continues as another user."""
    user = os.geteuid()
    if user == 0:
        for folder in (tmp_path, *tmp_path.parents[:-2]):
            folder.chmod(0o777)
        os.seteuid(NOBODY)
    yield
    os.seteuid(user)


def fault_of(*folders: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_writable([str(folder) for folder in folders])
    return str(caught.value)


def test_folders_that_exist_or_can_be_created_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a b's").mkdir()
    check_writable([str(tmp_path / "a b's"), str(tmp_path / "new" / "deep")])


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    assert has_line_with(fault_of(tmp_path / "results"), "results is a file")
    said = fault_of(tmp_path / "results" / "deep")
    assert has_line_with(said, "deep: ", str(tmp_path / "results"), "is a file")


def test_a_folder_with_braces_is_refused(tmp_path: Path) -> None:
    for name in ("res {x", "res x}"):
        assert has_line_with(fault_of(tmp_path / name), name, "braces")


@pytest.mark.parametrize("name", ["-results", "--results/deep", "res\nults"])
def test_a_folder_with_a_leading_dash_or_a_newline_is_refused(name: str) -> None:
    assert "begins with a dash or has a line break" in fault_of(Path(name))


def test_a_folder_that_no_path_can_lead_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name in ("n" * 256, "circle/results", "a\0b"):
        assert has_line_with(fault_of(tmp_path / name), name, "cannot be opened")


@pytest.mark.parametrize("place", ["results", "results/data"])
def test_an_unwritable_folder_is_named_with_its_owner(
    tmp_path: Path, place: str, as_a_user: None
) -> None:
    (tmp_path / "results" / "data").mkdir(parents=True)
    (tmp_path / place).chmod(0o555)
    said = fault_of(tmp_path / "results", tmp_path / "logs")
    assert has_line_with(said, f"results: {tmp_path / place} belongs to")
    assert f"{tmp_path / 'logs'}" not in said
    (tmp_path / place).chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_an_owner_without_a_user_name_is_given_by_number(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    os.chown(tmp_path / "theirs", 4_242_424, -1)
    request.getfixturevalue("as_a_user")
    assert has_line_with(fault_of(tmp_path / "theirs"), "theirs", "belongs to user 4242424")
