"""Manifests that are URLs of object storage."""

import json

import pytest

from higgs_pipe.config.settings import Config
from higgs_pipe.errors import UserError
from higgs_pipe.planning import storage

# Modules that are there, and not there, as the plugin.
IS_THERE, IS_NOT = "json", "snakemake_storage_plugin_of_nobody"


@pytest.mark.parametrize(
    ("manifest", "folders"),
    [
        ("my/manifest.jsonl", []),
        ("s3://b/corpus/manifest.jsonl", ["s3://b/corpus"]),
        ("s3://b/corpus/", ["s3://b/corpus"]),
        (["a.jsonl", "s3://b/two/m.csv", "s3://b/one/m.csv"], ["s3://b/one", "s3://b/two"]),
        ({"path": "m.csv", "root": "s3://b/wavs/"}, ["s3://b/wavs"]),
        ({"path": "m.csv", "root": "s3://b/wavs"}, ["s3://b/wavs"]),
        ({"path": "s3://b/corpus/m.csv", "root": "s3://b/corpus/wavs"}, ["s3://b/corpus"]),
        ({"path": "s3://b/corpus/m.csv", "root": None}, ["s3://b/corpus"]),
        (["s3://b/corpus-2/m.csv", "s3://b/corpus/m.csv"], ["s3://b/corpus", "s3://b/corpus-2"]),
        ([], []),
    ],
)
def test_each_manifest_folder_is_fetched_once(manifest: object, folders: object) -> None:
    assert storage.folders(manifest) == folders


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("s3://b/corpus/m.csv", ".storage/b/corpus/m.csv"),
        ("s3://b/corpus/wavs/", ".storage/b/corpus/wavs"),
        ("s3://b/corpus", ".storage/b/corpus"),
        ("s3://b/corpus-2/m.csv", "s3://b/corpus-2/m.csv"),
        ("my/m.csv", "my/m.csv"),
    ],
)
def test_a_url_is_read_from_the_local_copy_of_its_folder(url: str, path: str) -> None:
    assert storage.fetched_path(url, {"s3://b/corpus": ".storage/b/corpus"}) == path


def test_each_folder_is_read_from_its_own_copy() -> None:
    text = storage.fetched_text(["s3://b/two", "s3://b/one"], [".storage/2", ".storage/1"])
    assert json.loads(text) == {"s3://b/one": ".storage/1", "s3://b/two": ".storage/2"}


def refusal(monkeypatch: pytest.MonkeyPatch, url: str, plugin: str = IS_THERE) -> str:
    monkeypatch.setattr(storage, "PLUGIN", plugin)
    other = {"other_manifest": [{"path": "own.csv", "root": url}]}
    config = Config(manifest="m.jsonl", base_model="b", codec="c", eval=other)
    with pytest.raises(UserError) as caught:
        storage.check(config.model_dump(by_alias=True))
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "fact"),
    [
        ("gs://b/corpus/m.csv", "gs://b/corpus/m.csv is not on S3"),
        ("s3://b/m.csv", "s3://b/m.csv lies in no folder"),
        ("s3://b/{x/m.csv", "s3://b/{x/m.csv has braces"),
        ("s3://b/x}/m.csv", "s3://b/x}/m.csv has braces"),
        ("s3://key:secret@b/corpus/m.csv", "s3://b/corpus/m.csv holds credentials"),
        ("s3://b/corpus/m.csv?sig=secret", "s3://b/corpus/m.csv holds credentials"),
    ],
)
def test_an_unusable_url_is_refused_without_printing_its_secrets(
    monkeypatch: pytest.MonkeyPatch, url: str, fact: str
) -> None:
    refused = refusal(monkeypatch, url)
    assert f"eval.other_manifest: {fact}" in refused
    assert "secret" not in refused.replace("SECRET_KEY", "")


def test_a_url_without_its_storage_plugin_is_refused_naming_the_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = refusal(monkeypatch, "s3://b/corpus/m.csv", plugin=IS_NOT)
    assert "pip install snakemake-storage-plugin-s3" in refused
