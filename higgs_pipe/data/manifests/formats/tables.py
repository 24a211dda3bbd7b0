"""Tables with a name for each value: JSON Lines, CSV, TSV, Parquet."""

import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from higgs_pipe.data.manifests.columns import columns_of, in_seconds
from higgs_pipe.data.manifests.embedded import write_embedded
from higgs_pipe.data.manifests.fields import OUR_KEYS, Fields, RowFault
from higgs_pipe.data.manifests.formats.delimited import delimiter_of, read_cells, rows_of_cells
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed, repeated_name
from higgs_pipe.planning.file_names import METADATA_CSV

NUM_ROWS_AT_ONCE = 65_536
NUM_RECORDINGS_AT_ONCE = 8
NUM_BUFFERED_BYTES = 2**20


def read_jsonl(source: Source) -> RawRows:
    """Read ``{"audio": "wavs/a.wav", "text": "What is said.", "speaker": "ada"}``.

    An array of such objects in one file is read too; a number stands for the line there.
    """

    @cache
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
    """Open a table so that a column is read in blocks, not a whole row group at once."""
    return pq.ParquetFile(path, buffer_size=NUM_BUFFERED_BYTES, pre_buffer=False)


def read_parquet(source: Source) -> RawRows:
    """Read columns ``audio: string``, ``text: string`` ...; a row's number stands for its line.

    In place of paths, ``audio: struct<bytes, path>`` may hold the recordings, as data sets of the
    Hub do. They are written out as files, a few at a time.
    """
    if not Path(source.path).is_file():
        source.content(source.path)
        return
    try:
        with source.at(source.path), _opened(source.path) as table:
            names = table.schema_arrow.names
            if repeated := repeated_name(names):
                raise RowFault(f"the column {repeated!r} is given twice")
            columns = columns_of(names, source.columns)
            source.note_columns(columns)
            audio = columns.get("audio", "audio")
            extract_to = None
            if audio in names and pa.types.is_struct(table.schema_arrow.field(audio).type):
                extract_to = source.extract_to
                if extract_to is None:
                    raise RowFault(
                        f"{audio!r} holds recordings, and there is no folder to write them to"
                    )
            wanted = [name for name in names if name in {*OUR_KEYS, *columns.values()}]
            others = dict.fromkeys(name for name in names if name not in wanted)
            rows = itertools.count(1)
            num_at_once = NUM_RECORDINGS_AT_ONCE if extract_to else NUM_ROWS_AT_ONCE
            for batch in table.iter_batches(num_at_once, columns=wanted):
                cells = [batch.column(name).to_pylist() for name in wanted]
                # A table of no wanted columns still has rows.
                for values in zip(*cells, strict=True) if cells else [()] * batch.num_rows:
                    fields: Fields = {**dict(zip(wanted, values, strict=True)), **others}
                    number = next(rows)
                    with source.at(f"{source.path}:{number}"):
                        if extract_to:
                            fields[audio] = write_embedded(fields[audio], extract_to)
                        row = in_seconds(renamed(fields, columns), columns)
                        if extract_to and row["audio"] and not row.get("id"):
                            row["id"] = Path(row["audio"]).stem
                        yield RawRow(source.path, number, row)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        fact = str(error).strip().split("\n")[0]
        source.fault(source.path, f"not a readable Parquet file ({fact:.200})")
