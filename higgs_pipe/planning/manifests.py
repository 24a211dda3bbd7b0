"""The manifests of a config: their files, and the recordings in those that are folders."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from higgs_pipe.planning.file_names import MANIFESTS_IN_FOLDER, METADATA, METADATA_JSON
from higgs_pipe.planning.folders import audio_stem, files_below, transcript_stem
from higgs_pipe.planning.user_files import path_fault


def manifest_files(config: Mapping[str, Any]) -> list[str]:
    """Return the files of all manifests; a change of one is a reason to validate again.

    A folder stands for the files in it that a reader opens: Kaldi's tables, metadata and
    transcripts. A missing file is listed too.
    """
    files: dict[str, None] = {}
    for path, folder in _paths(config):
        if folder.is_dir():
            found = [folder / name for name in MANIFESTS_IN_FOLDER if (folder / name).is_file()]
            below = [
                file
                for file in files_below(folder)
                if transcript_stem(file) or file.name in METADATA
            ]
            files |= dict.fromkeys(map(str, [*found, *below]))
        else:
            files[str(path)] = None
    return list(files)


def config_of_other(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config for listing and judging ``eval.other_manifest``, in one shard."""
    return {
        **config,
        "manifest": config["eval"]["other_manifest"],
        "data": {**config["data"], "num_shards": 1},
    }


def recordings_in_folders(config: Mapping[str, Any]) -> str:
    """Return a hash of the names of all recordings in folders that manifests stand for.

    If a recording is added or removed there, the folder must be read again; recordings that other
    manifests name are known from these.
    """
    digest = hashlib.sha256()
    for _, folder in _paths(config):
        for file in files_below(folder):
            if audio_stem(file):
                digest.update(f"{file}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def manifest_entries(manifest: Any) -> list[Mapping[str, Any]]:
    """Return the manifests that the config names, each as an object with its ``path``."""
    entries = manifest if isinstance(manifest, list) else [manifest]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


def _paths(config: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """Return the path of each manifest, and that of the folder that it stands for, if any."""
    paths = [Path(entry["path"]) for entry in manifest_entries(config["manifest"])]
    return [(path, path.parent if path.name == METADATA_JSON else path) for path in paths]


def inputs(paths: Sequence[str]) -> list[str]:
    """Return the paths that can be inputs of a rule.

    A missing file cannot; its stage reports it with a remedy. Nor can a path with braces, which
    Snakemake takes for wildcards, or one that is not UTF-8, which it cannot write down;
    :func:`higgs_pipe.planning.recordings.stamp_of` knows their states.
    """
    known = (path for path in paths if path_fault(path) is None)
    return [path for path in known if Path(path).is_file() and not {"{", "}"} & {*path}]
