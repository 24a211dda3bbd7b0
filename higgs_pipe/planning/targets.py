"""Files that the rules wait for and name: manifests, the demo base, what a run leaves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from higgs_pipe.planning.file_names import MANIFESTS_IN_FOLDER, METADATA_JSON


def manifests(config: Mapping[str, Any]) -> list[str]:
    """Return the files of all manifests; a change of one is a reason to validate again.

    A folder stands for the files in it that a reader opens: Kaldi's tables, metadata and
    transcripts. A missing file is listed too.
    """
    manifest = config["manifest"]
    entries = manifest if isinstance(manifest, list) else [manifest]
    paths = [Path(entry if isinstance(entry, str) else entry["path"]) for entry in entries]
    files: dict[str, None] = {}
    for path in paths:
        folder = path.parent if path.name == METADATA_JSON else path
        if folder.is_dir():
            found = [folder / name for name in MANIFESTS_IN_FOLDER if (folder / name).is_file()]
            files |= dict.fromkeys(map(str, [*found, *sorted(folder.rglob("*.txt"))]))
        else:
            files[str(path)] = None
    return list(files)


def is_within(path: str, folder: str) -> bool:
    """Return whether ``path`` is ``folder`` or lies below it; neither need exist."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def closing_lines(results_dir: Path, experiments: Sequence[str]) -> list[str]:
    """Return a line per adapter, metrics file and report: label and path, if it exists."""
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
