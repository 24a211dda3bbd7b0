"""Forbidden combinations of settings, each declared once for both the models and the schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, model_validator

JsonSchema = dict[str, Any]


class Condition(Protocol):
    """A condition on the value of one setting."""

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` meets the condition."""

    def schema(self) -> JsonSchema:
        """Return the JSON schema of the values that meet the condition."""


class OneOf:
    """The value is one of these; as in JSON, 0 is not False."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` is one of the values."""
        return any(
            value == listed and isinstance(value, bool) == isinstance(listed, bool)
            for listed in self.values
        )

    def schema(self) -> JsonSchema:
        """Return the schema of the values."""
        return {"enum": list(self.values)}


class Not:
    """The value does not meet a condition."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` does not meet it."""
        return not self.condition.holds(value)

    def schema(self) -> JsonSchema:
        """Return the schema of all other values."""
        return {"not": self.condition.schema()}


class EachIs:
    """The value is a list, each item of which meets a condition."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` is such a list."""
        return isinstance(value, list) and all(map(self.condition.holds, value))

    def schema(self) -> JsonSchema:
        """Return the schema of such lists."""
        return {"type": "array", "items": self.condition.schema()}


class IsOdd:
    """The value, a whole number, is odd."""

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` is odd."""
        return bool(value % 2 == 1)

    def schema(self) -> JsonSchema:
        """Return the schema of odd numbers."""
        return {"not": {"multipleOf": 2}}


IS_TRUE, IS_ZERO, IS_NULL = OneOf(True), OneOf(0), OneOf(None)
IS_SET = Not(OneOf(None, False))


@dataclass(frozen=True)
class Forbidden:
    """A combination that a section refuses.

    Attributes:
        message: The rule, as an error states it.
        conditions: A condition for each key, dotted within the section; the section is refused if
            all of them hold.
    """

    message: str
    conditions: Mapping[str, Condition]

    def is_in(self, section: BaseModel) -> bool:
        """Return whether the section has this combination."""
        return all(
            condition.holds(reduce(getattr, key.split("."), section))
            for key, condition in self.conditions.items()
        )

    def schema(self, model: type[BaseModel]) -> JsonSchema:
        """Return the JSON schema that refuses this combination in a section of type ``model``.

        A key that is left out has its default, so the schema asks for a key only where the
        default does not meet the condition.
        """
        parts = []
        for dotted, condition in self.conditions.items():
            first, *rest = dotted.split(".")
            default = reduce(getattr, rest, model.model_fields[first].get_default())
            part = condition.schema()
            for key in (*reversed(rest), first):
                required = [] if condition.holds(default) else [key]
                part = {"properties": {key: part}, "required": required}
            parts.append(part)
        return {"not": {"description": self.message, "allOf": parts}}


def _refuse_in_schema(schema: JsonSchema, model: type["Section"]) -> None:
    if model.forbidden:
        schema["allOf"] = [combination.schema(model) for combination in model.forbidden]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values never change.

    Attributes:
        forbidden: The combinations of its settings that it refuses.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        populate_by_name=True,
        json_schema_extra=_refuse_in_schema,
    )

    forbidden: ClassVar[tuple[Forbidden, ...]] = ()

    @model_validator(mode="after")
    def _has_no_forbidden_combination(self) -> Self:
        for combination in self.forbidden:
            if combination.is_in(self):
                raise ValueError(combination.message)
        return self
