"""Tables of another version, kind or schema are refused with the rule to run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from higgs_pipe.data.specs import CLIPS, RECORDINGS
from higgs_pipe.data.tables import read_table, write_table
from higgs_pipe.errors import UserError


@pytest.mark.parametrize("changes", [{"version": RECORDINGS.version + 1}, {"name": "others"}])
def test_a_table_of_another_version_or_kind_names_the_rule_to_rerun(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "table.parquet"
    write_table(path, replace(RECORDINGS, **changes), [])
    with pytest.raises(UserError, match=r"table\.parquet: .*--forcerun list_rows"):
        read_table(path, RECORDINGS)
    write_table(path, RECORDINGS, [])
    assert len(read_table(path, RECORDINGS)) == 0


def test_a_table_with_the_columns_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_table(path, replace(RECORDINGS, name=CLIPS.name, version=CLIPS.version), [])
    with pytest.raises(UserError, match=r"columns \['audio_path'.*--forcerun judge_clips"):
        read_table(path, CLIPS)


def test_a_table_whose_column_has_another_type_is_refused(tmp_path: Path) -> None:
    path, columns = tmp_path / "table.parquet", RECORDINGS.columns
    as_text = replace(columns[-1], type=pa.string())
    write_table(path, replace(RECORDINGS, columns=(*columns[:-1], as_text)), [])
    with pytest.raises(UserError, match=r"table\.parquet: .*--forcerun list_rows"):
        read_table(path, RECORDINGS)
