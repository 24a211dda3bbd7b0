"""Tables with a name for each value: JSON Lines, CSV, TSV, Parquet."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from higgs_pipe.data.manifests.columns import columns_of, in_seconds
from higgs_pipe.data.manifests.embedded import write_embedded
from higgs_pipe.data.manifests.fields import OUR_KEYS, Fields, RowFault
from higgs_pipe.data.manifests.formats.delimited import delimiter_of, read_cells, rows_of_cells
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed, repeated_name
from higgs_pipe.planning.bounds import (
    MAX_COLUMN_BYTES,
    MAX_KEYS,
    MIN_PARQUET_BYTES_PER_ROW,
    MIN_ROWS_TO_DOUBT,
)
from higgs_pipe.planning.file_names import METADATA_CSV

NUM_ROWS_AT_ONCE = 65_536
NUM_RECORDINGS_AT_ONCE = 8
NUM_BUFFERED_BYTES = 2**20


def read_jsonl(source: Source) -> RawRows:
    """Read ``{"audio": "wavs/a.wav", "text": "What is said.", "speaker": "ada"}``.

    An array of such objects in one file is read too; a number stands for the line there.
    """

    @lru_cache  # not all: each row may have names of its own
    def columns(names: tuple[str, ...]) -> Mapping[str, str]:
        found = columns_of(names, source.columns)
        source.note_columns(found)
        return found

    for line, value in source.json_samples(source.path):
        with source.at(f"{source.path}:{line}"):
            names = columns(tuple(value))
            yield RawRow(source.path, line, in_seconds(renamed(value, names), names))


def read_csv(source: Source) -> RawRows:
    """Read a header ``audio,text,speaker``, then ``wavs/a.wav,"Well, yes.",ada``.

    The header may have ``;``, a tab or ``|`` between its names. A file without a header is read
    if its fields tell what they are.
    """
    source = source.file_of(METADATA_CSV)
    delimiter = delimiter_of(source)
    yield from rows_of_cells(source, read_cells(source, delimiter, has_quotes=delimiter != "|"))


def read_tsv(source: Source) -> RawRows:
    r"""Read a header ``audio\ttext``, then ``wavs/a.wav\tWhat is said.``; quotes are text."""
    yield from rows_of_cells(source, read_cells(source, "\t", has_quotes=False))


def _opened(path: str) -> pq.ParquetFile:
    """Open a table so that a column is read in blocks, and a text that repeats is read once."""
    options = {"buffer_size": NUM_BUFFERED_BYTES, "pre_buffer": False}
    with pq.ParquetFile(path, **options) as table:
        texts = [
            field.name
            for field in table.schema_arrow
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
    return pq.ParquetFile(path, read_dictionary=texts, **options)


def read_parquet(source: Source) -> RawRows:
    """Read columns ``audio: string``, ``text: string`` ...; a row's number stands for its line.

    In place of paths, ``audio: struct<bytes, path>`` may hold the recordings, as datasets on the
    Hub do. They are written out as files, a few at a time.
    """
    if not Path(source.path).is_file():
        source.content(source.path)
        return
    try:
        with source.at(source.path), _opened(source.path) as table:
            yield from _rows_of(source, table)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        fact = str(error).strip().split("\n")[0]
        source.fault(source.path, f"not a readable Parquet file ({fact:.200})")


def _rows_of(source: Source, table: pq.ParquetFile) -> RawRows:
    """Yield the rows of a table; recordings in it are written out."""
    names = table.schema_arrow.names
    _check_amount(table.metadata, Path(source.path).stat().st_size)
    if repeated := repeated_name(names):
        raise RowFault(f"the column {repeated!r} is given twice")
    columns = columns_of(names, source.columns)
    source.note_columns(columns)
    audio = columns.get("audio", "audio")
    extract_to = _folder_of_recordings(source, table, audio)
    wanted = [name for name in names if name in {*OUR_KEYS, *columns.values()}]
    _check_columns(table, [name for name in wanted if not (extract_to and name == audio)])
    others = dict.fromkeys(name for name in names if name not in wanted)
    num_at_once = NUM_RECORDINGS_AT_ONCE if extract_to else NUM_ROWS_AT_ONCE
    for number, values in enumerate(_cells(table, wanted, num_at_once), start=1):
        fields: Fields = {**dict(zip(wanted, values, strict=True)), **others}
        with source.at(f"{source.path}:{number}"):
            if extract_to:
                fields[audio] = write_embedded(fields[audio], extract_to)
            row = in_seconds(renamed(fields, columns), columns)
            if extract_to and row["audio"] and not row.get("id"):
                row["id"] = Path(row["audio"]).stem
            yield RawRow(source.path, number, row)


def _folder_of_recordings(source: Source, table: pq.ParquetFile, audio: str) -> Path | None:
    """Return the folder for the recordings in a table; None if ``audio`` holds paths.

    Raises:
        RowFault: There are recordings, and no folder.
    """
    schema = table.schema_arrow
    if audio not in schema.names or not pa.types.is_struct(schema.field(audio).type):
        return None
    if source.extract_to is None:
        raise RowFault(f"{audio!r} holds recordings, but there is no folder to write them to")
    return source.extract_to


def _cells(table: pq.ParquetFile, names: list[str], num_at_once: int) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each row; a table without the named columns still has rows."""
    for batch in table.iter_batches(num_at_once, columns=names):
        cells = [_values(batch.column(name)) for name in names]
        yield from zip(*cells, strict=True) if cells else [()] * batch.num_rows


def _check_amount(declared: pq.FileMetaData, num_bytes: int) -> None:
    """Refuse a table that declares too much to be a corpus.

    Raises:
        RowFault: It has too many columns, or rows that cost it no bytes.
    """
    num_rows, num_columns = declared.num_rows, declared.num_columns
    if num_columns > MAX_KEYS:
        raise RowFault(f"{num_columns:,} columns; {MAX_KEYS:,} is the most")
    if num_rows > max(num_bytes / MIN_PARQUET_BYTES_PER_ROW, MIN_ROWS_TO_DOUBT):
        raise RowFault(
            f"{num_rows:,} rows in {num_bytes:,} bytes: it repeats a row, and is not a corpus"
        )


def _check_columns(table: pq.ParquetFile, names: list[str]) -> None:
    """Refuse columns of lists and structures, and those that do not fit into memory.

    Raises:
        RowFault: One of these columns is of such a kind or size.
    """
    for name in names:
        if pa.types.is_nested(table.schema_arrow.field(name).type):
            kind = table.schema_arrow.field(name).type
            raise RowFault(f"the column {name!r} holds {kind!s:.60}, not texts or numbers")
    for group in range(table.num_row_groups):
        columns = table.metadata.row_group(group)
        for column in map(columns.column, range(columns.num_columns)):
            num_bytes = column.total_uncompressed_size
            if column.path_in_schema in names and num_bytes > MAX_COLUMN_BYTES:
                raise RowFault(
                    f"the column {column.path_in_schema!r} has {num_bytes:,} bytes between two "
                    f"row groups; {MAX_COLUMN_BYTES:,} is the most"
                )


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column; equal texts are one object, however often they come."""
    if not pa.types.is_dictionary(column.type):
        return cast("list[Any]", column.to_pylist())
    texts = column.dictionary.to_pylist()
    return [None if place is None else texts[place] for place in column.indices.to_pylist()]
