"""Rows as Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from higgs_pipe.data.arrow import lists_to_arrow, to_arrow
from higgs_pipe.data.specs import Column, TableSpec, frames

SPEC = TableSpec("numbers", 1, "a test", (Column("numbers", pa.list_(pa.int32()), "Numbers."),))


def test_all_lists_together_may_have_more_numbers_than_a_short_integer_counts() -> None:
    rows = [{"numbers": np.arange(start, start + 20_000)} for start in (0, 20_000)]
    assert to_arrow(SPEC, rows)["numbers"].combine_chunks().flatten().to_pylist() == [
        *range(40_000)
    ]


def test_a_table_has_the_metadata_of_the_schema_that_is_given() -> None:
    schema = SPEC.schema.with_metadata({"key": "value"})
    assert to_arrow(SPEC, [{"numbers": [1]}], schema).schema.metadata == {b"key": b"value"}
    assert to_arrow(SPEC, [{"numbers": [1]}]).schema.metadata is None


CODES = TableSpec("codes", 1, "a test", (Column("codes", frames(2), "Codes."),))
COUNTS = TableSpec("counts", 1, "a test", (Column("count", pa.int32(), "Count.", nullable=True),))
MATRICES = [[[1, 2], [3, 4], [5, 6]], [[7, 8]]]  # (3, 2) and (1, 2)


def test_a_matrix_of_codes_keeps_its_rows() -> None:
    arrays = [np.array(matrix) for matrix in MATRICES]
    assert to_arrow(CODES, [{"codes": array} for array in arrays])["codes"].to_pylist() == MATRICES
    joined = lists_to_arrow(CODES, {"codes": (np.concatenate(arrays), [3, 1])})
    assert joined["codes"].to_pylist() == MATRICES


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (CODES, np.array([[40_000, 1]])),
        (SPEC, np.array([2**31])),
        (SPEC, np.array([0.5])),
        (COUNTS, 2**31),
        (COUNTS, 0.5),
        (COUNTS, True),
    ],
)
def test_a_number_that_does_not_fit_its_column_is_refused(spec: TableSpec, value: object) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_arrow(spec, [{spec.columns[0].name: value}])


def test_whole_numbers_may_be_floats_or_missing() -> None:
    rows = [{"count": count} for count in (1, 2.0, None)]
    assert to_arrow(COUNTS, rows)["count"].to_pylist() == [1, 2, None]
