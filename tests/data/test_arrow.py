"""Rows as Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from higgs_pipe.data.arrow import to_arrow
from higgs_pipe.data.specs import Column, TableSpec

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
