"""Checks, from small files alone, that checkpoints are what the config takes them for.

The Snakefile checks folders while planning; ``check_models`` checks models on the Hub.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.planning.checkpoint_files import (
    missing_number,
    read_header,
    read_object,
    size_fault,
)
from higgs_pipe.planning.model_types import BUNDLED_CODECS, CODEC, V2, V3
from higgs_pipe.planning.user_files import UnfitFileError

# By the setting that names a checkpoint: what it must be, and the `model_type` of each that it may
# be.
KINDS = {
    "base_model": ("the base model", (V2, V3)),
    "codec": ("the codec", (CODEC, *BUNDLED_CODECS)),
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
# What a merge by others may have lost; the other model's head is its embedding.
TEXT_HEADS = {V2: "text_lm_head.weight"}
WEIGHT_ENDINGS = (".safetensors", ".bin")
NUM_NAMES_SHOWN = 10


def check_folders(config: Mapping[str, Any], demo_bases: Iterable[str]) -> None:
    """Check the base models and the codec that are folders, except the demo's, built later.

    Raises:
        UserError: Some do not exist or are not such checkpoints; lists all.
    """
    named = {setting: (setting, config[setting]) for setting in KINDS}
    for experiment, changes in config["experiments"].items():
        if name := changes.get("base_model"):
            named[f"experiments.{experiment}.base_model"] = ("base_model", name)
    faults = [
        f"{key} {name!r} {fault}"
        for key, (setting, name) in named.items()
        if not is_hub_id(name)
        and not any(is_within(name, folder) for folder in demo_bases)
        and (fault := folder_fault(setting, name))
    ]
    if faults:
        raise UserError(
            f"These checkpoints cannot be used:\n{list_offenders(faults)}\n"
            "Fix them in your config, or with --config, and run snakemake again."
        )


def is_within(path: str, folder: str) -> bool:
    """Return whether ``path`` is ``folder`` or lies below it; neither need exist."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def is_hub_id(name: str) -> bool:
    """Return whether a name is a Hub id: ``org/model``, if no folder ``org`` exists here."""
    if HUB_ID.fullmatch(name) is None:
        return False
    path = Path(name)
    return not path.exists() and not (len(path.parts) > 1 and Path(path.parts[0]).is_dir())


def folder_fault(setting: str, name: str) -> str | None:
    """Return why a folder is not a checkpoint of its kind, as a predicate; None if it is one.

    Args:
        setting: ``base_model`` or ``codec``.
        name: The folder, which need not exist.
    """
    folder = Path(name)
    if name.startswith("-"):
        return "begins with a dash, like an option; write its full path"
    try:
        if not folder.exists():
            return f"does not exist{_advice_on_missing(folder)}"
        if not folder.is_dir():
            return f"is a file; name its folder, {folder.parent}"
        return config_fault(setting, folder) or weights_fault(setting, folder)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def config_fault(setting: str, folder: Path) -> str | None:
    """Return why a folder's ``config.json`` is not one of such a checkpoint, or None."""
    kind, model_types = KINDS[setting]
    if not (folder / "config.json").is_file():
        return _fault_without_config(folder, kind)
    try:
        config = read_object(folder / "config.json")
        found = config["model_type"]
    except (OSError, UnfitFileError, KeyError):
        return "has a damaged config.json: it names no model_type; copy the checkpoint again"
    if found not in model_types:
        others = [other for other, (_, its_types) in KINDS.items() if found in its_types]
        it_is = f"is that of {others[0]}" if others else f"is a {found!r}"
        listed = " or ".join(map(repr, model_types))
        return f"{it_is}; {kind} must have the model_type {listed} (in the published config.json)"
    fault = size_fault(config)
    if setting == "base_model":
        fault = fault or missing_number(config)
    return f"{fault}; copy the checkpoint again" if fault else None


def _advice_on_missing(folder: Path) -> str:
    there = next((parent for parent in folder.parents if parent.exists()), Path())
    with suppress(OSError):
        if names := sorted(path.name for path in there.iterdir() if path.is_dir()):
            names = [name for name in names if not name.startswith(".")][:NUM_NAMES_SHOWN]
            return f"; folders in {there.absolute()}: {', '.join(names)}"
    return f"; the path is relative to {Path.cwd()}"


def _fault_without_config(folder: Path, kind: str) -> str:
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = None
        with suppress(OSError, UnfitFileError):
            base = read_object(adapter).get("base_model_name_or_path")
        return "is an adapter; name the base that it was trained on" + (f", {base}" if base else "")
    below = sorted(str(path.parent) for path in folder.glob("*/config.json"))
    hint = f"; did you mean {' or '.join(below)}?" if below else "; name a folder that has one"
    return f"has no config.json, so it is not {kind}{hint}"


def weights_fault(setting: str, folder: Path, has_files: bool = True) -> str | None:
    """Return an error on missing or damaged weights of a checkpoint, or None.

    Args:
        setting: ``base_model`` or ``codec``.
        folder: Its folder.
        has_files: Whether the weights are present, or only their index.
    """
    names: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            places = read_object(index)["weight_map"]
            names |= set(places)
            lacking = sorted(name for name in set(places.values()) if not (folder / name).exists())
            if any(Path(name).name != name for name in places.values()):
                return f"has an {index.name} that names files elsewhere; copy the checkpoint again"
        except (OSError, UnfitFileError, KeyError, AttributeError, TypeError):
            return f"has a damaged {index.name}; copy the checkpoint again"
        if lacking and has_files:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            return f"lacks the weights {lacking[0]}{more}; copy or download it again"
    if not names and has_files:
        files = [path for path in folder.iterdir() if path.suffix in WEIGHT_ENDINGS]
        if not files:
            return "has no weights (.safetensors or .bin); copy or download it again"
        for file in files:
            if file.suffix == ".safetensors":
                try:
                    names |= set(read_header(file))
                except (OSError, UnfitFileError):
                    return f"has a damaged {file.name}; copy or download it again"
    model_type = read_object(folder / "config.json")["model_type"]
    prefix = BUNDLED_CODECS.get(model_type) if setting == "codec" else None
    if prefix and names and not any(name.startswith(prefix) for name in names):
        return f"has no codec in its bundle ({prefix}*); name a codec of its own"
    head = TEXT_HEADS.get(model_type) if setting == "base_model" else None
    if head and names and not any(name.endswith(head) for name in names):
        return (
            f"has no text head ({head}), so there would be no text loss; merge it again, "
            "loading the base with use_text_head=True"
        )
    return None
