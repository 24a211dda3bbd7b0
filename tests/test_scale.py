"""Predictions for large corpora, against numbers worked by hand."""

import re
import tomllib

import pytest
import scale
from helpers import ROOT

# Each cost another power of ten or a small number, so that none stands in for another.
COSTS = {
    "clip_seconds": 10.0,
    "hours_per_shard": 10.0,
    "jobs_apart": 30.0,
    "files_per_shard": 8.0,
    "files_apart": 100.0,
    "listing": 0.001,
    "measuring": 0.01,
    "judging": 0.002,
    "judging_memory": 500.0,
    "packing": 0.003,
    "encoding": 0.01,
    "training": 0.001,
    "positions": 20.0,
    "epochs": 2.0,
    "starting": 36.0,
    "planning": 0.01,
    "planning_pairs": 0.0001,
    "planning_start": 2.0,
    "plans": 3.0,
    "scheduling": 0.2,
    "recording_bytes": 1000.0,
    "codes_bytes": 30.0,
    "packed_bytes": 20.0,
    "row_bytes": 100.0,
    "run_bytes": 5e6,
    "core_price": 0.1,
    "gpu_price": 2.0,
}


def test_the_prediction_for_1000_hours_matches_a_hand_calculation() -> None:
    """3,600,000 s in 360,000 rows and 100 shards, on 16 cores and a GPU."""
    found = scale.predict(1_000, COSTS)
    assert (found.num_shards, found.num_jobs, found.num_files) == (100, 230, 900)
    # Three plans of 2 + 1 + 1 s; 230 jobs of 0.2 s.
    assert found.snakemake_seconds == pytest.approx(12 + 46)
    # One job at a time: 360,000 * 0.006 = 2,160 s. By all cores: 36,000 + 230 * 36 = 44,280 s.
    assert found.core_hours == pytest.approx((58 + 2160 + 44_280) / 3600)
    # Encoding 36,000 s; 3,600,000 * 20 * 2 positions of a millisecond: 144,000 s.
    assert found.gpu_hours == pytest.approx(50)
    assert found.elapsed_hours == pytest.approx((58 + 2160 + 44_280 / 16 + 180_000) / 3600)
    assert found.judging_bytes == pytest.approx(180e6)
    assert found.recorded_bytes == pytest.approx(3.6e9)
    assert found.written_bytes == pytest.approx(180e6 + 36e6 + 5e6)
    assert found.dollars == pytest.approx(0.1 * 46_498 / 3600 + 2 * 50)


@pytest.mark.parametrize(("hours", "num_shards"), [(1, 8), (85, 9), (20_000, 2_000), (1e6, 2_000)])
def test_the_number_of_shards_stays_within_bounds(hours: float, num_shards: int) -> None:
    assert scale.predict(hours, COSTS).num_shards == num_shards


def test_every_cost_is_used_and_names_its_source() -> None:
    table = tomllib.loads(scale.UNIT_COSTS.read_text())
    assert table.keys() == COSTS.keys()
    assert all(cost.keys() == {"value", "unit", "source"} for cost in table.values())
    files = {
        f for cost in table.values() for f in re.findall(r"[\w/-]+\.(?:md|py|smk)", cost["source"])
    }
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file).is_file()] == []
    for name in COSTS:  # each changes something
        doubled = COSTS | {name: 2 * COSTS[name]}
        assert scale.predict(1_000, doubled) != scale.predict(1_000, COSTS), name


def test_the_scaling_page_has_the_current_tables() -> None:
    page = (ROOT / "docs/scaling.md").read_text()
    assert "\n".join(scale.prediction_table(scale.unit_costs())) in page
    assert "\n".join(scale.assumption_table()) in page
