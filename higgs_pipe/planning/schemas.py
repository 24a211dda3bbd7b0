"""Navigation in a JSON schema: references, alternatives and types."""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def resolved(schema: Schema, root: Schema) -> Schema:
    """Return ``schema`` with its ``$ref`` followed."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return schema


def branches(schema: Schema, root: Schema) -> list[Schema]:
    """Return the alternatives of a schema, resolved; often there is only one."""
    schema = resolved(schema, root)
    return [resolved(branch, root) for branch in schema.get("anyOf", [schema])]


def types(schema: Schema, root: Schema) -> set[str]:
    """Return the JSON types that a schema allows."""
    return {branch["type"] for branch in branches(schema, root) if "type" in branch}


def branch(schema: Schema, kind: str, root: Schema) -> Schema:
    """Return the alternative of ``schema`` that is an ``object`` or an ``array``, or ``{}``."""
    fitting = [branch for branch in branches(schema, root) if branch.get("type") == kind]
    return fitting[0] if fitting else {}
