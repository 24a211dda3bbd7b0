"""Strict reading and writing of Parquet tables, each declared by a :class:`TableSpec`.

Letters used here and everywhere: B rows, S positions of a row, T codec frames, F delayed frames
(F = T + 2 + K - 1), K codebooks, V entries of a codebook.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from higgs_pipe.data.arrow import release_freed_memory, to_arrow
from higgs_pipe.data.files import atomic_write, full_disk_named
from higgs_pipe.data.hashing import sha256_of_bytes
from higgs_pipe.data.specs import CodecInfo, TableSpec
from higgs_pipe.errors import UserError
from higgs_pipe.planning.file_names import shard_name

METADATA_KEY = b"higgs_pipe"
ROWS_PER_GROUP = 50_000  # of a table; those of one group are in memory while it is written
CHECKSUM_KEY = b"higgs_pipe_sha256"  # of the metadata; each page of the table has its own

# What pyarrow raises where bytes of a file changed.
DAMAGE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)


class TableFile(pq.ParquetFile):  # type: ignore[misc]  # pyarrow is untyped
    """A table open for reading; damage is found as pages are read, by their checksums.

    Threads may share it: their reads take turns, because two at once in one file of pyarrow fail
    at random or crash the process.

    Raises:
        UserError: The file is missing, damaged, or not of Parquet.
    """

    def __init__(self, path: Path, made_by: str) -> None:
        self._path, self._made_by = path, made_by
        self._lock = threading.Lock()
        with _damage_named(path, made_by):
            super().__init__(path, page_checksum_verification=True)
        groups = map(self.metadata.row_group, range(self.metadata.num_row_groups))
        self._check_count(self.metadata.num_rows, sum(group.num_rows for group in groups))

    def stamp(self) -> dict[str, Any]:
        """Return the metadata that the table's writer stamped, or {} if another program wrote it.

        Raises:
            UserError: The metadata is damaged.
        """
        metadata = self.schema_arrow.metadata or {}
        text = metadata.get(METADATA_KEY)
        if text is None:
            return {}
        if metadata.get(CHECKSUM_KEY) != sha256_of_bytes(text).encode():
            raise _damaged(self._path, "the checksum of its metadata differs", self._made_by)
        return cast(dict[str, Any], json.loads(text))

    def read(self, columns: Iterable[str] | None = None) -> pa.Table:
        """Read all rows, of all columns or of some."""
        release_freed_memory()  # of tables that were read before
        with self._lock, _damage_named(self._path, self._made_by):
            table = super().read(None if columns is None else list(columns))
        self._check_count(self.metadata.num_rows, table.num_rows)
        return table

    def read_row_group(self, i: int, columns: Iterable[str] | None = None) -> pa.Table:
        """Read a row group, of all columns or of some."""
        with self._lock, _damage_named(self._path, self._made_by):
            table = super().read_row_group(i, None if columns is None else list(columns))
        self._check_count(self.metadata.row_group(i).num_rows, table.num_rows)
        return table

    def iter_batches(
        self, num_rows: int, columns: Iterable[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Read all rows in batches of at most ``num_rows``, for one thread."""
        num_read, names = 0, None if columns is None else list(columns)
        with _damage_named(self._path, self._made_by):
            for batch in super().iter_batches(num_rows, columns=names):
                num_read += len(batch)
                yield batch
        self._check_count(self.metadata.num_rows, num_read)

    def _check_count(self, declared: int, num_rows: int) -> None:
        """Check a number of rows: damaged metadata can make pyarrow leave rows out in silence."""
        if num_rows != declared:
            fact = f"it declares {declared:,} rows and holds {num_rows:,}"
            raise _damaged(self._path, fact, self._made_by)


@contextmanager
def _damage_named(path: Path, made_by: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: the table is missing; {_remedy(made_by)}") from None
    except PermissionError:
        raise
    except DAMAGE as error:
        raise _damaged(path, str(error).strip(), made_by) from None


def _damaged(path: Path, fact: str, made_by: str) -> UserError:
    return UserError(f"{path}: damaged, or not a Parquet file ({fact}); {_remedy(made_by)}")


def _remedy(made_by: str) -> str:
    return f"run: snakemake --forcerun {made_by}"


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
    text = json.dumps(stamp, sort_keys=True).encode()
    checksum = sha256_of_bytes(text).encode()
    schema = spec.schema.with_metadata({METADATA_KEY: text, CHECKSUM_KEY: checksum})
    with (
        full_disk_named(path),
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, **_encodings(spec)) as writer,
    ):
        yield writer


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
        "write_page_checksum": True,
        "use_dictionary": [path for path in leaves if path not in codes],
        "column_encoding": dict.fromkeys(codes, "BYTE_STREAM_SPLIT"),
        # Minimum and maximum of list items are of no use.
        "write_statistics": [column.name for column in spec.columns if column.name in leaves],
    }


def write_table(
    path: Path,
    spec: TableSpec,
    rows: Iterable[Mapping[str, Any]],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write ``rows`` (one dictionary per row), cast strictly to the table's columns.

    Raises:
        pyarrow.ArrowInvalid, KeyError: A value does not fit its column, or a key is missing.
    """
    with table_writer(path, spec, metadata) as writer:
        if not write_groups(writer, spec, rows, ROWS_PER_GROUP):
            writer.write_table(to_arrow(spec, [], writer.schema))


def write_groups(
    writer: pq.ParquetWriter, spec: TableSpec, rows: Iterable[Mapping[str, Any]], num_at_once: int
) -> int:
    """Write rows in groups of ``num_at_once``; return how many there were."""
    num_rows, remaining = 0, iter(rows)
    while group := list(islice(remaining, num_at_once)):
        writer.write_table(to_arrow(spec, group, writer.schema))
        num_rows += len(group)
    return num_rows


def write_parts(
    path: Path,
    spec: TableSpec,
    parts: Iterable[pa.Table],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write Arrow tables as one; the bytes are those of :func:`write_table`."""
    with table_writer(path, spec, metadata) as writer:
        for group in _of_equal_size(parts, ROWS_PER_GROUP):
            columns = [column.combine_chunks() for column in group.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=writer.schema))


def _of_equal_size(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of ``num_rows``; the last one may have fewer."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while rest.num_rows >= num_rows:
            yield rest.slice(0, num_rows)
            rest = rest.slice(num_rows)
    if rest is not None and rest.num_rows:
        yield rest


def write_shards(
    folder: Path, spec: TableSpec, shards: Iterable[Iterable[Mapping[str, Any]]]
) -> None:
    """Write one table per shard, ``shard-00000.parquet`` ...; remove shards of earlier runs."""
    paths = set()
    for index, rows in enumerate(shards):
        paths.add(path := shard_path(folder, index))
        write_table(path, spec, rows)
    for stale in set(folder.glob("shard-*.parquet")) - paths:
        stale.unlink()


def shard_path(folder: Path, index: int) -> Path:
    """Return the path of a shard's table."""
    return folder / f"{shard_name(index)}.parquet"


def open_table(path: Path, spec: TableSpec) -> TableFile:
    """Open a table and check that it is the expected one.

    Raises:
        UserError: The file is missing or damaged, or another version wrote it.
    """
    table = TableFile(path, spec.made_by)
    stamp = table.stamp()
    found = (stamp.get("table"), stamp.get("version"))
    if found != (spec.name, spec.version) or not table.schema_arrow.equals(spec.schema):
        raise UserError(
            f"{path}: expected the table of {spec.name}, version {spec.version}, found "
            f"{found[0]!r}, version {found[1]}, with columns {table.schema_arrow.names}; "
            f"{_remedy(spec.made_by)}"
        )
    return table


def read_table(path: Path, spec: TableSpec, columns: Iterable[str] | None = None) -> pa.Table:
    """Read a table, all columns or some; errors as for :func:`open_table`."""
    return open_table(path, spec).read(columns)


def read_codec_info(path: Path) -> CodecInfo:
    """Return the codec stamped on a table of codes or packed rows.

    Raises:
        UserError: The file is missing or damaged, or has no codec stamp.
    """
    made_by = "tokenize_shard"
    try:
        return CodecInfo.from_metadata(TableFile(path, made_by).stamp())
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a table with a codec stamp; {_remedy(made_by)}") from None
