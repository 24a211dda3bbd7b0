"""Rows that hold no values of their own."""

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from higgs_pipe.data.manifests.row_table import read_rows
from higgs_pipe.data.table_rows import rows_of

ROWS = [
    {"name": "a", "level_db": -3.25, "count": 7, "rate": None, "is_odd": True, "voice": [1.0, 2.0]},
    {"name": None, "level_db": 0.5, "count": -1, "rate": 2.0, "is_odd": None, "voice": None},
]


def test_a_row_gives_the_values_and_types_of_its_table() -> None:
    table = pa.concat_tables([pa.Table.from_pylist([row], TYPES) for row in ROWS])
    found = [dict(row) for row in rows_of(table)]
    assert found == ROWS
    assert [type(value) for value in found[0].values()] == [str, float, int, type(None), bool, list]


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
    """Folders with listed and measured rows, by their number."""
    from soak import pretend_to_measure, run_stage, write_manifest

    folders = {}
    for num_rows in (300, 1300):
        folders[num_rows] = folder = tmp_path_factory.mktemp("rows")
        write_manifest(folder, num_rows)
        run_stage("list_rows", folder)
        pretend_to_measure(folder)
    return folders


def test_a_row_takes_less_than_three_kilobytes_of_validate(corpora: Mapping[int, Path]) -> None:
    peaks = {num_rows: peak_of_validate(folder) for num_rows, folder in corpora.items()}
    assert (peaks[1300] - peaks[300]) / 1000 < 3000


def test_equal_values_of_many_rows_are_one_object(corpora: Mapping[int, Path]) -> None:
    rows = read_rows(corpora[300] / "rows.parquet").rows
    assert len({row.speaker for row in rows}) == len({id(row.speaker) for row in rows}) == 10
    assert len({id(row.manifest) for row in rows}) == 1


def peak_of_validate(folder: Path) -> int:
    from soak import run_stage

    run_stage("validate", folder)  # what is imported and made once
    tracemalloc.start()
    run_stage("validate", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
