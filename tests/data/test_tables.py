import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import files_of_at_most

from higgs_pipe.data import tables
from higgs_pipe.data.arrow import memory_shared_with_python
from higgs_pipe.data.specs import CodecInfo, Column, TableSpec, codes_spec
from higgs_pipe.data.tables import (
    METADATA_KEY,
    TableFile,
    open_table,
    read_codec_info,
    table_writer,
    write_groups,
    write_table,
)
from higgs_pipe.errors import UserError


def test_a_full_disk_is_a_user_error_and_leaves_no_table(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (10_000, 8), np.int16)
    row = {"clip_id": "a", "codes": codes, "num_frames": len(codes), "audio_sha256": "0"}
    table = tmp_path / "codes.parquet"
    with files_of_at_most(20_000), pytest.raises(UserError, match=r"codes\.parquet"):
        write_table(table, codes_spec(8), [row])
    assert list(tmp_path.iterdir()) == []


def test_arrow_uses_the_system_allocator_within_the_block() -> None:
    before = pa.default_memory_pool().backend_name
    with memory_shared_with_python():
        assert pa.default_memory_pool().backend_name == "system" != before
    assert pa.default_memory_pool().backend_name == before


def test_a_changed_byte_of_a_table_never_changes_values_silently(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 1024, (60, 8), np.int16)
    rows = [
        {"clip_id": f"clip-{i}", "codes": codes[i:], "num_frames": 60 - i, "audio_sha256": f"{i}"}
        for i in range(20)
    ]
    spec, table = codes_spec(8), tmp_path / "codes.parquet"
    write_table(table, spec, rows, {"codec_info": {"codec": "a"}})
    whole, opened = table.read_bytes(), open_table(table, spec)
    expected = (opened.read(), opened.stamp())

    outcomes: Counter[str] = Counter()
    for place in generator.permutation(len(whole))[:600]:
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.integers(8)
        table.write_bytes(changed)
        try:
            opened = open_table(table, spec)
            is_equal = (opened.read(), opened.stamp()) == expected
            outcomes["equal" if is_equal else f"differs, byte {place}"] += 1
        except UserError as error:
            is_named = str(table) in str(error) and spec.made_by in str(error)
            outcomes["refused" if is_named else f"no place or rule: {error}"] += 1
    assert set(outcomes) == {"equal", "refused"}
    assert outcomes["refused"] > 400


@pytest.mark.parametrize(
    "read",
    [
        lambda table: table.read(),
        lambda table: table.read_row_group(0),
        lambda table: pa.Table.from_batches(table.iter_batches(1)),
    ],
    ids=["whole", "group", "batches"],
)
def test_a_changed_bit_of_a_table_never_drops_rows(
    tmp_path: Path, read: Callable[[TableFile], pa.Table]
) -> None:
    """pyarrow alone returns fewer rows for some of these bits."""
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"number": [1, 2, 3]}), path, write_page_checksum=True)
    whole = path.read_bytes()
    num_rows: Counter[int] = Counter()
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with suppress(UserError):
            num_rows[read(TableFile(path, "rule")).num_rows] += 1
    assert set(num_rows) == {3}


def test_two_threads_never_read_one_table_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "codes.parquet"
    row = {"clip_id": "a", "codes": np.zeros((1, 8), np.int16), "num_frames": 1}
    write_table(table, codes_spec(8), [row | {"audio_sha256": "0"}])
    events: list[str] = []

    def slow_read(*_: Any, **__: Any) -> pa.Table:
        events.append("begin")
        time.sleep(0.05)
        events.append("end")
        return pa.table({"row": [0]})

    monkeypatch.setattr(pq.ParquetFile, "read", slow_read)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", slow_read)
    shared = TableFile(table, "tokenize")
    with ThreadPoolExecutor(2) as threads:
        reads = [threads.submit(shared.read), threads.submit(shared.read_row_group, 0)]
    assert [read.result().num_rows for read in reads] == [1, 1]
    assert events == ["begin", "end", "begin", "end"]


SPEC = TableSpec(
    "a table",
    1,
    "a_rule",
    (Column("name", pa.string(), "A name."), Column("size", pa.int32(), "A size.")),
)


@pytest.mark.parametrize(
    ("sizes", "groups"), [((2, 2, 2, 1), [3, 3, 1]), ((1, 5), [3, 3]), ((7,), [3, 3, 1])]
)
def test_parts_of_any_size_are_written_as_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], groups: list[int]
) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 3)
    rows = [{"name": f"{number}", "size": number} for number in range(sum(sizes))]
    whole = pa.Table.from_pylist(rows, SPEC.schema)
    parts = [whole.slice(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    tables.write_parts(tmp_path / "parts", SPEC, parts)
    write_table(tmp_path / "rows", SPEC, rows)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "rows").read_bytes()
    found = open_table(tmp_path / "parts", SPEC)
    assert [found.read_row_group(i).num_rows for i in range(found.num_row_groups)] == groups
    assert tables.read_table(tmp_path / "parts", SPEC).to_pylist() == rows
    assert tables.read_table(tmp_path / "parts", SPEC, ["size"]).column_names == ["size"]


def test_columns_and_rows_are_read_as_asked_for(tmp_path: Path) -> None:
    rows = [{"name": f"{number}", "size": number} for number in range(5)]
    write_table(tmp_path / "t", SPEC, rows)
    table = open_table(tmp_path / "t", SPEC)
    assert table.read_row_group(0, ["size"]).to_pylist() == [{"size": n} for n in range(5)]
    assert table.read_row_group(0).to_pylist() == rows
    batches = table.iter_batches(2, ["name"])
    assert [batch.to_pydict() for batch in batches] == [
        {"name": ["0", "1"]},
        {"name": ["2", "3"]},
        {"name": ["4"]},
    ]


def test_groups_are_written_whole_and_counted(tmp_path: Path) -> None:
    rows = [{"name": "a", "size": number} for number in range(5)]
    with table_writer(tmp_path / "t", SPEC) as writer:
        assert write_groups(writer, SPEC, rows, 2) == 5
    found = open_table(tmp_path / "t", SPEC)
    assert [found.read_row_group(i)["size"].to_pylist() for i in range(3)] == [[0, 1], [2, 3], [4]]


def test_a_table_is_stamped_with_its_kind_version_and_metadata(tmp_path: Path) -> None:
    write_table(tmp_path / "t", SPEC, [], {"key": [1]})
    stamp = {"table": "a table", "version": 1, "key": [1]}
    assert open_table(tmp_path / "t", SPEC).stamp() == stamp
    whole = pq.read_table(tmp_path / "t")
    unsigned = {METADATA_KEY: whole.schema.metadata[METADATA_KEY]}  # without its checksum
    pq.write_table(whole.replace_schema_metadata(unsigned), tmp_path / "t")
    with pytest.raises(UserError, match="checksum of its metadata"):
        open_table(tmp_path / "t", SPEC)


def test_columns_carry_their_descriptions_and_refuse_missing_values(tmp_path: Path) -> None:
    assert SPEC.schema.field("size").metadata == {b"description": b"A size."}
    with pytest.raises(pa.ArrowInvalid, match="non-nullable"):
        write_table(tmp_path / "t", SPEC, [{"name": None, "size": 1}])
    assert list(tmp_path.iterdir()) == []


def test_codes_are_packed_for_speed_and_other_tables_for_size(tmp_path: Path) -> None:
    codes = {"clip_id": "a", "codes": np.ones((2, 8), np.int16), "num_frames": 2}
    write_table(tmp_path / "codes", codes_spec(8), [codes | {"audio_sha256": "0"}])
    write_table(tmp_path / "other", SPEC, [{"name": "a", "size": 1}])
    for name, compression in (("codes", "LZ4"), ("other", "ZSTD")):
        group = pq.ParquetFile(tmp_path / name).metadata.row_group(0)
        assert {group.column(i).compression for i in range(group.num_columns)} == {compression}


def test_a_codec_is_read_from_its_stamp_alone(tmp_path: Path) -> None:
    info = CodecInfo("a", None, "f", 8, 1024, 25.0, 24_000, 960, "float32")
    write_table(tmp_path / "t", SPEC, [], info.as_metadata())
    assert read_codec_info(tmp_path / "t") == info
    for metadata in ({}, {"codec_info": {"codec": "a"}}):
        write_table(tmp_path / "t", SPEC, [], metadata)
        with pytest.raises(UserError, match=r"t: not a table with a codec stamp; .*tokenize_shard"):
            read_codec_info(tmp_path / "t")


def test_a_table_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "t")

    monkeypatch.setattr(pq.ParquetFile, "__init__", refuse)
    with pytest.raises(PermissionError):
        open_table(tmp_path / "t", SPEC)


def test_shards_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    row = {"name": "a", "size": 1}
    for num_shards in (3, 2):
        tables.write_shards(tmp_path, SPEC, [[row]] * num_shards)
        found = sorted(tmp_path.iterdir())
        assert found == [tables.shard_path(tmp_path, index) for index in range(num_shards)]


def test_a_missing_table_is_named_with_the_rule_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.parquet: the table is missing; .* a_rule"):
        open_table(tmp_path / "none.parquet", SPEC)
