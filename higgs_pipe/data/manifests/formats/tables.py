"""Tables, an utterance per row, whose columns can be renamed: JSON Lines, CSV, TSV, Parquet."""

import csv
import itertools
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from higgs_pipe.data.manifests.fields import NUMBER_KEYS, OUR_KEYS, REQUIRED_KEYS, Fields, RowFault
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source, renamed, repeated_name


def read_jsonl(source: Source) -> RawRows:
    """Read ``{"audio": "wavs/a.wav", "text": "What is said.", "speaker": "ada"}``."""
    for line, value in source.json_objects(source.path):
        yield RawRow(source.path, line, renamed(value, source.columns))


def read_csv(source: Source) -> RawRows:
    """Read a header ``audio,text,speaker``, then ``wavs/a.wav,"Well, yes.",ada``."""
    yield from _delimited(source, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(source: Source) -> RawRows:
    r"""Read a header ``audio\ttext``, then ``wavs/a.wav\tWhat is said.``; quotes are text."""
    yield from _delimited(source, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_parquet(source: Source) -> RawRows:
    """Read columns ``audio: string``, ``text: string`` ...; a row's number stands for its line."""
    if not Path(source.path).is_file():
        source.content(source.path)
        return
    try:
        with pq.ParquetFile(source.path) as table:
            names = table.schema_arrow.names
            if repeated := repeated_name(names):
                source.faults.append(f"{source.path}: the column {repeated!r} is given twice")
                return
            required = [source.columns.get(key, key) for key in REQUIRED_KEYS]
            if missing := [name for name in required if name not in names]:
                source.faults.append(f"{source.path}: the column {missing[0]!r} is missing")
                return
            wanted = [name for name in names if name in {*OUR_KEYS, *source.columns.values()}]
            others = dict.fromkeys(name for name in names if name not in wanted)
            rows = itertools.count(1)
            for batch in table.iter_batches(columns=wanted):
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in zip(*columns, strict=True):
                    fields = {**dict(zip(wanted, values, strict=True)), **others}
                    yield RawRow(source.path, next(rows), renamed(fields, source.columns))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        fact = str(error).strip().split("\n")[0]
        source.faults.append(f"{source.path}: not a readable Parquet file ({fact:.200})")


def _delimited(source: Source, delimiter: str, quoting: Literal[0, 3]) -> RawRows:
    """Yield the rows of a CSV or TSV file; one that spans lines has the number of its first."""
    numbered = list(source.lines(source.path, keep_blank=True))
    reader = csv.reader(
        (f"{text}\n" for _, text in numbered), delimiter=delimiter, quoting=quoting, strict=True
    )
    header: list[str] = []
    while reader.line_num < len(numbered):
        line = numbered[reader.line_num][0]
        with source.at(f"{source.path}:{line}"):
            try:
                values = next(reader)
            except csv.Error as error:
                raise RowFault(f"not a row: {error}") from None
            if not any(value.strip() for value in values):
                continue
            if not header:
                header = [name.strip() for name in values]
                if repeated := repeated_name(header):
                    source.faults.append(
                        f"{source.path}:{line}: the column {repeated!r} is given twice"
                    )
                    return
                continue
            if len(values) != len(header):
                raise RowFault(f"{len(values)} fields, the header has {len(header)}")
            fields = renamed(dict(zip(header, values, strict=True)), source.columns)
            yield RawRow(source.path, line, typed(fields))


def typed(fields: Fields) -> Fields:
    """Return ``fields`` of a file that holds only text, with the numbers converted."""
    return fields | {key: _number(fields[key]) for key in NUMBER_KEYS if key in fields}


def _number(text: str | float | None) -> str | float | None:
    """Return the number that a text spells, None for a blank, or else the text."""
    try:
        return float(text) if isinstance(text, str) and text.strip() else text or None
    except ValueError:
        return text
