"""Rows and lists of numbers as Arrow tables with the columns of a spec, and Arrow's memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from higgs_pipe.data.specs import TableSpec


def to_arrow(
    spec: TableSpec, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None
) -> pa.Table:
    """Return ``rows`` as an Arrow table with the columns of ``spec``.

    A value of a list column may be a NumPy array: (n,), or (n, K) for a matrix of codes.
    """
    columns = [
        _to_array(column.type, [row[column.name] for row in rows]) for column in spec.columns
    ]
    return pa.Table.from_arrays(columns, schema=schema or spec.schema)


def _to_array(arrow_type: pa.DataType, values: list[Any]) -> pa.Array:
    if values and isinstance(values[0], np.ndarray):
        return _lists(arrow_type, np.concatenate(values), [len(value) for value in values])
    array = pa.array(values, type=arrow_type)
    if pa.types.is_integer(arrow_type) and pa.types.is_floating(pa.infer_type(values)):
        return pa.array(values).cast(arrow_type)  # it refuses a fraction; pa.array drops it
    return array


def lists_to_arrow(spec: TableSpec, columns: Mapping[str, tuple[Any, Any]]) -> pa.Table:
    """Return the Arrow table of a ``spec`` that has only list columns.

    Args:
        spec: The table.
        columns: For each column, the items of all rows joined in order, as a NumPy or Arrow array
            (n,), or (n, K) for a matrix of codes; and the number of items per row.
    """
    arrays = [_lists(column.type, *columns[column.name]) for column in spec.columns]
    return pa.Table.from_arrays(arrays, schema=spec.schema)


def _lists(arrow_type: pa.DataType, items: Any, lengths: npt.ArrayLike) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    item_type = arrow_type.value_type
    if pa.types.is_fixed_size_list(item_type):
        codes = pa.array(items.reshape(-1), item_type.value_type)
        items = pa.FixedSizeListArray.from_arrays(codes, type=item_type)
    return pa.ListArray.from_arrays(offsets, pa.array(items, item_type), type=arrow_type)


@contextmanager
def memory_shared_with_python() -> Iterator[None]:
    """Let Arrow take memory where Python does, so that each uses what the other has freed."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def release_freed_memory() -> None:
    """Return the memory of dropped tables, which Arrow would keep, to the system."""
    pa.default_memory_pool().release_unused()
