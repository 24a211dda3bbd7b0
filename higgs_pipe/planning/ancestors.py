"""Earlier adapters that trainings continue from, checked before anything runs."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.launching import train_setting
from higgs_pipe.planning.pinning import hash_of_files
from higgs_pipe.planning.user_files import UnfitFileError

FILES = ("adapter_model.safetensors", "adapter_config.json", "base_model.json")
# Settings of train.lora, and PEFT's names of them.
MUST_AGREE = {
    "r": "r",
    "alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def ancestor_of(config: Mapping[str, Any], experiment: str) -> str | None:
    """Return the folder of the adapter that an experiment continues from, if any."""
    folder: str | None = train_setting(config, experiment, "init_adapter")
    return folder


def ancestor_files(config: Mapping[str, Any], experiment: str) -> list[str]:
    """Return the files of the adapter that an experiment continues from, as inputs of its rule.

    There are none for a folder with braces, which Snakemake takes for wildcards; training checks it
    anyway.
    """
    folder = ancestor_of(config, experiment)
    if folder is None or "{" in folder or "}" in folder:
        return []
    return [str(Path(folder) / name) for name in FILES]


def ancestor_option(config: Mapping[str, Any], experiment: str) -> str:
    """Return the option by which eval gets that adapter, for a shell; empty if there is none."""
    folder = ancestor_of(config, experiment)
    return "" if folder is None else f"--ancestor-dir {shlex.quote(folder)}"


def ancestor_hash(
    config: Mapping[str, Any], experiment: str, results: Path, cache: Path
) -> str | None:
    """Return a hash of the adapter that an experiment continues from.

    Snakemake asks only whether an input is newer than the output, and would not notice an adapter
    that was replaced by an older one.

    Args:
        config: The complete config.
        experiment: The experiment.
        results: The folder of results.
        cache: The hashes of files, as for :func:`higgs_pipe.planning.pinning.checkpoint_hash`.

    Returns:
        None if there is no such adapter, or if an experiment of the same config trains it: then it
        is not known while planning.
    """
    named = ancestor_of(config, experiment)
    if named is None or _is_own_result(named, config, results):
        return None
    return hash_of_files((Path(named, name) for name in FILES), cache)


def _is_own_result(named: str, config: Mapping[str, Any], results: Path) -> bool:
    """Return whether an adapter is the result of an experiment of this config."""
    trained = results.resolve() / "experiments"
    folders = [trained / other / "train/adapter" for other in config["experiments"]]
    return Path(named).resolve() in folders


def check_ancestors(config: Mapping[str, Any], results: Path, is_stored: bool = False) -> None:
    """Check that each experiment can continue from its adapter.

    An adapter that another experiment of the same config will train is checked by training.

    Args:
        config: The complete config.
        results: The folder of results.
        is_stored: Whether the results are on object storage, where training cannot look.

    Raises:
        UserError: Some cannot; lists all.
    """
    faults = [
        f"{experiment}: {fault}"
        for experiment in config["experiments"]
        if (fault := _fault(config, experiment, results, is_stored))
    ]
    if faults:
        raise UserError(f"train.init_adapter is refused:\n{list_offenders(faults)}")


def _fault(
    config: Mapping[str, Any], experiment: str, results: Path, is_stored: bool
) -> str | None:
    """Return why an experiment cannot continue from its adapter; None if it can."""
    named = ancestor_of(config, experiment)
    if named is None:
        return None
    folder = Path(named).resolve()
    if folder in (
        results.resolve() / "experiments" / experiment / "train/adapter",
        results.resolve() / "adapters" / experiment,
    ):
        return f"{named} is its own result, which training replaces; copy it to another folder"
    if _is_own_result(named, config, results):
        there = f"{named} is a result on object storage; copy it to a folder, and name that"
        return there if is_stored else None
    lora = config["train"]["lora"] | config["experiments"][experiment].get("lora", {})
    try:
        check_lora_settings(Path(named), lora)
    except UserError as error:
        return str(error)
    return None


def check_lora_settings(folder: Path, lora: Mapping[str, Any]) -> None:
    """Check that an adapter has the rank and scale that training is set to.

    Args:
        folder: The adapter's.
        lora: ``train.lora``.

    Raises:
        UserError: The folder holds no adapter with its base, or a setting differs.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        advice = "unpack the ZIP" if folder.is_file() else "name the folder of an adapter"
        raise UserError(f"{folder} has no {missing[0]}; {advice}")
    try:
        saved = read_object(folder / "adapter_config.json")
        found = {key: saved[name] for key, name in MUST_AGREE.items()}
    except (OSError, UnfitFileError, KeyError) as error:
        raise UserError(f"{folder / 'adapter_config.json'} is damaged ({error!r})") from None
    differing = [key for key, value in found.items() if value != lora[key]]
    if differing:
        there = ", ".join(f"{key}: {json.dumps(found[key])}" for key in differing)
        here = ", ".join(f"{key}: {json.dumps(lora[key])}" for key in differing)
        raise UserError(
            f"{folder} has {there}, train.lora has {here}; set train.lora to the former"
        )
