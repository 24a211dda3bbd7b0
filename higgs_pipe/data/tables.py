"""Strict reading and writing of Parquet tables, each declared by a :class:`TableSpec`.

Letters used here and everywhere: B rows, S positions of a row, T codec frames, F delayed frames
(F = T + 2 + K - 1), K codebooks, V entries of a codebook.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from higgs_pipe.data.files import NO_ROOM, atomic_write
from higgs_pipe.data.specs import CodecInfo, TableSpec
from higgs_pipe.errors import UserError
from higgs_pipe.planning.file_names import shard_name

METADATA_KEY = b"higgs_pipe"


@contextmanager
def table_writer(
    path: Path, spec: TableSpec, metadata: dict[str, Any] | None = None
) -> Iterator[pq.ParquetWriter]:
    """Yield a streaming writer; the file appears under its name only if the block succeeds.

    Codes use byte-stream split instead of a dictionary (smaller and faster) and LZ4: 15 % larger
    than Zstandard, written and read in four fifths of the time.

    Raises:
        UserError: The disk is full, or the file exceeds a limit on its size.
    """
    stamp = {"table": spec.name, "version": spec.version, **(metadata or {})}
    schema = spec.schema.with_metadata({METADATA_KEY: json.dumps(stamp, sort_keys=True).encode()})
    try:
        with (
            atomic_write(path) as temporary,
            pq.ParquetWriter(temporary, schema, **_encodings(spec)) as writer,
        ):
            yield writer
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{path}: cannot be written ({os.strerror(error.errno)}); free space and run again."
        ) from None


def _encodings(spec: TableSpec) -> dict[str, Any]:
    leaves = {}
    for column in spec.columns:
        path, leaf = column.name, column.type
        while pa.types.is_list(leaf) or pa.types.is_fixed_size_list(leaf):
            path, leaf = f"{path}.list.element", leaf.value_type
        leaves[path] = leaf
    codes = [path for path, leaf in leaves.items() if pa.types.is_int16(leaf)]
    return {
        "compression": "lz4" if codes else "zstd",
        "use_dictionary": [path for path in leaves if path not in codes],
        "column_encoding": dict.fromkeys(codes, "BYTE_STREAM_SPLIT"),
        # Minimum and maximum of list items are of no use.
        "write_statistics": [column.name for column in spec.columns if column.name in leaves],
    }


def write_table(
    path: Path,
    spec: TableSpec,
    rows: Sequence[Mapping[str, Any]],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write ``rows`` (one dictionary per row), cast strictly to the table's columns.

    Raises:
        pyarrow.ArrowInvalid, KeyError: A value does not fit its column, or a key is missing.
    """
    with table_writer(path, spec, metadata) as writer:
        writer.write_table(to_arrow(spec, rows, writer.schema))


def write_shards(
    folder: Path, spec: TableSpec, shards: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    """Write one table per shard, ``shard-00000.parquet`` ...; remove shards of earlier runs."""
    paths = [shard_path(folder, index) for index in range(len(shards))]
    for path, rows in zip(paths, shards, strict=True):
        write_table(path, spec, rows)
    for stale in set(folder.glob("shard-*.parquet")) - set(paths):
        stale.unlink()


def shard_path(folder: Path, index: int) -> Path:
    """Return the path of a shard's table."""
    return folder / f"{shard_name(index)}.parquet"


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
    return pa.array(values, type=arrow_type)


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


def open_table(path: Path, spec: TableSpec) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Open a table and check that it is the expected one.

    Returns:
        The Parquet file and the metadata that its writer stamped.

    Raises:
        UserError: The file is missing or unreadable, or another version wrote it.
    """
    remedy = f"run: snakemake --forcerun {spec.made_by}"
    try:
        table = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: the table of {spec.name} is missing; {remedy}") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); {remedy}") from None
    stamp = json.loads((table.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
    found = (stamp.get("table"), stamp.get("version"))
    if found != (spec.name, spec.version) or not table.schema_arrow.equals(spec.schema):
        raise UserError(
            f"{path}: expected the table of {spec.name}, version {spec.version}, found "
            f"{found[0]!r}, version {found[1]}, with columns {table.schema_arrow.names}; {remedy}"
        )
    return table, stamp


def read_table(path: Path, spec: TableSpec) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table and the metadata that its writer stamped; errors as :func:`open_table`."""
    table, stamp = open_table(path, spec)
    return table.read(), stamp


def read_codec_info(path: Path) -> CodecInfo:
    """Return the codec stamped on a table of codes or packed rows.

    Raises:
        UserError: The file is missing or has no codec stamp.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return CodecInfo.from_metadata(json.loads(metadata[METADATA_KEY]))
    except (FileNotFoundError, KeyError, TypeError, pa.ArrowInvalid):
        raise UserError(
            f"{path}: not a table with a codec stamp; run: snakemake --forcerun tokenize_shard"
        ) from None
