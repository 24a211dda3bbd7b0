"""The states of recordings, which list_rows keeps from one run to the next."""

import json
import os
from pathlib import Path

import pytest
from helpers import run_validation, tone

from higgs_pipe import list_rows
from higgs_pipe.data.tables import shard_path


@pytest.mark.parametrize("has_changed", [False, True])
def test_a_touched_recording_keeps_its_first_state_in_all_later_runs(
    tmp_path: Path, has_changed: bool
) -> None:
    """So that its shard is not measured again; a changed one gets a new state."""
    recording = tone(tmp_path / "a.wav", 1.0)
    tone(tmp_path / "b.wav", 1.2)
    rows = [{"audio": f"{name}.wav", "text": f"Tone {name}."} for name in "ab"]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run_validation(tmp_path, manifest=str(manifest), data={"num_shards": 1})

    def listed() -> bytes:
        list_rows.run(
            tmp_path / "config/list_rows.json",
            data / "rows.parquet",
            data / "recordings",
            file_states=data / "recordings.json",
            measured_dir=data / "measured",
        )
        return shard_path(data / "recordings", 0).read_bytes()

    first = listed()
    if has_changed:
        tone(recording, 1.0, pitch_hz=330)  # as many bytes
    os.utime(recording, (1e9, 1e9))
    assert (listed() != first) == has_changed
    assert (listed() != first) == has_changed
