"""A histogram per measure of the clips, with the filters and the clips that they reject."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.config.settings import FilterConfig
from higgs_pipe.data.clips.candidates import clip_of
from higgs_pipe.data.clips.filters import BOUNDS
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.quality import AudioMeasures, TextMeasures
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import CLIPS, MEASURED
from higgs_pipe.data.tables import read_table
from higgs_pipe.data.text import is_blank
from higgs_pipe.reporting.charts import Chart, draw_measure

# In the order of the page: measures that are not whole numbers, and those that a filter bounds.
NAMES = (
    "duration_seconds",
    "sample_rate_hz",
    *(measure.name for measure in fields(AudioMeasures)),
    *(measure.name for measure in fields(TextMeasures) if measure.type is float),
    "word_error_rate",
    "stoi",
    "pesq",
    "si_sdr_db",
)

Values = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class MeasureChart:
    """A measure: its description, its histogram, and a sentence per filter."""

    description: str
    chart: Chart
    filters: list[str]


def values_of_clips(clips: pa.Table) -> Values:
    """Return the known, finite values of each measure, over rows of CLIPS."""
    return {name: _finite(clips[name].drop_null().to_numpy()) for name in NAMES}


def values_of_rejected(rows: Iterable[Row], measured_dir: Path) -> Values:
    """Return the known, finite values of each measure, over rows that were rejected.

    A row whose recording could not be measured, or that has no text, has none.
    """
    spans: dict[Span, list[Row]] = defaultdict(list)
    for row in rows:
        if not is_blank(row.text):
            spans[row.span].append(row)
    wanted = pa.array(sorted({span.audio_path for span in spans}), pa.string())
    clips: list[Mapping[str, Any]] = []
    for shard in sorted(measured_dir.glob("shard-*.parquet")):
        table = read_table(shard, MEASURED)
        for recording in table.filter(pc.is_in(table["audio_path"], wanted)).to_pylist():
            if recording["peak"] is not None:
                clips += [clip_of(row, recording) for row in spans.get(Span.of(recording), ())]
    known = {name: [clip[name] for clip in clips if clip[name] is not None] for name in NAMES}
    return {name: _finite(np.array(values, np.float64)) for name, values in known.items()}


def measure_charts(accepted: Values, rejected: Values, limits: FilterConfig) -> list[MeasureChart]:
    """Draw each measure that any row has."""
    descriptions = {column.name: column.description for column in CLIPS.columns}
    charts = []
    for name in NAMES:
        if len(accepted[name]) + len(rejected[name]) == 0:
            continue
        bounds = {
            setting: float(getattr(limits, setting))
            for setting, measure, _ in BOUNDS
            if measure == name and getattr(limits, setting) is not None
        }
        chart = draw_measure(name, accepted[name], rejected[name], list(bounds.values()))
        filters = [_effect(s, bound, rejected[name]) for s, bound in bounds.items()]
        charts.append(MeasureChart(descriptions[name], chart, filters))
    return charts


def _effect(setting: str, bound: float, rejected: npt.NDArray[np.float64]) -> str:
    """Render a filter and the rows that it is enough to reject."""
    beyond = rejected > bound if setting.startswith("max_") else rejected < bound
    num_rows = int(beyond.sum())
    rows = "row" if num_rows == 1 else "rows"
    return f"validate.filters.{setting} = {bound:,g}: {num_rows:,} {rows} beyond it"


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(values[np.isfinite(values)], np.float64)
