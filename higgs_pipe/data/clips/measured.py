"""The measures of all recordings, found by their spans."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa

from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import MEASURED
from higgs_pipe.data.table_rows import TableRow, TableRows
from higgs_pipe.data.tables import read_table, shard_path

# A row of MEASURED for each span.
Measured: TypeAlias = Mapping[Span, Mapping[str, Any]]

SPANS_AT_ONCE = 10_000
# What the state of a file was is of no use here.
COLUMNS = [c.name for c in MEASURED.columns if c.name not in ("num_bytes", "mtime_ns")]


class MeasuredSpans(Mapping[Span, TableRow]):
    """Rows of MEASURED; beside their columns, memory holds 16 bytes for each.

    Args:
        tables: The tables of all shards; of a span that is in several, the last one counts.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._rows = TableRows(pa.concat_tables(tables))
        spans = pa.concat_tables(table.select(Span._fields) for table in tables)
        hashes = np.fromiter(_hashes(spans), np.int64, spans.num_rows)
        order = np.argsort(hashes, kind="stable")
        self._order, self._hashes = order.data, hashes[order].data

    @classmethod
    def read(cls, folder: Path, num_shards: int) -> Self:
        """Read ``shard-00000.parquet`` ... of a folder.

        Raises:
            UserError: A table is missing, damaged or of another version.
        """
        paths = [shard_path(folder, index) for index in range(num_shards)]
        return cls([read_table(path, MEASURED, COLUMNS) for path in paths])

    def __getitem__(self, span: Span) -> TableRow:
        wanted, found = hash(span), None
        place = bisect_left(self._hashes, wanted)
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = self._rows[self._order[place]]
            if Span.of(row) == span:
                found = row
            place += 1
        if found is None:
            raise KeyError(span)
        return found

    def __iter__(self) -> Iterator[Span]:
        return map(Span.of, self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _hashes(spans: pa.Table) -> Iterator[int]:
    """Yield the hash of each :class:`Span`."""
    for batch in spans.to_batches(SPANS_AT_ONCE):
        yield from map(hash, zip(*(column.to_pylist() for column in batch.columns), strict=True))
