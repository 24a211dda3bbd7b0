"""Prompt rules by family, for ``validate``, which starts without PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.v2.rules import RULES as V2_RULES
from higgs_pipe.higgs.v3.rules import RULES as V3_RULES
from higgs_pipe.planning.checkpoint_files import missing_number, read_object, size_fault
from higgs_pipe.planning.model_types import V2, V3
from higgs_pipe.planning.user_files import UnfitFileError

# By model_type in config.json.
RULES: Mapping[str, PromptRules] = {
    V2: V2_RULES,
    V3: V3_RULES,
}


def rules_of(family: str) -> PromptRules:
    """Return the prompt rules of a family.

    Args:
        family: Its ``model_type``, or a model of the Hub: ``name`` or ``name@revision``.

    Raises:
        UserError: The model cannot be reached, has no config, or is of no known family.
    """
    if family in RULES:
        return RULES[family]
    name, _, revision = family.partition("@")
    base = Pretrained("base_model", name, revision or None)
    return RULES[model_type_of(base)]


def model_type_of(base: Pretrained) -> str:
    """Return the ``model_type`` of a checkpoint, one of ``RULES``.

    Raises:
        UserError: It cannot be found or reached, has no config, or is of no known family.
    """
    found = config_json(base).get("model_type")
    if not isinstance(found, str) or found not in RULES:
        raise unknown_model_type(f"{base.setting} {base.name!r}", found)
    return found


def config_json(base: Pretrained) -> Any:
    """Return the contents of a checkpoint's ``config.json``.

    Raises:
        UserError: It cannot be found or reached, or has no config.
    """
    folder, where = Path(base.name), f"{base.setting} {base.name!r}"
    if not folder.is_dir():
        from higgs_pipe.higgs.pretrained import small_files  # imports the Hub's client

        folder = small_files(base)
    if not (folder / "config.json").is_file():
        raise UserError(f"{where} cannot be loaded: it has no config.json\nUse a complete one.")
    try:
        return read_object(folder / "config.json")
    except UnfitFileError as error:
        raise UserError(f"{where} cannot be loaded: its config.json {error}.") from None


def sizes_json(base: Pretrained) -> Any:
    """Return the contents of a base's ``config.json``, with every size and token id in it.

    Raises:
        UserError: As :func:`model_type_of`, or a number is missing, or one that no model can have.
    """
    model_type_of(base)
    config = config_json(base)
    if fault := size_fault(config) or missing_number(config):
        raise UserError(f"{base.setting} {base.name!r} {fault}.\nUse a complete checkpoint.")
    return config


def unknown_model_type(where: str, found: object) -> UserError:
    """Return the error that a checkpoint is of no known family."""
    known = ", ".join(f"{model_type} ({rules.model})" for model_type, rules in RULES.items())
    return UserError(
        f"{where}: config.json has model_type {found!r}; known are {known}. Name a complete "
        "checkpoint of one of these."
    )
