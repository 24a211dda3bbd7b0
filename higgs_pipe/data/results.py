"""JSON results: one frozen class per file, used by the stage that writes it and by its readers."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from higgs_pipe.data.files import write_json
from higgs_pipe.errors import UserError, list_offenders


class ResultPart(BaseModel):
    """A JSON object within a result: typed strictly, without other keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Result(ResultPart):
    """A JSON file, or a line of a JSON Lines file, whose keys are the fields of its class."""

    made_by: ClassVar[str]
    """The rule that writes the file, for the advice to run it again."""

    def write(self, path: Path) -> None:
        """Write the file as indented JSON, keys in the order of the fields."""
        write_json(path, self.model_dump(by_alias=True))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: The file is missing, or errors as in :meth:`parse`.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: the file is missing; {cls.rerun()}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, place: str) -> Self:
        """Read a result from JSON text.

        Args:
            text: A JSON object.
            place: Where it stands, for messages: a path, or ``path:line``.

        Raises:
            UserError: The text is not JSON, a key is missing or unknown, or a value has another
                type, is NaN or infinite; every such key is named.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = [_fault(item["loc"], item["msg"]) for item in error.errors()]
            raise UserError(f"{place}:\n{list_offenders(faults)}\n{cls.rerun()}") from None

    @classmethod
    def rerun(cls) -> str:
        """Return the advice to make the file again."""
        return f"run: snakemake --forcerun {cls.made_by}"


def _fault(place: tuple[str | int, ...], message: str) -> str:
    key = ".".join(str(part) for part in place)
    return f"`{key}`: {message}" if key else message
