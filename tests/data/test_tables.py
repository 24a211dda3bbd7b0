from pathlib import Path

import numpy as np
import pytest
from helpers import files_of_at_most

from higgs_pipe.data.specs import codes_spec
from higgs_pipe.data.tables import write_table
from higgs_pipe.errors import UserError


def test_a_full_disk_is_a_sentence_and_leaves_no_table(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (10_000, 8), np.int16)
    row = {"clip_id": "a", "codes": codes, "num_frames": len(codes), "audio_sha256": "0"}
    table = tmp_path / "codes.parquet"
    with files_of_at_most(20_000), pytest.raises(UserError, match=r"codes\.parquet"):
        write_table(table, codes_spec(8), [row])
    assert list(tmp_path.iterdir()) == []
