"""Rows of a table as mappings that copy no values, so that 10^6 rows stay in their columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import pyarrow as pa


@dataclass(frozen=True, slots=True, eq=False)
class TableRow(Mapping[str, Any]):
    """A row: the columns of its table, which its rows share, and its place there."""

    _columns: Mapping[str, Sequence[Any]]
    _index: int

    def __getitem__(self, name: str) -> Any:
        value = self._columns[name][self._index]
        return value.as_py() if isinstance(value, pa.Scalar) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class TableRows(Sequence[TableRow]):
    """The rows of a table; rows and values are made on access."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns = {name: _values(table[name]) for name in table.column_names}

    @overload
    def __getitem__(self, index: int) -> TableRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[TableRow]: ...

    def __getitem__(self, index: int | slice) -> TableRow | list[TableRow]:
        places = range(len(self))[index]
        if isinstance(places, int):
            return TableRow(self._columns, places)
        return [TableRow(self._columns, place) for place in places]

    def __iter__(self) -> Iterator[TableRow]:
        return (TableRow(self._columns, index) for index in range(len(self)))

    def __len__(self) -> int:
        return int(self.table.num_rows)


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Return a column as a sequence, of Python numbers if possible, which is faster."""
    is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if is_number and column.null_count == 0:
        return memoryview(column.to_numpy())
    return cast(Sequence[Any], column.chunk(0) if column.num_chunks == 1 else column)
