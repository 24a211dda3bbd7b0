"""Parts of the clips page: the clips listed, the audio played, the rows beyond filters."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
from markupsafe import Markup
from report_inputs import TextOfPage, blank_row

from higgs_pipe.config.settings import FilterConfig
from higgs_pipe.data.clips.results import Outliers
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import CLIPS, MEASURED
from higgs_pipe.data.tables import write_table
from higgs_pipe.reporting import clip_measures, clips
from higgs_pipe.reporting.audio import Player
from higgs_pipe.reporting.charts import Chart
from higgs_pipe.reporting.clip_measures import NAMES, MeasureChart, measure_charts
from higgs_pipe.reporting.pages import render_page


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


@pytest.mark.parametrize(
    ("start_seconds", "end_seconds", "seconds"),
    [(1.0, 3.0, 0.5), (1.0, 1.25, 0.25), (1.0, None, 0.5), (0.25, 3.0, 0.5)],
)
def test_the_player_starts_at_the_start_of_the_span(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_seconds: float,
    end_seconds: float | None,
    seconds: float,
) -> None:
    """Of half a second at most, at the rate of the players, of a file with a level per second."""
    monkeypatch.undo()
    monkeypatch.setattr(clips, "MAX_PLAYED_SECONDS", 0.5)
    monkeypatch.setattr(clips, "make_player", lambda *arguments: arguments)
    levels = np.repeat([0.125, 0.25, 0.5], 8000)
    sf.write(tmp_path / "a.wav", np.stack([-levels, levels], axis=1), 8000, subtype="FLOAT")
    span = Span(str(tmp_path / "a.wav"), start_seconds, end_seconds)
    samples, rate_hz, longest = clips._player(span, channel=1)  # type: ignore[misc]
    assert len(samples) == pytest.approx(24_000 * seconds, abs=2)
    level = 0.25 if start_seconds == 1 else 0.125
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
    columns = {column.name: column.description for column in CLIPS.columns}
    assert [chart.description for chart in found] == [columns[name] for name in named]
    sentences = {name: chart.filters for name, chart in zip(named, found, strict=True)}
    assert sentences == {
        "snr_db": ["validate.filters.min_snr_db = 0: 0 rows beyond it"],
        "characters_per_second": [
            "validate.filters.min_characters_per_second = 2: 1 row beyond it",
            "validate.filters.max_characters_per_second = 20: 2 rows beyond it",
        ],
        "stoi": [],
    }


def test_only_known_finite_values_of_a_measure_are_drawn() -> None:
    measured = ((3.0, None), (np.inf, 0.5), (None, np.nan))
    values = [{"snr_db": ratio, "word_error_rate": rate} for ratio, rate in measured]
    table = pa.Table.from_pylist([blank_row(CLIPS) | value for value in values], CLIPS.schema)
    found = clip_measures.values_of_clips(table)
    assert (found["snr_db"].tolist(), found["word_error_rate"].tolist()) == ([3], [0.5])


def test_values_of_rejected_rows_are_those_of_their_own_recordings(tmp_path: Path) -> None:
    """Two rows have one recording; of the others one has no text, and one was not measured."""
    seconds = {"a": 2.0, "b": 4.0, "c": 8.0, "other": 16.0}
    lines = [
        blank_row(MEASURED)
        | {"audio_path": f"/{name}.wav", "duration_seconds": length, "sample_rate_hz": 8000}
        | {"peak": None if name == "c" else 0.5, "snr_db": np.inf, "transcript": "one two"}
        for name, length in seconds.items()
    ]
    write_table(tmp_path / "shard-00000.parquet", MEASURED, lines[:1])
    write_table(tmp_path / "shard-00001.parquet", MEASURED, lines[1:])
    texts = (("a", "one two"), ("a", "one six"), ("b", "one two"), ("b", " "), ("c", "one two"))
    none: dict[str, Any] = dict.fromkeys(
        ("speaker", "language", "scene", "ref_audio_path", "ref_text", "split")
    )
    rows = [
        Row("m.jsonl", line, str(line), name, Path(f"/{name}.wav"), text, **none)
        for line, (name, text) in enumerate(texts, 1)
    ]
    found = clip_measures.values_of_rejected(rows, tmp_path)
    assert found["duration_seconds"].tolist() == [2, 2, 4]
    assert found["word_error_rate"].tolist() == [0, 0.5, 0]
    assert len(found["snr_db"]) == len(found["pesq"]) == 0


def rendered(num_rejected: int, **lists: Any) -> dict[str, str]:
    """The sections of a page of these lists, by their ids."""
    validation = SimpleNamespace(
        **{"num_clips": 1, "num_rows": 1 + num_rejected, "num_rejected": num_rejected},
        **{"num_rejected_by_reason": {}, "hours": 0.5, "clip_seconds": SimpleNamespace(median=2)},
    )
    empty: dict[str, Any] = dict.fromkeys(("random", "unlike", "rejected", "measures"), ())
    page = render_page(
        "clips.html.j2",
        title="Recordings",
        validation=validation,
        colours={"accepted": "#0a0a0a", "rejected": "#0b0b0b"},
        speakers={},
        languages={},
        **empty | lists,
    )
    return dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))


def heard_clip(name: str, speaker: str | None, seconds: float | None) -> clips.HeardClip:
    player = None if seconds is None else Player(f"data:{name}", seconds, f"M{name}")
    return clips.HeardClip(name, f"Text {name}", speaker, seconds, player, f"too_{name}", "Why.")


def test_each_clip_of_a_list_has_its_own_cells_and_player() -> None:
    """A clip that cannot be played stands between two that can; each list has its own."""
    heard = [heard_clip("a", "ada", 1.5), heard_clip("b", None, None), heard_clip("c", "cy", 3)]
    heard[2] = replace(heard[2], fact="Because.")
    plain = replace(heard_clip("d", "di", 4), heading="", fact="")
    sections = rendered(num_rejected=4, unlike=heard, random=[plain], rejected=heard[:1])
    text = {name: TextOfPage(section) for name, section in sections.items()}
    assert text["unlike"].rows[1:] == [
        ["a ada", "Text a too a : Why.", "1.50", ""],
        ["b", "Text b too b : Why.", "unknown", "cannot be played"],
        ["c cy", "Text c too c : Because.", "3.00", ""],
    ]
    assert text["sample"].rows[1:] == [["d di", "Text d", "4.00", ""]]
    assert "And 3 more, in" in " ".join(text["rejected"].words)
    players = r'path d="(M\w)"/></svg>\s*<audio [^>]*src="(data:\w)" aria-label="([^"]*)"'
    assert re.findall(players, sections["unlike"]) == [
        (f"M{name}", f"data:{name}", f"Recording of {name}") for name in "ac"
    ]


@pytest.mark.parametrize(
    ("num_rejected", "shown", "told"),
    [
        (0, [], ["None."]),
        (1, [], ["Reason", "Rows", "None shown: report.num_players is 0.", "And 1 more, in"]),
        (1, [heard_clip("a", "ada", 1.5)], ["Reason", "Rows", "Clip"]),
    ],
)
def test_an_empty_list_gives_its_reason_and_rows_left_out_are_counted(
    num_rejected: int, shown: list[clips.HeardClip], told: list[str]
) -> None:
    sections = rendered(num_rejected, rejected=shown)
    found = TextOfPage(sections["rejected"]).words
    assert found[1 : 1 + len(told)] == told
    assert any(word.startswith("And ") for word in found) == (told[-1].startswith("And "))
    assert TextOfPage(sections["sample"]).words[-1] == "None: report.num_players is 0."
    assert TextOfPage(sections["unlike"]).words[-1] == "None."


def test_each_measure_has_its_own_drawing_description_and_filters() -> None:
    measures = [
        MeasureChart(
            f"About {name}.", Chart(name, Markup(f"<{name}/>"), 30, 20, f"Drawn {name}"), filters
        )
        for name, filters in (("x", ["x1", "x2"]), ("y", []), ("z", ["z1"]))
    ]
    section = rendered(num_rejected=0, measures=measures)["measures"]
    charts = TextOfPage(section[section.index('<div class="charts">') :]).words
    assert charts == ["x", "About x.", "x1", "x2", "y", "About y.", "z", "About z.", "z1"]
    drawn = r'<svg viewBox="0 0 30 20" role="img" aria-label="Drawn (\w)"><(\w)/></svg>'
    assert re.findall(drawn, section) == [("x", "x"), ("y", "y"), ("z", "z")]
    legend = r'stroke="(#\w+)" stroke-width="10"/></svg>(\w+)</li>'
    assert re.findall(legend, section) == [("#0a0a0a", "accepted"), ("#0b0b0b", "rejected")]
