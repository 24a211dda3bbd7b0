"""JSON results: one frozen class per file, used by the stage that writes it and by its readers.

The last key of a file, ``sha256``, is a hash of all others; if the keys are a contract, the hash is
in a file beside it. Otherwise a disk or a copy that changes a digit would silently change a result.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from higgs_pipe.data.files import has_changed, write_checksum, write_json
from higgs_pipe.data.hashing import sha256_of_bytes, sha256_of_file
from higgs_pipe.errors import UserError, list_offenders

HASH_KEY = "sha256"
BESIDE_KEY = "sha256_beside"  # hashes of files that belong to the result, by their names


def write_hashed(path: Path, values: Mapping[str, Any], beside: Sequence[str] = ()) -> None:
    """Write a JSON object with a hash of its values, for readers to check.

    Args:
        path: The file.
        values: The object.
        beside: Names of files in its folder that the reader is to check, too.
    """
    if beside:
        hashes = {name: sha256_of_file(path.with_name(name)) for name in beside}
        values = {**values, BESIDE_KEY: hashes}
    write_json(path, {**values, HASH_KEY: _hash_of(values)})


def _is_plain(name: str) -> bool:
    """Return whether a name is that of a file in the same folder, not a path elsewhere."""
    return name != "" and Path(name).name == name


def _hash_of(values: Mapping[str, Any]) -> str:
    return sha256_of_bytes(json.dumps(values).encode())


class ResultPart(BaseModel):
    """A JSON object within a result: typed strictly, without other keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Result(ResultPart):
    """A JSON file, or a line of a JSON Lines file, whose keys are the fields of its class."""

    made_by: ClassVar[str]
    """The rule that writes the file, for the advice to run it again."""
    is_hash_beside: ClassVar[bool] = False
    """Whether the hash is in ``NAME.sha256``, because the keys of the file are a contract."""

    def write(self, path: Path, beside: Sequence[str] = ()) -> None:
        """Write the file as indented JSON, keys in the order of the fields.

        Args:
            path: The file.
            beside: As in :func:`write_hashed`.
        """
        if not self.is_hash_beside:
            write_hashed(path, self.values(), beside)
            return
        write_json(path, self.values())
        write_checksum(path)

    def values(self) -> dict[str, Any]:
        """Return the keys of the file."""
        return self.model_dump(by_alias=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: The file, or one beside it whose hash it has, is missing or changed since it
                was written; or as in :meth:`parse`.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: the file is missing; {cls.rerun()}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: damaged, not UTF-8; {cls.rerun()}") from None
        if has_changed(path):
            raise UserError(f"{path}: changed since it was written; {cls.rerun()}")
        result = cls.parse(text, str(path))
        beside = json.loads(text).get(BESIDE_KEY, {})
        if not isinstance(beside, dict) or not all(map(_is_plain, beside)):
            raise UserError(f"{path}: damaged, {BESIDE_KEY} names files elsewhere; {cls.rerun()}")
        for name, expected in beside.items():
            file = path.with_name(name)
            if not file.is_file():
                raise UserError(f"{file}: the file is missing; {cls.rerun()}")
            if sha256_of_file(file) != expected:
                raise UserError(f"{file}: changed since it was written; {cls.rerun()}")
        return result

    @classmethod
    def parse(cls, text: str, place: str) -> Self:
        """Read a result from JSON text, with or without a hash.

        Args:
            text: A JSON object.
            place: Its place, for messages: a path, or ``path:line``.

        Raises:
            UserError: The text is not JSON, a value changed since it was hashed, a key is missing
                or unknown, or a value has another type, is NaN or infinite; every such key is
                named.
        """
        with suppress(ValueError, RecursionError):  # not JSON: told below
            values = json.loads(text)
            if isinstance(values, dict) and HASH_KEY in values:
                if values.pop(HASH_KEY) != _hash_of(values):
                    raise UserError(f"{place}: changed since it was written; {cls.rerun()}")
                values.pop(BESIDE_KEY, None)
                text = json.dumps(values)
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
