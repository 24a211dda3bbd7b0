"""The user's config, checked and completed, and the part that each stage reads."""

import copy
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import jsonschema  # type: ignore[import-untyped]  # ships no types
import yaml

from higgs_pipe.errors import EXIT_USER_ERROR, UserError, list_offenders
from higgs_pipe.planning.bases import without_base
from higgs_pipe.planning.bounds import MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH, MAX_CONFIG_VALUES
from higgs_pipe.planning.config_faults import faults_of
from higgs_pipe.planning.schemas import Schema, branch, types
from higgs_pipe.planning.user_files import UnfitFileError, path_fault, read_file

Result = TypeVar("Result")
# The one in C is ten times as fast; not every PyYAML has it.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What PyYAML raises of a control character, a date such as 2026-99-99, or `!!bool x`.
NOT_OF_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError)
SNAKEMAKE_KEYS = ("pathvars",)  # Snakemake reads and checks these parts of the config itself.


def _is_finite_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number),
)


def _may_be_path(value: Any) -> bool:
    return not isinstance(value, str) or path_fault(value) is None


_FORMATS = jsonschema.FormatChecker(formats=())
_FORMATS.checks("path")(_may_be_path)


def load_schema(schema_path: Path) -> dict[str, Any]:
    """Read the schema of ``config.yaml``, which :mod:`higgs_pipe.config.schema` generates."""
    text = schema_path.read_text(encoding="utf-8")
    return cast(dict[str, Any], yaml.load(text, _YAML_LOADER))


def load_config(
    config: Mapping[str, Any], schema_path: Path, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the user's config, checked and completed.

    Text is converted to a number if the schema requires one: YAML 1.1 reads ``2e-4`` as text,
    and ``--config train={learning_rate: 1e-4}`` gives text only. Missing keys get their defaults,
    except in ``experiments``, whose entries override parts of ``train``.

    Args:
        config: What Snakemake read from ``config.yaml`` and the command line.
        schema_path: ``workflow/schemas/config.schema.yaml``.
        given: The part that ``--configfile`` and ``--config`` gave. Experiments that it names
            replace those of ``config.yaml``.

    Raises:
        UserError: Keys are unknown or missing, or values have the wrong type, are out of bounds or
            may not be combined; the message lists the first 20 and counts the rest.
    """
    if fault := _amount_fault(config):
        raise UserError(f"The config is refused: {fault}.")
    schema = load_schema(schema_path)
    own = {key: value for key, value in config.items() if key not in SNAKEMAKE_KEYS}
    own |= {key: value for key, value in (given or {}).items() if key == "experiments"}
    own = _coerced(own, schema, schema)
    faults = _faults(own, schema)
    if not faults:
        _fill_defaults(own, schema, schema)
        faults = _faults_of_experiments(own, schema)
    if faults:
        raise UserError(
            "The config is refused:\n"
            f"{list_offenders(faults)}\n"
            "Fix config.yaml, or the values of --config and --configfile, and run snakemake again."
        )
    return {**own, **{key: config[key] for key in SNAKEMAKE_KEYS if key in config}}


def _faults(config: Mapping[str, Any], schema: Schema) -> list[str]:
    validator = _Validator(schema, format_checker=_FORMATS)
    errors = sorted(validator.iter_errors(config), key=lambda error: str(error.json_path))
    return list(dict.fromkeys(fault for error in errors for fault in faults_of(error, schema)))


def _faults_of_experiments(config: Mapping[str, Any], schema: Schema) -> list[str]:
    """Return the faults of the complete settings of each experiment.

    A value that it overrides may not go together with one that it takes from ``train``.
    """
    complete = {
        name: merge(config["train"], without_base(changes))
        for name, changes in config["experiments"].items()
    }
    settings = {"additionalProperties": schema["properties"]["train"]}
    of_experiments = {"$defs": schema["$defs"], "properties": {"experiments": settings}}
    return _faults({"experiments": complete}, of_experiments)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overrides`` laid over it, section by section."""
    merged = dict(base)
    for key, value in overrides.items():
        both_sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both_sections else value
    return merged


def config_path_or_exit(own: Path, shipped: Path) -> str:
    """Return the path of the config file: ``own`` if it holds anything, or else ``shipped``.

    If it is not YAML or has no keys, Snakemake ends with an error that names the line, and exit
    code 2.
    """
    path = own if own.is_file() else shipped
    try:
        found = yaml.safe_load(read_file(path, MAX_CONFIG_BYTES).decode())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        fact = f"{path}:{line}: this is not YAML: {error.problem}. "
        advice = "Indent with spaces, close each bracket, and quote text that holds ': ' or ' #'."
        _exit_with(fact + advice)
    except (OSError, UnicodeDecodeError) as error:
        _exit_with(f"{path} cannot be read as UTF-8 text: {error}")
    except (UnfitFileError, RecursionError) as error:
        why = "nests too deeply" if isinstance(error, RecursionError) else error
        _exit_with(f"{path} {why}")
    except NOT_OF_YAML as error:
        _exit_with(f"{path} has a value that YAML cannot read: {error}")
    if fault := _amount_fault(found):
        _exit_with(f"{path}: {fault}")
    if found is None:
        return str(shipped)
    if not isinstance(found, Mapping):
        fact = f"{path}:1: expected keys such as `manifest: my/manifest.jsonl`, found "
        _exit_with(fact + f"{'a list' if isinstance(found, list) else 'a text'}.")
    return str(path)


def _amount_fault(config: Any) -> str | None:
    """Return why values are not those of a config, or None.

    A YAML alias may contain itself, and ten nested ones can make billions of values; code after
    this check can walk through the values safely.
    """
    num_values = 0
    places = [iter([config])]
    while places:
        for value in places[-1]:
            num_values += 1
            if isinstance(value, Mapping | list):
                places.append(iter(value.values() if isinstance(value, Mapping) else value))
                break
        else:
            places.pop()
        if num_values > MAX_CONFIG_VALUES:
            return f"more than {MAX_CONFIG_VALUES:,} values; write out what its aliases stand for"
        if len(places) > MAX_CONFIG_DEPTH:
            return f"more than {MAX_CONFIG_DEPTH} levels; does an alias stand in itself"
    return None


def or_exit(check: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function returns; its :class:`UserError` ends Snakemake with exit code 2."""
    try:
        return check(*arguments)
    except UserError as error:
        _exit_with(str(error))


def _exit_with(message: str) -> NoReturn:
    """Print a message and end Snakemake with exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(EXIT_USER_ERROR)


def use_demo_settings(
    config: dict[str, Any], settings_path: Path, schema_path: Path, typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Apply the demo's settings where the user has set nothing else.

    A setting is changed only if it still has its default and ``typed`` does not name it: a config
    file may be a copy of the shipped one, which names every setting.

    Args:
        config: The complete config; changed in place.
        settings_path: ``examples/demo/settings.yaml``.
        schema_path: ``workflow/schemas/config.schema.yaml``.
        typed: The part of the config that ``--config`` gave.

    Returns:
        The settings that were changed, with dotted names.
    """
    schema = load_schema(schema_path)
    defaults: dict[str, Any] = {}
    _fill_defaults(defaults, schema, schema)
    changed: dict[str, Any] = {}
    for section, settings in yaml.safe_load(settings_path.read_text(encoding="utf-8")).items():
        for key, value in settings.items():
            is_default = config[section][key] == defaults[section][key]
            if is_default and key not in (typed.get(section) or {}):
                parts = value if isinstance(value, Mapping) else {}
                changed |= {f"{section}.{key}.{name}": part for name, part in parts.items()}
                if parts:
                    value = {**defaults[section][key], **parts}
                else:
                    changed[f"{section}.{key}"] = value
                config[section][key] = value
    return changed


def demo_lines(changes: Mapping[str, Any], settings_path: Path) -> list[str]:
    """Return the sentence on settings in force only for the demo's miniature, if there are any."""
    listed = ", ".join(f"{key}: {value}" for key, value in changes.items())
    return [f"base_model is the demo's miniature; {settings_path} sets {listed}"] if listed else []


def stage_config_text(config: Mapping[str, Any], stage: str, schema: Schema) -> str:
    """Return the keys that ``stage`` reads, as JSON text: equal settings give equal text."""
    part: dict[str, Any] = {}
    for dotted in schema["x-stages"][stage]:
        *sections, key = dotted.split(".")
        source, target = config, part
        for section in sections:
            source, target = source[section], target.setdefault(section, {})
        target[key] = source[key]
    return json.dumps(part, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _coerced(value: Any, schema: Schema, root: Schema) -> Any:
    """Return ``value`` with text converted to the number, Boolean or null of ``schema``."""
    allowed = types(schema, root)
    if value is None and allowed == {"object"}:
        return {}  # a section whose keys are all commented out
    if isinstance(value, Mapping):
        section = branch(schema, "object", root)
        properties, other = section.get("properties", {}), section.get("additionalProperties")
        other = other if isinstance(other, Mapping) else {}
        return {
            str(key): _coerced(item, properties.get(str(key), other), root)
            for key, item in value.items()
        }
    if isinstance(value, list):
        items = branch(schema, "array", root).get("items", {})
        return [_coerced(item, items, root) for item in value]
    if isinstance(value, str) and (
        not _takes_text(value, schema, root) or (value == "null" and "null" in allowed)
    ):
        value = _scalar(value)
    # 1 and 1.0 are one setting: no rerun for it.
    if "integer" in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    if "number" in allowed and type(value) is int and abs(value) < 2**53:
        return float(value)
    return value


def _takes_text(text: str, schema: Schema, root: Schema) -> bool:
    """Return whether ``schema`` allows text, or this word instead of a number or Boolean."""
    allowed = types(schema, root)
    declared = branch(schema, "string", root) if "string" in allowed else {}
    return "string" in allowed and ("const" not in declared or text == declared["const"])


def _scalar(text: str) -> Any:
    """Return the number, Boolean or null that ``text`` spells, or the text itself."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _fill_defaults(section: dict[str, Any], schema: Schema, root: Schema) -> None:
    for key, declared in schema.get("properties", {}).items():
        if key not in section and "default" in declared:
            section[key] = copy.deepcopy(declared["default"])
        value = section.get(key)
        if isinstance(value, dict):
            _fill_defaults(value, branch(declared, "object", root), root)
        elif isinstance(value, list):
            items = branch(declared, "array", root).get("items", {})
            for item in value:
                if isinstance(item, dict):
                    _fill_defaults(item, branch(items, "object", root), root)
