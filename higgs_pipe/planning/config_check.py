"""The user's config, checked and complete, and the part of it that each stage reads."""

import copy
import difflib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]  # ships no types
import yaml

from higgs_pipe.errors import UserError, list_offenders

EXIT_USER_ERROR = 2
SNAKEMAKE_KEYS = ("pathvars",)  # Snakemake reads and checks these parts of the config itself.
MAX_VALUE_CHARS = 60
TYPE_NAMES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a finite number",
    "object": "a section of keys",
    "string": "text",
}

Schema = Mapping[str, Any]
KeyPath = tuple[str, ...]


def _is_finite_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number),
)


def load_schema(schema_path: Path) -> dict[str, Any]:
    """Read the schema of ``config.yaml``, which :mod:`higgs_pipe.config.schema` generates."""
    return cast(dict[str, Any], yaml.safe_load(schema_path.read_text(encoding="utf-8")))


def load_config(
    config: Mapping[str, Any], schema_path: Path, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the user's config, checked and complete.

    Text is converted to a number where the schema asks for one: YAML 1.1 reads ``2e-4`` as text,
    and ``--config train={learning_rate: 1e-4}`` gives text only. Missing keys get their defaults,
    except in ``experiments``, whose entries override parts of ``train``.

    Args:
        config: What Snakemake read from ``config.yaml`` and the command line.
        schema_path: ``workflow/schemas/config.schema.yaml``.
        given: The part that ``--configfile`` and ``--config`` gave. Experiments that it names
            replace those of ``config.yaml``.

    Raises:
        UserError: Keys are unknown or missing, or values have the wrong type or are out of
            bounds; the message lists the first 20 and counts the rest.
    """
    schema = load_schema(schema_path)
    own = {key: value for key, value in config.items() if key not in SNAKEMAKE_KEYS}
    own |= {key: value for key, value in (given or {}).items() if key == "experiments"}
    own = _coerced(own, schema, schema)
    errors = sorted(_Validator(schema).iter_errors(own), key=lambda error: str(error.json_path))
    faults = list(dict.fromkeys(fault for error in errors for fault in _faults(error, schema)))
    if faults:
        raise UserError(
            "The config is refused:\n"
            f"{list_offenders(faults)}\n"
            "Fix config.yaml, or the values of --config and --configfile, and run snakemake again."
        )
    _fill_defaults(own, schema, schema)
    return {**own, **{key: config[key] for key in SNAKEMAKE_KEYS if key in config}}


def load_config_or_exit(
    config: Mapping[str, Any], schema_path: Path, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return :func:`load_config`'s result; a refused config ends Snakemake with exit code 2."""
    try:
        return load_config(config, schema_path, given)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None


def use_demo_settings(
    config: dict[str, Any], settings_path: Path, schema_path: Path, typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Lay the demo's settings under those of the user.

    A setting is changed only if it still has its default and ``typed`` does not name it: a config
    file may be a copy of the shipped one, which names every setting.

    Args:
        config: The complete config; it is changed.
        settings_path: ``examples/demo/settings.yaml``.
        schema_path: ``workflow/schemas/config.schema.yaml``.
        typed: The part of the config that ``--config`` gave.

    Returns:
        The settings that were changed, with dotted names.
    """
    schema = load_schema(schema_path)
    defaults: dict[str, Any] = {}
    _fill_defaults(defaults, schema, schema)
    changed = {}
    for section, settings in yaml.safe_load(settings_path.read_text(encoding="utf-8")).items():
        for key, value in settings.items():
            is_default = config[section][key] == defaults[section][key]
            if is_default and key not in (typed.get(section) or {}):
                config[section][key] = changed[f"{section}.{key}"] = value
    return changed


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


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Return ``schema`` with its ``$ref`` followed."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return schema


def _branches(schema: Schema, root: Schema) -> list[Schema]:
    """Return the alternatives of a schema, resolved; often there is only one."""
    schema = _resolved(schema, root)
    return [_resolved(branch, root) for branch in schema.get("anyOf", [schema])]


def _types(schema: Schema, root: Schema) -> set[str]:
    """Return the JSON types that a schema allows."""
    return {branch["type"] for branch in _branches(schema, root) if "type" in branch}


def _branch(schema: Schema, kind: str, root: Schema) -> Schema:
    """Return the alternative of ``schema`` that is an ``object`` or an ``array``, or ``{}``."""
    fitting = [branch for branch in _branches(schema, root) if branch.get("type") == kind]
    return fitting[0] if fitting else {}


def _coerced(value: Any, schema: Schema, root: Schema) -> Any:
    """Return ``value`` with text converted to the number, Boolean or null of ``schema``."""
    types = _types(schema, root)
    if value is None and types == {"object"}:
        return {}  # a section whose keys are all commented out
    if isinstance(value, Mapping):
        section = _branch(schema, "object", root)
        properties, other = section.get("properties", {}), section.get("additionalProperties")
        other = other if isinstance(other, Mapping) else {}
        return {
            str(key): _coerced(item, properties.get(str(key), other), root)
            for key, item in value.items()
        }
    if isinstance(value, list):
        items = _branch(schema, "array", root).get("items", {})
        return [_coerced(item, items, root) for item in value]
    if isinstance(value, str) and ("string" not in types or (value == "null" and "null" in types)):
        value = _scalar(value)
    if types == {"integer"} and isinstance(value, float) and value.is_integer():
        return int(value)
    if types == {"number"} and type(value) is int and abs(value) < 2**53:
        return float(value)  # 1 and 1.0 are one setting: no rerun for it
    return value


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
            _fill_defaults(value, _branch(declared, "object", root), root)
        elif isinstance(value, list):
            items = _branch(declared, "array", root).get("items", {})
            for item in value:
                if isinstance(item, dict):
                    _fill_defaults(item, _branch(items, "object", root), root)


def _faults(error: Any, root: Schema) -> Iterator[str]:
    """Yield a line per fault that a jsonschema ``ValidationError`` reports."""
    path: KeyPath = tuple(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        for key in error.instance:
            if key not in known:
                yield f"{'.'.join([*path, key])}: unknown key{_hint(path, key, known, root)}"
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                meaning = error.schema["properties"][key].get("description", "")
                yield f"{'.'.join([*path, key])}: missing. {meaning}".rstrip()
    elif error.validator == "anyOf" and (fitting := _branch_of_right_type(error)):
        for inner in fitting:
            yield from _faults(inner, root)
    elif error.validator == "not":
        yield f"{'.'.join(path)}: {error.validator_value.get('description', 'is not allowed')}"
    else:
        yield f"{'.'.join(path)}: {_requirement(error, root)}, not {_shown(error.instance)}"


def _branch_of_right_type(error: Any) -> list[Any]:
    """Return the faults within the alternative whose type ``error``'s value has, if any."""
    wrong = {e.schema_path[0] for e in error.context if e.validator == "type" and not e.path}
    return [e for e in error.context if e.schema_path[0] not in wrong]


def _requirement(error: Any, root: Schema) -> str:
    """Return the requirement that a value misses, as a predicate: "must be at least 1"."""
    limit = error.validator_value
    if error.validator == "pattern" and "propertyNames" in error.absolute_schema_path:
        return "names hold letters, digits, '.', '_' and '-' only, a letter or digit first"
    match error.validator:
        case "type" | "anyOf":
            kinds = _types(error.schema, root)
            return "must be " + " or ".join(TYPE_NAMES[kind] for kind in sorted(kinds))
        case "enum":
            return "must be one of " + ", ".join(map(str, limit))
        case "minimum":
            return f"must be at least {limit}"
        case "maximum":
            return f"must be at most {limit}"
        case "exclusiveMinimum":
            return f"must be above {limit}"
        case "exclusiveMaximum":
            return f"must be below {limit}"
        case "minLength" | "minItems" | "minProperties":
            return "must not be empty"
    return re.sub(r"\s+", " ", error.message)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def _hint(path: KeyPath, key: str, siblings: Sequence[str], root: Schema) -> str:
    """Return a hint at the key that was meant: a similar one here, or the same elsewhere."""
    names = list(_key_paths(root, root))
    if path[:1] == ("experiments",):  # an experiment has the keys of `train`
        names = [(*path[:2], *name[1:]) for name in names if name[0] == "train"]
    meant = [(*path, close) for close in difflib.get_close_matches(key, siblings, n=1)]
    meant = meant or [name for name in names if name[-1] == key]
    if meant:
        return f"; did you mean {' or '.join('.'.join(name) for name in meant)}?"
    return f"; known here: {', '.join(siblings)}"


def _key_paths(schema: Schema, root: Schema, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every key of the config, sections and settings."""
    for key, declared in schema.get("properties", {}).items():
        yield (*path, key)
        yield from _key_paths(_resolved(declared, root), root, (*path, key))
