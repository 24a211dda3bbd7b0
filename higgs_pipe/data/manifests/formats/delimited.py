"""Lines of fields between delimiters, with a header or without one."""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

from higgs_pipe.data.manifests.columns import columns_of, has_names_of, in_seconds
from higgs_pipe.data.manifests.fields import NUMBER_KEYS, Fields, RowFault, as_number
from higgs_pipe.data.manifests.formats.roles import Role, is_audio_path, roles_of
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed, repeated_name
from higgs_pipe.planning.bounds import MAX_KEYS
from higgs_pipe.planning.file_names import AUDIO_ENDINGS

DELIMITERS = (",", ";", "\t", "|")

MAX_LINES_OF_ROW = 100  # of a text with line breaks; in an error, a quote that is not closed

QUOTED = re.compile(r'"(?:[^"]|"")*"')

Cells: TypeAlias = Iterator[tuple[int, list[str]]]


def delimiter_of(source: Source) -> str:
    """Return what stands between the fields of a file's first line."""
    first = next((text for _, text in source.for_a_look().lines(source.path)), "")
    for delimiter in DELIMITERS:
        if has_names_of(first.split(delimiter), source.columns):
            return delimiter
    return max(DELIMITERS, key=first.count)


def read_cells(source: Source, delimiter: str, has_quotes: bool) -> Cells:
    """Yield the fields of each row; a row that spans lines has the number of its first.

    Without quotes in the format, those around all values of a field, or around a text whose own
    quotes are doubled, are a table library's.
    """
    cells = _parsed(source, delimiter, has_quotes)
    yield from cells if has_quotes else _without_quotes(list(cells))


def _parsed(source: Source, delimiter: str, has_quotes: bool) -> Cells:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    spanned: list[int] = []  # the numbers of the lines of the row that is being read

    def texts() -> Iterator[str]:
        for line, text in source.lines(source.path, keep_blank=True):
            spanned.append(line)
            yield f"{text}\n"

    reader = csv.reader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        spanned.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            place = f"{source.path}:{spanned[0]}"
            if len(spanned) > MAX_LINES_OF_ROW or "end of data" in str(error):
                source.fault(place, "a quote opens in this row and nothing closes it")
                return  # what follows is the rest of that text
            source.fault(place, f"not a row: {error}")
            continue
        with source.at(f"{source.path}:{spanned[0]}"):
            if len(values) > MAX_KEYS:
                raise RowFault(f"{len(values):,} fields; {MAX_KEYS:,} is the most")
            if any(value.strip() for value in values):
                yield spanned[0], values


def _without_quotes(rows: Sequence[tuple[int, list[str]]]) -> Cells:
    """Yield the fields of rows without a table library's quotes; the first may be a header."""
    bare: set[int] = set()  # fields with a value that is not quoted
    for _, values in rows[1:] or rows:
        bare |= {i for i, value in enumerate(values) if value and not _is_quoted(value)}
    for line, values in rows:
        yield (
            line,
            [
                value.strip()[1:-1].replace('""', '"')
                if _is_quoted(value) and (i not in bare or '"' in value.strip()[1:-1])
                else value
                for i, value in enumerate(values)
            ],
        )


def _is_quoted(value: str) -> bool:
    return QUOTED.fullmatch(value.strip()) is not None


def rows_of_cells(
    source: Source, cells: Cells, default_roles: Sequence[Role] | None = None
) -> RawRows:
    """Yield the rows of a file by its header, or by what its fields hold.

    Args:
        source: The manifest.
        cells: Its rows.
        default_roles: What the fields are taken for where they do not tell.
    """
    line, first = next(cells, (0, []))
    if not first:
        return
    has_header = has_names_of(first, source.columns) or not (
        default_roles or _names_fields(source) or any(map(is_audio_path, first))
    )
    if has_header:
        with source.at(f"{source.path}:{line}"):
            header = [name.strip() for name in first]
            if repeated := repeated_name(header):
                raise RowFault(f"the column {repeated!r} is given twice")
            yield from _named_rows(source, cells, header)
        return
    rows = list(chain([(line, first)], cells))
    with source.at(source.path):
        given = {key: int(number) for key, number in source.columns.items() if number.isdigit()}
        roles = roles_of([values for _, values in rows], given, default_roles)
        if _is_unknown_header(rows, roles):
            source.note(
                f"{source.path}:1: taken for a header; its fields are known by their values"
            )
            rows = rows[1:]
        for line, values in rows:
            with source.at(f"{source.path}:{line}"):
                yield RawRow(source.path, line, _fields_by_role(values, roles, source.root))


def _is_unknown_header(rows: Sequence[tuple[int, list[str]]], roles: Sequence[Role]) -> bool:
    """Return whether the first row alone has no recording where all others have one."""
    if "audio" not in roles or len(rows) < 2:
        return False
    place = roles.index("audio")
    first, *others = [len(values) > place and is_audio_path(values[place]) for _, values in rows]
    return not first and "/" not in rows[0][1][min(place, len(rows[0][1]) - 1)] and all(others)


def _names_fields(source: Source) -> bool:
    """Return whether the user names fields by their numbers."""
    return bool(source.columns) and all(name.isdigit() for name in source.columns.values())


def _named_rows(source: Source, cells: Cells, header: list[str]) -> RawRows:
    """Yield the rows below a header."""
    columns = columns_of(header, source.columns)
    source.note_columns(columns)
    for line, values in cells:
        with source.at(f"{source.path}:{line}"):
            if len(values) != len(header):
                raise RowFault(f"{len(values)} fields, but the header has {len(header)}")
            cells_by_name = dict(zip(header, values, strict=True))
            fields = renamed(cells_by_name, columns)
            if "audio" not in fields and (found := find_recording(source.root, fields.get("id"))):
                fields["audio"] = found
            yield RawRow(source.path, line, in_seconds(typed(fields), columns))


def _fields_by_role(values: Sequence[str], roles: Sequence[Role], root: Path) -> Fields:
    """Return the fields of a line without a header."""
    last = len(roles) - 1
    if roles[-2:] == ("raw text", "text") and len(values) == last:  # not normalized
        values = [*values, ""]
    elif len(values) > len(roles) > 2 and roles[-1] == "text" and "raw text" not in roles:
        values = [*values[:last], "|".join(values[last:])]  # a delimiter within the text
    if len(values) != len(roles):
        raise RowFault(f"{len(values)} fields, but most lines have {len(roles)}")
    fields: Fields = {}
    for role, value in zip(roles, map(str.strip, values), strict=True):
        if role == "raw text":
            fields.setdefault("text", value)
        elif role is not None and (value or role not in fields):
            fields[role] = value
    if "audio" not in fields:
        stem = fields["id"]
        fields["audio"] = find_recording(root, stem) or f"wavs/{stem}.wav"
    elif not is_audio_path(fields["audio"]):
        fields["audio"] = find_recording(root, fields["audio"]) or fields["audio"]
    return typed(fields)


def find_recording(root: Path, stem: str | None) -> str | None:
    """Return the name, with its ending, of a recording below ``root`` or its ``wavs``; or None."""
    if not stem:
        return None
    for name in (f"wavs/{stem}", stem):
        for ending in ("", *AUDIO_ENDINGS):
            try:
                if (root / f"{name}{ending}").is_file():
                    return f"{name}{ending}"
            except (OSError, ValueError):
                break
    return None


def typed(fields: Fields) -> Fields:
    """Return ``fields`` of a file that holds only text, with the numbers converted."""
    return fields | {key: as_number(fields[key]) for key in NUMBER_KEYS if key in fields}
