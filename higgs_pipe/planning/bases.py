"""The base models of the experiments, and the folder for the results of each.

Results for the config's own ``base_model`` are in the usual places, such as ``<results>/packed/``;
those for another base are in ``<results>/bases/<its name>/``.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from higgs_pipe.errors import UserError, list_offenders

KEYS = ("base_model", "base_model_revision")
OWN = ""


def base_of(config: Mapping[str, Any], experiment: str) -> tuple[str, str | None]:
    """Return the base model of an experiment and its revision.

    The revision in the config applies only to the config's own base model.
    """
    own, changes = str(config["base_model"]), config["experiments"][experiment]
    name = changes.get("base_model") or own
    is_own = os.path.normpath(name) == os.path.normpath(own)
    default = config["base_model_revision"] if is_own else None
    return (own if is_own else name), changes.get("base_model_revision") or default


def folder_of(config: Mapping[str, Any], experiment: str) -> str:
    """Return the folder, below the results, for an experiment's base model.

    Returns:
        ``""`` for the config's own base model, ``"bases/<name>/"`` for another one: the last part
        of its name, with its revision if it has one.
    """
    name, revision = base_of(config, experiment)
    if (name, revision) == (config["base_model"], config["base_model_revision"]):
        return OWN
    last = Path(name).name.strip(".") or "base"  # of "..", which would lead elsewhere
    label = re.sub(r"[^\w.-]", "_", last if revision is None else f"{last}-{revision}")
    return f"bases/{label}/"


def configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a config for each base model that an experiment is trained on, by its folder.

    Returns:
        The config with this base model, and the experiments on it alone.

    Raises:
        UserError: Two base models have one folder.
    """
    found: dict[str, dict[str, Any]] = {}
    faults = []
    for experiment, changes in config["experiments"].items():
        folder = folder_of(config, experiment)
        own = dict(zip(KEYS, base_of(config, experiment), strict=True))
        same = found.setdefault(folder, {**config, **own, "experiments": {}})
        same["experiments"][experiment] = without_base(changes)
        if any(same[key] != own[key] for key in KEYS):
            faults.append(
                f"experiments.{experiment}.base_model: {own['base_model']!r} and "
                f"{same['base_model']!r} would both be packed into {folder}"
            )
    if faults:
        raise UserError(
            "The config is refused:\n"
            f"{list_offenders(faults)}\n"
            "Give each base model a folder or a link with a name of its own."
        )
    return found


def pattern(folders: Iterable[str]) -> str:
    """Return a regular expression that matches all these folders, for a wildcard."""
    return f"(?:{'|'.join(re.escape(folder) for folder in folders if folder)})?"


def without_base(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``train`` settings that an experiment changes."""
    return {key: value for key, value in changes.items() if key not in KEYS}
