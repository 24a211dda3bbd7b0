"""The products of a run: the results that a person looks for, listed when it ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from higgs_pipe.planning.file_names import CHECKSUMS
from higgs_pipe.planning.forms import FULL_FORMS


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
                Product(f"{form} {name}", folder := results_dir / form / name, folder / CHECKSUMS)
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
