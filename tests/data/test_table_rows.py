"""Rows that are views of column tables."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from higgs_pipe.data import tables
from higgs_pipe.data.clips import drafts, keys, text_findings
from higgs_pipe.data.clips.measured import MeasuredSpans
from higgs_pipe.data.manifests import row_table
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row_table import RowColumns, read_rows
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.data.table_rows import TableRows

ROWS = [
    {"name": "a", "level_db": -3.25, "count": 7, "rate": None, "is_odd": True, "voice": [1.0, 2.0]},
    {"name": None, "level_db": 0.5, "count": -1, "rate": 2.0, "is_odd": None, "voice": None},
]


def test_rows_have_the_values_and_types_of_their_table() -> None:
    table = pa.concat_tables([pa.Table.from_pylist([row], TYPES) for row in ROWS])
    found = [dict(row) for row in TableRows(table)]
    assert found == ROWS
    assert [type(value) for value in found[0].values()] == [str, float, int, type(None), bool, list]


def test_rows_are_found_by_place_from_either_end_and_in_slices() -> None:
    rows = TableRows(pa.table({"number": range(5)}))
    assert [rows[place]["number"] for place in (0, 3, -1, -5)] == [0, 3, 4, 0]
    assert [row["number"] for row in rows[1:4:2]] == [1, 3]
    with pytest.raises(IndexError):
        rows[5]


TYPES = pa.schema(
    {
        "name": pa.string(),
        "level_db": pa.float32(),
        "count": pa.int32(),
        "rate": pa.float64(),
        "is_odd": pa.bool_(),
        "voice": pa.list_(pa.float32()),
    }
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Folders with listed and measured rows, by number of rows."""
    from soak import pretend_to_measure, run_stage, write_manifest

    folders = {}
    for num_rows in (300, 1300):
        folders[num_rows] = folder = tmp_path_factory.mktemp("rows")
        write_manifest(folder, num_rows)
        run_stage("list_rows", folder)
        pretend_to_measure(folder)
    return folders


@pytest.fixture
def batches_of_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_table, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 100)
    for module in (drafts, text_findings):
        monkeypatch.setattr(module, "CLIPS_AT_ONCE", 100)
    monkeypatch.setattr(keys, "TEXTS_AT_ONCE", 100)


@pytest.mark.usefixtures("batches_of_100")
def test_validate_needs_less_than_half_a_kilobyte_per_row(corpora: Mapping[int, Path]) -> None:
    peaks = {num_rows: peak_of("validate", folder) for num_rows, folder in corpora.items()}
    assert (peaks[1300] - peaks[300]) / 1000 < 500  # beside the columns, which Arrow holds


@pytest.mark.usefixtures("batches_of_100")
def test_list_rows_needs_less_than_half_a_kilobyte_per_row(corpora: Mapping[int, Path]) -> None:
    peaks = {number: peak_of("list_rows", folder) for number, folder in corpora.items()}
    assert (peaks[1300] - peaks[300]) / 1000 < 500  # beside its columns


def test_rows_stored_in_columns_can_be_indexed_and_iterated(tmp_path: Path) -> None:
    lines = [json.dumps({"audio": f"{i}.wav", "text": f"Text {i}."}) for i in range(5)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    rows = list(read_manifests([str(tmp_path / "m.jsonl")]).rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_table, "ROWS_AT_ONCE", 2)
        columns = RowColumns(rows)
        assert [columns[i] for i in (0, 3, 4, -1)] == [rows[i] for i in (0, 3, 4, 4)]
        assert (len(columns), list(columns)) == (5, rows)


@pytest.mark.usefixtures("batches_of_100")
def test_clips_written_in_parts_give_the_bytes_of_a_single_write(
    corpora: Mapping[int, Path], tmp_path: Path
) -> None:
    from soak import run_stage

    run_stage("validate", corpora[1300])
    clips = corpora[1300] / "clips.parquet"
    tables.write_table(tmp_path / "t.parquet", CLIPS, tables.read_table(clips, CLIPS).to_pylist())
    assert (tmp_path / "t.parquet").read_bytes() == clips.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "CLIPS_AT_ONCE", 2000)
        run_stage("validate", corpora[1300])
    assert (tmp_path / "t.parquet").read_bytes() == clips.read_bytes()


def test_equal_values_of_many_rows_share_one_object(corpora: Mapping[int, Path]) -> None:
    rows = read_rows(corpora[300] / "rows.parquet").rows
    assert len({row.speaker for row in rows}) == len({id(row.speaker) for row in rows}) == 10
    assert len({id(row.manifest) for row in rows}) == 1


def peak_of(stage: str, folder: Path) -> int:
    from soak import run_stage

    run_stage(stage, folder)  # what is imported and made once
    tracemalloc.start()
    run_stage(stage, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_spans_with_equal_hashes_are_told_apart_and_the_last_duplicate_wins() -> None:
    spans = [Span("a.wav", -1.0), Span("a.wav", -2.0), Span("b.wav", 0.5, 1.0), Span("a.wav", -1.0)]
    assert hash(spans[0]) == hash(spans[1])
    rows = [{**span._asdict(), "peak": float(index)} for index, span in enumerate(spans)]
    shards = [pa.Table.from_pylist(part) for part in (rows[:3], rows[3:])]
    measured = MeasuredSpans([shard.cast(SPANS_AND_PEAKS) for shard in shards])
    assert {span: measured[span]["peak"] for span in measured} == {
        spans[0]: 3.0,
        spans[1]: 1.0,
        spans[2]: 2.0,
    }
    assert Span("a.wav", -3.0) not in measured


SPANS_AND_PEAKS = pa.schema(
    {
        "audio_path": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "peak": pa.float32(),
    }
)
