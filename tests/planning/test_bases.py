"""The base of each experiment, and the folder of what is made for it."""

import re
from typing import Any

import pytest

from higgs_pipe.errors import UserError
from higgs_pipe.planning import bases


def config_of(**experiments: dict[str, Any]) -> dict[str, Any]:
    """A config whose own base model is at a commit."""
    return {"base_model": "org/v2", "base_model_revision": "abc", "experiments": experiments}


@pytest.mark.parametrize(
    ("changes", "base", "folder"),
    [
        ({}, ("org/v2", "abc"), ""),
        ({"base_model": None}, ("org/v2", "abc"), ""),
        ({"base_model": "./org/v2"}, ("org/v2", "abc"), ""),
        ({"base_model": "org/v3"}, ("org/v3", None), "bases/v3/"),
        ({"base_model": "org/V3"}, ("org/V3", None), "bases/V3/"),
        ({"base_model_revision": "def"}, ("org/v2", "def"), "bases/v2-def/"),
        ({"base_model_revision": "refs/pr/1"}, ("org/v2", "refs/pr/1"), "bases/v2-refs_pr_1/"),
        ({"base_model": "a b/{c} 'd'/"}, ("a b/{c} 'd'/", None), "bases/_c___d_/"),
        ({"base_model": ".."}, ("..", None), "bases/base/"),
    ],
)
def test_each_experiment_has_a_base_and_a_folder_for_that_base(
    changes: dict[str, Any], base: tuple[str, str | None], folder: str
) -> None:
    config = config_of(a=changes)
    assert bases.base_of(config, "a") == base
    assert bases.folder_of(config, "a") == folder
    found = bases.configs(config)[folder]
    assert (found["base_model"], found["base_model_revision"]) == base


def test_experiments_on_one_base_share_its_folder() -> None:
    other = {"base_model": "org/v3"}
    assert list(bases.configs(config_of(a={}, b=other, c={"seed": 1}, d=other))) == [
        "",
        "bases/v3/",
    ]


def test_the_config_for_a_base_has_only_its_experiments() -> None:
    found = bases.configs(config_of(a={"seed": 1}, b={"base_model": "org/v3", "seed": 2}))
    assert found[""]["experiments"] == {"a": {"seed": 1}}
    assert found["bases/v3/"]["experiments"] == {"b": {"seed": 2}}


def test_training_overrides_of_an_experiment_exclude_its_base() -> None:
    changes = {"base_model": "org/v3", "base_model_revision": "abc", "seed": 1}
    assert bases.without_base(changes) == {"seed": 1}


def test_the_wildcard_pattern_matches_only_the_exact_folders() -> None:
    pattern = re.compile(bases.pattern(["", "bases/v3.1/", "bases/b+/"]))
    for folder in ("", "bases/v3.1/", "bases/b+/"):
        assert pattern.fullmatch(folder)
        assert not pattern.fullmatch(f"x{folder}")
    assert not pattern.fullmatch("bases/v3x1/")


def test_two_revisions_of_one_folder_are_refused() -> None:
    v3 = {"base_model": "org/v3"}
    experiments = {
        name: v3 | {"base_model_revision": of} for name, of in (("a", "1/2"), ("b", "1_2"))
    }
    with pytest.raises(UserError, match=r"experiments\.b\.base_model: .* bases/v3-1_2/"):
        bases.configs(config_of(**experiments))


def test_two_bases_with_the_same_name_are_refused() -> None:
    config = config_of(a={"base_model": "one/v3"}, b={"base_model": "two/v3"})
    with pytest.raises(UserError, match=r"experiments\.b\.base_model: 'two/v3' and 'one/v3'"):
        bases.configs(config)
