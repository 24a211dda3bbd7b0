"""Parts of the clips page: the clips listed, the audio played, the rows beyond filters."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
from report_inputs import blank_row

from higgs_pipe.config.settings import FilterConfig
from higgs_pipe.data.clips.results import Outliers
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.reporting import clip_measures, clips
from higgs_pipe.reporting.clip_measures import NAMES, measure_charts


@pytest.fixture(autouse=True)
def unplayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each player by the path and channel that it would play."""
    monkeypatch.setattr(clips, "_player", lambda span, channel: (span.audio_path, channel))


def table_of(*ids: str) -> Any:
    rows = [
        blank_row(CLIPS)
        | {"clip_id": name, "text": f"Text {name}", "audio_path": f"{name}.wav", "channel": 1}
        for name in ids
    ]
    return pa.Table.from_pylist(rows)


def test_the_sample_is_drawn_by_id_and_listed_in_table_order() -> None:
    ids = [f"c{number}" for number in range(12)]
    drawn = sorted(ids, key=lambda name: unit_hash("listen", name))[:4]
    found: Any = clips.random_sample(table_of(*ids), 4)
    assert [clip.clip_id for clip in found] == [name for name in ids if name in drawn]
    assert [clip.text for clip in found] == [f"Text {clip.clip_id}" for clip in found]
    assert [clip.player for clip in found] == [(f"{clip.clip_id}.wav", 1) for clip in found]


def test_the_worst_outlier_per_speaker_and_measure_comes_first() -> None:
    outliers = {
        "ada": {"rms_dbfs": Outliers(median=-20, num_clips=2, clips={"a": -60, "b": -50})},
        "ben": {
            "snr_db": Outliers(median=30, num_clips=1, clips={"c": 5}),
            "rms_dbfs": Outliers(median=-25, num_clips=1, clips={"d": -1}),
        },
    }
    validation: Any = SimpleNamespace(outliers=outliers)
    found = clips.unlike_their_speaker(table_of(*"dcba"), validation, 9)
    assert [(clip.clip_id, clip.heading, clip.fact) for clip in found] == [
        ("a", "RMS", "-60 dBFS; median of ada: -20 dBFS"),
        ("c", "SNR", "5 dB; median of ben: 30 dB"),
        ("d", "RMS", "-1 dBFS; median of ben: -25 dBFS"),
        ("b", "RMS", "-50 dBFS; median of ada: -20 dBFS"),
    ]
    assert [
        clip.clip_id for clip in clips.unlike_their_speaker(table_of(*"dcba"), validation, 3)
    ] == [*"acd"]


def test_a_rejected_row_has_its_own_text_length_and_message() -> None:
    rows: Any = [
        SimpleNamespace(clip_id=name, text=f"Text {name}", span=Span(f"{name}.wav"))
        for name in "abc"
    ]
    rejections: list[dict[str, Any]] = [
        {"clip_id": name, "reason": reason, "message": f"{name} is {reason}"}
        | {"speaker": f"speaker {name}", "duration_seconds": seconds}
        for name, reason, seconds in (("a", "silent", 1.5), ("b", "silent", None), ("c", "long", 9))
    ]
    found = clips.examples_of_rejected(rejections, rows, 2)
    assert [vars(clip) for clip in found] == [
        {
            **{"clip_id": name, "text": f"Text {name}", "speaker": f"speaker {name}"},
            **{"seconds": seconds, "player": (f"{name}.wav", None)},
            **{"heading": reason, "fact": f"{name} is {reason}"},
        }
        for name, reason, seconds in (("a", "silent", 1.5), ("c", "long", 9))
    ]


@pytest.mark.parametrize(("end_seconds", "level"), [(3.0, 0.25), (1.25, 0.25), (None, 0.25)])
def test_the_player_starts_at_the_start_of_the_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_seconds: float | None, level: float
) -> None:
    """Of half a second at most, at the rate of the players, of a file with a level per second."""
    monkeypatch.undo()
    monkeypatch.setattr(clips, "MAX_PLAYED_SECONDS", 0.5)
    monkeypatch.setattr(clips, "make_player", lambda *arguments: arguments)
    levels = np.repeat([0.125, level, 0.5], 8000)
    sf.write(tmp_path / "a.wav", np.stack([-levels, levels], axis=1), 8000, subtype="FLOAT")
    span = Span(str(tmp_path / "a.wav"), 1.0, end_seconds)
    samples, rate_hz, longest = clips._player(span, channel=1)  # type: ignore[misc]
    seconds = 0.25 if end_seconds == 1.25 else 0.5
    assert len(samples) == pytest.approx(24_000 * seconds, abs=2)
    assert samples[1000:-1000] == pytest.approx(level, abs=0.01)
    assert (rate_hz, longest) == (24_000, None)


def test_a_measure_lists_its_filters_and_the_rejected_rows_beyond_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(clip_measures, "draw_measure", lambda *parts: drawn.append(parts))
    nothing = {name: np.zeros(0) for name in NAMES}
    accepted = nothing | {"characters_per_second": np.array([14.0]), "snr_db": np.array([9.0])}
    speeds = np.array([1.0, 2.0, 20.0, 21.0, 22.0])
    rejected = nothing | {"characters_per_second": speeds, "stoi": np.array([0.25])}
    limits = FilterConfig(
        min_characters_per_second=2, max_characters_per_second=20, min_snr_db=0, min_pesq=2
    )
    found = measure_charts(accepted, rejected, limits)
    named = {name: (kept.tolist(), lost.tolist(), bounds) for name, kept, lost, bounds in drawn}
    assert named == {
        "snr_db": ([9.0], [], [0.0]),
        "characters_per_second": ([14.0], speeds.tolist(), [2.0, 20.0]),
        "stoi": ([], [0.25], []),
    }
    sentences = {name: chart.filters for name, chart in zip(named, found, strict=True)}
    assert sentences == {
        "snr_db": ["validate.filters.min_snr_db = 0: 0 rows beyond it"],
        "characters_per_second": [
            "validate.filters.min_characters_per_second = 2: 1 row beyond it",
            "validate.filters.max_characters_per_second = 20: 2 rows beyond it",
        ],
        "stoi": [],
    }
