"""File names that the rules need: manifests, the demo base, the outputs of a run."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from higgs_pipe.planning.file_names import MANIFESTS_IN_FOLDER, METADATA, METADATA_JSON
from higgs_pipe.planning.folders import audio_stem, files_below, transcript_stem
from higgs_pipe.planning.forms import FULL_FORMS


def manifests(config: Mapping[str, Any]) -> list[str]:
    """Return the files of all manifests; a change of one is a reason to validate again.

    A folder stands for the files in it that a reader opens: Kaldi's tables, metadata and
    transcripts. A missing file is listed too.
    """
    files: dict[str, None] = {}
    for path in _paths(config):
        folder = path.parent if path.name == METADATA_JSON else path
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
    """Return a hash of the names of all recordings in manifests that are folders.

    If a recording is added or removed there, the folder must be read again; recordings that other
    manifests name are known from these.
    """
    digest = hashlib.sha256()
    for path in _paths(config):
        for file in files_below(path):
            if audio_stem(file):
                digest.update(f"{file}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def manifest_entries(manifest: Any) -> list[Mapping[str, Any]]:
    """Return the manifests that the config names, each as an object with its ``path``."""
    entries = manifest if isinstance(manifest, list) else [manifest]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


def _paths(config: Mapping[str, Any]) -> list[Path]:
    """Return the paths of all manifests."""
    return [Path(entry["path"]) for entry in manifest_entries(config["manifest"])]


def inputs(paths: Sequence[str]) -> list[str]:
    """Return the paths that can be inputs of a rule.

    A missing file cannot; its stage reports it with a remedy. Nor can a path with braces, which
    Snakemake takes for wildcards; :func:`higgs_pipe.planning.recordings.stamp_of` knows its state.
    """
    return [path for path in paths if Path(path).is_file() and not {"{", "}"} & {*path}]


# Weights, config, tokenizer and chat template.
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def checkpoint_hash(name: str, cache: Path) -> str | None:
    """Return a hash of the files in a checkpoint's folder that affect the model.

    If it changes, the checkpoint is pinned again; a new modification time or another folder does
    not matter. None for a Hub id, which stays at its pinned commit.

    Args:
        name: A folder or a Hub id.
        cache: JSON file that keeps the hashes by path, size and modification time: 11.5 GB take
            some 7 seconds, once.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    paths = sorted(path for path in folder.iterdir() if path.suffix in CHECKPOINT_SUFFIXES)
    stats = {path: path.stat() for path in paths if path.is_file()}
    keys = {path: f"{path.resolve()} {s.st_size} {s.st_mtime_ns}" for path, s in stats.items()}
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    new = {key: _sha256(path) for path, key in keys.items() if key not in known}
    if new:
        with suppress(OSError):  # a cache that cannot be written costs time alone
            cache.parent.mkdir(parents=True, exist_ok=True)
            aside = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
            aside.write_text(json.dumps(known | new, indent=2), encoding="utf-8")
            aside.replace(cache)
    lines = [f"{(known | new)[key]}  {path.name}\n" for path, key in keys.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_within(path: str, folder: str) -> bool:
    """Return whether ``path`` is ``folder`` or lies below it; neither need exist."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def demo_lines(changes: Mapping[str, Any], settings_path: Path) -> list[str]:
    """Return the sentence on settings in force only for the demo's miniature, if there are any."""
    listed = ", ".join(f"{key}: {value}" for key, value in changes.items())
    return [f"base_model is the demo's miniature; {settings_path} sets {listed}"] if listed else []


class Product(NamedTuple):
    """A result of a run that a person looks for."""

    label: str
    shown: Path
    file: Path  # written with it
    is_final: bool = True


def products(
    results_dir: Path, experiments: Sequence[str], base_folders: Sequence[str]
) -> list[Product]:
    """Return the products of the targets, from the last to the first.

    Args:
        results_dir: The results.
        experiments: The names of the experiments.
        base_folders: For each base model, its folder below the results.
    """
    data, report = (results_dir / name for name in ("data", "report"))
    packed = [results_dir / folder / "packed" for folder in base_folders]
    made = []
    for name in experiments:
        package, experiment = results_dir / "adapters" / name, results_dir / "experiments" / name
        adapter, metrics = experiment / "train" / "adapter", experiment / "eval" / "metrics.json"
        made += [
            Product(f"adapter {name}", package, package.with_name(f"{name}.zip")),
            *(
                Product(f"{form} {name}", results_dir / form / name, results_dir / form / name)
                for form in FULL_FORMS
            ),
            Product(f"metrics {name}", metrics, metrics),
            Product(f"trained {name}", adapter, adapter / "adapter_config.json"),
        ]
    return [
        *made,
        Product("report", report / "index.html", report / "index.html"),
        *(Product("packed rows", each, each / "packing.json", is_final=False) for each in packed),
        Product("recordings", data / "index.html", data / "index.html", is_final=False),
        Product("clips", data / "clips.parquet", data / "clips.parquet", is_final=False),
        Product("rejected", data / "rejected.parquet", data / "rejected.parquet", is_final=False),
    ]


def versions(made: Sequence[Product]) -> dict[Path, int]:
    """Return the time at which each existing product was last written, in nanoseconds."""
    return {each.file: each.file.stat().st_mtime_ns for each in made if each.file.is_file()}


def closing_lines(made: Sequence[Product], before: Mapping[Path, int]) -> list[str]:
    """Return a line per product of a run: label and path.

    Args:
        made: :func:`products`.
        before: :func:`versions` of them before the run.
    """
    now = versions(made)
    new = [each for each in made if each.file in now and now[each.file] != before.get(each.file)]
    new = [each for each in new if each.is_final] or new
    width = max((len(each.label) for each in new), default=0)
    return [f"{each.label:<{width}}  {each.shown}" for each in new]
