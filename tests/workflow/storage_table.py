"""What the rules read of manifests on object storage, as Snakemake plans it.

As a program, prints the fetched inputs of each rule as JSON: first with the manifest on S3, then
with ``eval.other_manifest`` there.
"""

import json
import os
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from snakemake_interface_storage_plugins.registry import StoragePluginRegistry
from snakemake_interface_storage_plugins.storage_object import StorageObjectRead
from snakemake_interface_storage_plugins.storage_provider import (
    StorageProviderBase,
    StorageQueryValidationResult,
)
from workflow.rules_table import planned_jobs

from higgs_pipe.planning.storage import PLUGIN

URLS = {"manifest": "s3://voices/own/m.jsonl", "other_manifest": "s3://voices/other/m.jsonl"}


class StorageObject(StorageObjectRead):
    """A folder that exists."""

    def local_suffix(self) -> str:
        return self.query.removeprefix("s3://")

    async def inventory(self, cache: Any) -> None:
        pass

    def get_inventory_parent(self) -> None:
        return None

    def cleanup(self) -> None:
        pass

    def exists(self) -> bool:
        return True

    def mtime(self) -> float:
        return 0.0

    def size(self) -> int:
        return 0

    def retrieve_object(self) -> None:
        raise AssertionError("a plan fetches nothing")


class StorageProvider(StorageProviderBase):
    """Stands in for Snakemake's plugin for S3."""

    @classmethod
    def example_queries(cls) -> list[Any]:
        return []

    def rate_limiter_key(self, query: str, operation: Any) -> None:
        return None

    def default_max_requests_per_second(self) -> float:
        return 1.0

    def use_rate_limiter(self) -> bool:
        return False

    @classmethod
    def is_valid_query(cls, query: str) -> StorageQueryValidationResult:
        return StorageQueryValidationResult(query, valid=query.startswith("s3://"))


def main() -> None:
    """Print the inputs."""
    plugin: Any = types.ModuleType(PLUGIN)
    plugin.__spec__ = ModuleSpec(PLUGIN, None)
    plugin.StorageProvider, plugin.StorageObject = StorageProvider, StorageObject
    sys.modules[PLUGIN] = plugin
    StoragePluginRegistry().register_plugin(PLUGIN, plugin)
    found = []
    for setting, url in URLS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            config: dict[str, Any] = {"manifest": "m.jsonl", "eval": {"other_manifest": "o.jsonl"}}
            config["push"] = {"repo": "ada/voice"}
            (config if setting == "manifest" else config["eval"])[setting] = url
            for name in ("m.jsonl", "o.jsonl"):
                Path(name).touch()
            found.append({job.name: inputs for job in planned_jobs(config) if (inputs := of(job))})
    print(json.dumps(found))


def of(job: Any) -> list[str]:
    """Return the recordings that a job waits for, and what it is told of their places."""
    files = [*job.input.get("folders", []), *job.input.get("fetched", [])]
    told = job.params.get("fetched", "{}")
    return [*map(place_of, files), *([] if told == "{}" else [told])]


def place_of(file: Any) -> str:
    """Return where a file lies on this machine, and whether it stays there."""
    stored = file.flags.get("storage_object")
    return f"{file}, kept" if stored is not None and stored.keep_local else str(file)


if __name__ == "__main__":
    main()
