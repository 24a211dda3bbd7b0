"""Rows of a table as mappings that copy no values, so that 10^6 rows stay in their columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa


def rows_of(table: pa.Table) -> "list[TableRow]":
    """Return the rows of a table; values are made on access."""
    columns = {name: _values(table[name].combine_chunks()) for name in table.column_names}
    return [TableRow(columns, index) for index in range(table.num_rows)]


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


def _values(column: pa.Array) -> Sequence[Any]:
    """Return a column as a sequence, of Python numbers if possible, which is faster."""
    is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if is_number and column.null_count == 0:
        return memoryview(column.to_numpy())
    return cast(Sequence[Any], column)
