"""Files that the rules wait for and name: manifests, shards, what a run leaves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Bump a number when the stage's output changes: Snakemake does not see edits to modules that a
# rule runs with `python -m`, but it reruns a rule whose parameters changed.
STAGE_VERSIONS: dict[str, int] = {
    "tiny": 1,
    "list_rows": 2,
    "measure": 2,
    "validate": 4,
    "estimate": 1,
    "tokenize": 2,
    "pack": 2,
    "train": 4,
    "eval": 1,
    "package": 1,
    "report": 2,
}


# What a folder that is a manifest may hold, beside transcripts.
FOLDER_MANIFESTS = (
    *("wav.scp", "text", "utt2spk", "segments"),
    *("metadata.json", "metadata.jsonl", "metadata.csv"),
)


def manifests(config: Mapping[str, Any]) -> list[str]:
    """The files that the manifests consist of; a change of one is a reason to validate again.

    A manifest that is a folder stands for the files in it that a reader looks at: those of Kaldi,
    the metadata and the transcripts. A file that is missing is named too.
    """
    manifest = config["manifest"]
    entries = manifest if isinstance(manifest, list) else [manifest]
    paths = [Path(entry if isinstance(entry, str) else entry["path"]) for entry in entries]
    files: dict[str, None] = {}
    for path in paths:
        folder = path.parent if path.name == "metadata.json" else path
        if folder.is_dir():
            found = [folder / name for name in FOLDER_MANIFESTS if (folder / name).is_file()]
            files |= dict.fromkeys(map(str, [*found, *sorted(folder.rglob("*.txt"))]))
        else:
            files[str(path)] = None
    return list(files)


def shard_names(num_shards: int) -> list[str]:
    """``shard-00000``, ``shard-00001``, ..."""
    return [f"shard-{index:05d}" for index in range(num_shards)]


def is_within(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies below it; neither need exist."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def closing_lines(results_dir: Path, experiments: Sequence[str]) -> list[str]:
    """Where the adapters, their metrics and the report are; only those that exist."""
    products = [
        (label, path)
        for name in experiments
        for label, path in (
            (f"adapter {name}", results_dir / "adapters" / name),
            (f"metrics {name}", results_dir / "experiments" / name / "eval" / "metrics.json"),
        )
    ]
    products.append(("report", results_dir / "report" / "index.html"))
    width = max(len(label) for label, _ in products)
    return [f"{label:<{width}}  {path}" for label, path in products if path.exists()]
