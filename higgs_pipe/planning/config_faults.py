"""Messages on the faults in a config, from the errors of its JSON schema."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from higgs_pipe.planning.schemas import Schema, branches, resolved
from higgs_pipe.planning.user_files import path_fault

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

KeyPath = tuple[str, ...]


def faults_of(error: Any, root: Schema) -> Iterator[str]:
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
            yield from faults_of(inner, root)
    elif error.validator == "not":
        yield f"{'.'.join(path)}: {error.validator_value.get('description', 'is not allowed')}"
    else:
        yield f"{'.'.join(path)}: {_requirement(error, root)}, not {_shown(error.instance)}"


def _branch_of_right_type(error: Any) -> list[Any]:
    """Return the faults within the alternative whose type ``error``'s value has, if any.

    For text other than the one word that is allowed there are none: a number may be meant.
    """
    wrong = {e.schema_path[0] for e in error.context if e.validator == "type" and not e.path}
    fitting = [e for e in error.context if e.schema_path[0] not in wrong]
    return [e for e in fitting if e.validator != "const"]


def _requirement(error: Any, root: Schema) -> str:
    """Return the requirement that a value misses, as a predicate: "must be at least 1"."""
    limit = error.validator_value
    if error.validator == "pattern" and "propertyNames" in error.absolute_schema_path:
        return (
            "names hold 1 to 100 letters, digits, '.', '_' and '-', with a letter or digit first "
            "and without .zip at the end"
        )
    match error.validator:
        case "type" | "anyOf":
            allowed = sorted(branches(error.schema, root), key=lambda each: each["type"])
            words = [each.get("const") or TYPE_NAMES[each["type"]] for each in allowed]
            return "must be " + " or ".join(dict.fromkeys(words))
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
        case "pattern":  # of push.repo, the only other one
            return "must be OWNER/NAME, as in ada/voice"
        case "format":
            return f"must be a path that can be opened ({path_fault(error.instance)})"
        case "minLength" | "minItems" | "minProperties":
            return "must not be empty"
    return re.sub(r"\s+", " ", error.message)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def _hint(path: KeyPath, key: str, siblings: Sequence[str], root: Schema) -> str:
    """Return a hint at the intended key: a similar one here, or the same elsewhere."""
    names = list(_key_paths(root, root))
    if (*path, *key.split(".")) in names:
        section, name = key.rsplit(".", 1)
        return f"; write {section.replace('.', ': {')}: {{{name}: ...}}{'}' * section.count('.')}"
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
        yield from _key_paths(resolved(declared, root), root, (*path, key))
