"""Manifests and recordings on S3, fetched by Snakemake's storage plugin.

A manifest's URL stands for its folder: the plugin lists that folder once and fetches everything in
it, however many recordings there are.
"""

import importlib.util
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.planning.manifests import manifest_entries

SCHEME = "s3"
PLUGIN = "snakemake_storage_plugin_s3"


def is_url(path: str) -> bool:
    """Return whether a manifest or a folder of recordings is on object storage."""
    return "://" in path


def folder_of(url: str) -> str:
    """Return the folder of a manifest; a URL that ends with ``/`` is itself a folder."""
    return url.rstrip("/") if url.endswith("/") else posixpath.dirname(url)


def folders(manifest: Any) -> list[str]:
    """Return the URLs of the folders on object storage that a manifest, or a list of them, names.

    Args:
        manifest: ``manifest`` or ``eval.other_manifest`` of the config.
    """
    found: set[str] = set()
    for entry in manifest_entries(manifest):
        if is_url(entry["path"]):
            found.add(folder_of(entry["path"]))
        if is_url(entry.get("root") or ""):
            found.add(entry["root"].rstrip("/"))
    return sorted(url for url in found if not any(url.startswith(f"{other}/") for other in found))


def check(config: Mapping[str, Any]) -> None:
    """Check the URLs of all manifests, and that the plugin is installed if there are any.

    Raises:
        UserError: A URL is not an S3 URL, contains credentials, names no folder or has braces, or
            the plugin is not installed; lists all.
    """
    manifests = {
        "manifest": config["manifest"],
        "eval.other_manifest": config["eval"]["other_manifest"] or [],
    }
    urls = [
        (key, value)
        for key, manifest in manifests.items()
        for entry in manifest_entries(manifest)
        for value in (entry["path"], entry.get("root") or "")
        if is_url(value)
    ]
    faults = [f"{key}: {fault}" for key, url in urls if (fault := _fault(url))]
    if faults:
        raise UserError(f"These URLs cannot be used:\n{list_offenders(faults)}")
    if urls and importlib.util.find_spec(PLUGIN) is None:
        raise UserError(
            f"{urls[0][0]}: {urls[0][1]} needs Snakemake's plugin for S3, which is not installed "
            "beside this Snakemake: pip install snakemake-storage-plugin-s3"
        )


def _fault(url: str) -> str | None:
    """Return an error on a URL, shown without credentials; None if it is fine."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme != SCHEME:
        return f"{shown} is not on S3; mount other storage as a folder, and name that"
    if "@" in parts.netloc or parts.query:
        return (
            f"{shown} holds credentials, which would be written to results; give them by "
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY and SNAKEMAKE_STORAGE_S3_SECRET_KEY"
        )
    if "{" in url or "}" in url:
        return f"{shown} has braces, which Snakemake takes for wildcards"
    if not urlsplit(folder_of(url)).path.strip("/"):
        return f"{shown} lies in no folder, and the whole bucket would be fetched; move it into one"
    return None


def fetched_text(urls: Sequence[str], paths: Sequence[str]) -> str:
    """Return the local paths of fetched folders, as JSON text for ``list_rows``.

    Args:
        urls: :func:`folders`.
        paths: The local folder of each.
    """
    return json.dumps(dict(zip(urls, map(str, paths), strict=True)), sort_keys=True)


def fetched_path(url: str, fetched: Mapping[str, str]) -> str:
    """Return the local path of a manifest or of a folder of recordings.

    Args:
        url: Its URL; a path is returned unchanged.
        fetched: The local folder of each folder's URL.
    """
    for folder, path in fetched.items():
        if f"{url}/".startswith(f"{folder}/"):
            return path + url[len(folder) :].rstrip("/")
    return url
