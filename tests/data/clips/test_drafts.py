"""Sound rows on disk, and those that stay."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from higgs_pipe.data.clips import drafts as room
from higgs_pipe.data.clips.drafts import Drafts
from higgs_pipe.data.clips.keys import OtherRecording
from higgs_pipe.data.tables import TableFile


def ids(drafts: Drafts) -> list[str]:
    parts: Iterable[pa.Table] = drafts.tables()
    found: list[str] = drafts.column("clip_id").to_pylist()
    assert [name for part in parts for name in part["clip_id"].to_pylist()] == found
    assert len(drafts) == len(found)
    return found


def test_rows_leave_with_the_other_recordings_of_their_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CLIPS_AT_ONCE", 2)
    pq.write_table(pa.table({"clip_id": list("abcde")}), tmp_path / "t")
    others = [OtherRecording(clip, {}, is_target=True) for clip in (0, 1, 1, 3, 4)]
    whole = Drafts(TableFile(tmp_path / "t", "a rule"), np.ones(5, np.bool_), others)
    assert ids(whole) == list("abcde")
    some = whole.without({"b"})
    assert (ids(some), [other.clip for other in some.others]) == (list("acde"), [0, 2, 3])
    fewer = some.without({"a", "d"})
    assert (ids(fewer), [other.clip for other in fewer.others]) == (["c", "e"], [1])
    assert ids(whole) == list("abcde")
