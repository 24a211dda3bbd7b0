"""The page docs/config.md: every key with its values, default and meaning."""

import json
from collections.abc import Iterator
from typing import Any

from higgs_pipe.config.schema import json_schema

Schema = dict[str, Any]
COMMAND = "python -m higgs_pipe.config.reference > docs/config.md"
HEADING = f"""# Every setting

<!-- Generated: {COMMAND} -->

The settings are in `config.yaml`. `snakemake --configfile mine.yaml` overrides them with those in
your file, and `snakemake --config 'train={{learning_rate: 1e-4}}'` overrides one for a single run.
A missing key has the default given here. An unknown key, a wrong type or a value out of bounds is
refused before anything runs.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


def reference_text() -> str:
    """Return the page as Markdown: a table per section, a row per key."""
    whole = json_schema()
    lines = [HEADING, *_section("", whole, whole)]
    entry = whole["$defs"]["ManifestEntry"]
    return "\n".join([*lines, *_section("An entry of manifest", entry, whole)])


def _section(path: str, section: Schema, whole: Schema) -> Iterator[str]:
    """Yield the lines of one section, then those of the sections within it."""
    if path:
        yield f"## {path}\n\n{_sentence(section)}\n"
    inner = {}
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    for key, declared in section["properties"].items():
        if "$ref" in declared:
            inner[f"{path}.{key}".removeprefix(".")] = _resolved(declared, whole)
            continue
        default = _code(declared["default"]) if "default" in declared else "required"
        yield f"| `{key}` | {_values(declared, whole)} | {default} | {_sentence(declared)} |"
    rules = [rule["not"]["description"] for rule in section.get("allOf", [])]
    if rules:
        yield "\nRules:\n" + "\n".join(f"- {rule}" for rule in rules)
    yield ""
    for inner_path, inner_section in inner.items():
        yield from _section(inner_path, inner_section, whole)


def _resolved(declared: Schema, whole: Schema) -> Schema:
    resolved: Schema = whole["$defs"][declared["$ref"].removeprefix("#/$defs/")]
    return resolved


def _sentence(declared: Schema) -> str:
    return " ".join(str(declared.get("description", "")).split()).replace("|", "\\|")


def _values(declared: Schema, whole: Schema) -> str:
    """Return the values that a key accepts: alternatives, enumerated values or a bounded type."""
    if "$ref" in declared or declared.get("type") == "object":
        return "object"
    if "anyOf" in declared:
        return " or ".join(dict.fromkeys(_values(one, whole) for one in declared["anyOf"]))
    if "enum" in declared:
        return ", ".join(f"`{value}`" for value in declared["enum"])
    if "const" in declared:
        return f"`{declared['const']}`"
    if declared["type"] == "null":
        return "`null`"
    if declared["type"] == "array":
        return f"list of: {_values(declared['items'], whole)}"
    bounds = [f"{sign} {declared[key]:g}" for key, sign in BOUNDS.items() if key in declared]
    return " ".join([TYPES[declared["type"]], ", ".join(bounds)]).rstrip()


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


if __name__ == "__main__":
    print(reference_text(), end="")
