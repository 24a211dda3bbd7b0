"""Forbidden combinations of settings, each declared once for both the models and the schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

JsonSchema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A condition on the value of one key.

    Attributes:
        listed: Values that meet it; as in JSON, 0 is not False.
        others: Whether every other value meets it instead.
        each: Whether the value is a list, each item of which must meet it.
    """

    listed: tuple[Any, ...]
    others: bool = False
    each: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` meets the condition."""
        if self.each:
            return isinstance(value, list) and all(map(self._holds_for_one, value))
        return self._holds_for_one(value)

    def _holds_for_one(self, value: Any) -> bool:
        return self.others != any(
            value == listed and isinstance(value, bool) == isinstance(listed, bool)
            for listed in self.listed
        )

    def schema(self) -> JsonSchema:
        """Return the JSON schema of the values that meet the condition."""
        listed = {"enum": list(self.listed)}
        one = {"not": listed} if self.others else listed
        return {"type": "array", "items": one} if self.each else one


class Odd:
    """The condition that a whole number is odd."""

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` meets the condition."""
        return bool(value % 2 == 1)

    def schema(self) -> JsonSchema:
        """Return the JSON schema of the values that meet the condition."""
        return {"not": {"multipleOf": 2}}


ZERO, EACH_ZERO, TRUE, OFF = Value((0,)), Value((0,), each=True), Value((True,)), Value((None,))
ON = Value((None, False), others=True)


@dataclass(frozen=True)
class Forbidden:
    """A combination that a section refuses.

    Attributes:
        message: The rule, as an error states it.
        keys: Keys, dotted within the section, and a condition each; all of them together are
            refused.
    """

    message: str
    keys: Mapping[str, Value | Odd]

    def is_in(self, section: BaseModel) -> bool:
        """Return whether the section has this combination."""
        return all(
            condition.holds(reduce(getattr, key.split("."), section))
            for key, condition in self.keys.items()
        )

    def schema(self, model: type[BaseModel]) -> JsonSchema:
        """Return the JSON schema that refuses this combination in a section of type ``model``.

        A key that is left out has its default, so the schema asks for a key only where the
        default does not meet the condition.
        """
        parts = []
        for dotted, condition in self.keys.items():
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
        extra="forbid", frozen=True, populate_by_name=True, json_schema_extra=_refuse_in_schema
    )

    forbidden: ClassVar[tuple[Forbidden, ...]] = ()

    @model_validator(mode="after")
    def _has_no_forbidden_combination(self) -> Self:
        for combination in self.forbidden:
            if combination.is_in(self):
                raise ValueError(combination.message)
        return self
