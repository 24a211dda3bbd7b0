"""Intervals compared with Student's t and a plain loop, and their coverage of the truth."""

import numpy as np
import pytest
from scipy import stats

from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.intervals import (
    Difference,
    Estimate,
    mean_difference,
    mean_estimate,
)

CLIPS = list("abcdefghijkl")


def by_clip(num_clips: int) -> Clusters:
    return Clusters.of([str(i) for i in range(num_clips)], [None] * num_clips, [None] * num_clips)


def test_with_equal_weights_the_interval_is_that_of_a_paired_t_test() -> None:
    adapter, base = np.random.default_rng(0).normal(size=(2, 12))
    found = mean_difference((adapter, base), (np.ones(12), np.ones(12)), by_clip(12))
    test = stats.ttest_rel(adapter, base)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.value == pytest.approx(adapter.mean() - base.mean())


def test_a_mean_is_the_total_sum_over_the_total_count() -> None:
    found = mean_estimate([10.0, 2.0], [10, 1], by_clip(2))
    assert found.value == pytest.approx(12 / 11)


def test_a_clip_with_several_rows_is_counted_once() -> None:
    clusters = Clusters.of(list("aabc"), [None] * 4, [None] * 4)
    found = mean_estimate([1, 2, 3, 4], [1, 1, 1, 1], clusters)
    assert (found.num_clips, found.num_clusters) == (3, 3)


def test_each_column_is_divided_by_its_own_count_and_then_weighted() -> None:
    # Text 6 / 3, codebook 8 / 4, codebook 3 / 1: 2 + (2 + 3) / 2.
    found = mean_estimate(
        [[4, 8, 1], [2, 0, 2]], [[1, 2, 0.5], [2, 2, 0.5]], by_clip(2), [1, 0.5, 0.5]
    )
    assert found.value == pytest.approx(4.5)


def test_a_column_with_weight_0_may_have_no_labels() -> None:
    found = mean_estimate([[1, 0], [3, 0], [2, 0]], [[1, 0], [1, 0], [1, 0]], by_clip(3), [1, 0])
    assert found.value == pytest.approx(2)
    assert found.low is not None


def test_the_jackknife_leaves_out_whole_clusters() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, 12).astype(float)
    sums = rng.normal(size=12) * counts
    speakers = list("aaabbccddeee")
    found = mean_estimate(sums, counts, Clusters.of(CLIPS, [None] * 12, speakers))

    mean = sums.sum() / counts.sum()
    squares, shares = 0.0, 0.0
    for speaker in "abcde":
        others = [i for i, name in enumerate(speakers) if name != speaker]
        own = sum(counts[i] for i, name in enumerate(speakers) if name == speaker)
        squares += (sum(sums[others]) / sum(counts[others]) - mean) ** 2
        shares += (own / counts.sum()) ** 2
    half = stats.t.ppf(0.975, 1 / shares - 1) * (squares * 4 / 5) ** 0.5
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    assert (found.num_clips, found.num_clusters) == (12, 5)


def test_the_degrees_of_freedom_follow_the_weights_of_the_columns() -> None:
    """The clips share the first column equally; the second is nearly all of the first clip."""
    sums, counts = [[1, 9], [2, 1], [6, 1]], [[1, 8], [1, 1], [1, 1]]
    found = mean_estimate(sums, counts, by_clip(3), [3, -1])
    shares = [0.75 / 3 + 0.25 * count / 10 for count in (8, 1, 1)]
    value = 3 * 9 / 3 - 11 / 10
    without = [3 * 8 / 2 - 2 / 2, 3 * 7 / 2 - 10 / 9, 3 * 3 / 2 - 10 / 9]
    error = (2 / 3 * sum((each - value) ** 2 for each in without)) ** 0.5
    half = stats.t.ppf(0.975, 1 / sum(share**2 for share in shares) - 1) * error
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == pytest.approx((value - half, value + half))


def test_equal_models_differ_by_zero_exactly() -> None:
    sums, counts = np.random.default_rng(2).gamma(2, size=(2, 9, 3))
    found = mean_difference((sums, sums), (counts, counts), by_clip(9), [1, 0.5, 0.5])
    assert found == Difference(value=0, low=0, high=0, num_clips=9, num_clusters=9, p_value=1)


def test_one_clip_has_no_interval() -> None:
    found = mean_estimate([3.0], [2], by_clip(1))
    assert (found.value, found.low, found.high) == (1.5, None, None)


def test_two_clips_give_an_interval_with_one_degree_of_freedom() -> None:
    """Of 0 and 1: half a unit off the mean, and 12.706 of them on each side."""
    found = mean_estimate([0.0, 1.0], [1, 1], by_clip(2))
    assert (found.low, found.high) == pytest.approx((0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2))


def test_a_column_with_labels_in_only_one_cluster_has_no_interval() -> None:
    found = mean_estimate([[1, 2], [1, 0]], [[1, 1], [1, 0]], by_clip(2), [1, 1])
    assert (found.value, found.low) == (3, None)


def test_a_clip_with_labels_for_only_one_model_is_counted() -> None:
    ones = np.ones(3)
    found = mean_difference((ones, ones), ([1, 1, 0], ones), by_clip(3))
    assert (found.num_clips, found.num_clusters) == (3, 3)


def test_clips_without_labels_are_not_counted() -> None:
    found = mean_estimate([1.0, 0, 2], [1, 0, 1], by_clip(3))
    assert (found.num_clips, found.num_clusters) == (2, 2)


@pytest.mark.parametrize(
    ("speakers", "recordings", "by", "num_clusters"),
    [
        ("aabbccddee", "1234567890", "speaker", 5),
        ("aabbccdddd", "1122334455", "recording", 5),  # four speakers are too few
        ("aabbccdddd", "1111222233", "clip", 10),
        ("abcdefghij", "1122334455", "recording", 5),
        ("aabbccddee", "1223344556", "speaker", 5),  # though recordings would do too
        ("abcdefghij", "1234567890", "clip", 10),
    ],
)
def test_clips_are_clustered_by_speaker_else_recording_else_clip(
    speakers: str, recordings: str, by: str, num_clusters: int
) -> None:
    clusters = Clusters.of(CLIPS[:10], list(recordings), list(speakers))
    assert (clusters.by, clusters.index.max() + 1) == (by, num_clusters)


def test_each_clip_of_an_unknown_speaker_is_its_own_cluster() -> None:
    clusters = Clusters.of(CLIPS[:6], [None] * 6, ["a", None, "a", None, "b", "c"])
    assert clusters.index.tolist() == [0, 1, 0, 2, 3, 4]


def test_a_clip_spoken_twice_is_one_cluster() -> None:
    clusters = Clusters.of(["a", "b", "a", "b"], [None] * 4, ["x"] * 4)
    assert (clusters.by, clusters.index.tolist()) == ("clip", [0, 1, 0, 1])


def test_twenty_equal_outcomes_still_have_an_interval() -> None:
    ones = np.ones(20)
    found = mean_difference((ones, ones), (ones, ones), by_clip(20), yes_or_no=True)
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-0.14, 0.14), abs=0.01)


def test_eight_of_eight_that_no_longer_stop_are_significant() -> None:
    ones = np.ones(8)
    found = mean_difference((0 * ones, ones), (ones, ones), by_clip(8), yes_or_no=True)
    assert (found.value, found.low) == (-1, -1)
    assert found.high == pytest.approx(-0.35, abs=0.01)
    assert found.p_value is not None
    assert 0 < found.p_value < 0.05


@pytest.mark.parametrize("skewness", [0, 1])
@pytest.mark.parametrize(
    ("num_clusters", "clips_per_cluster"),
    [(5, 1), (8, 1), (20, 1), (60, 1), (5, 6), (8, 3), (12, 5), (30, 4)],
)
def test_93_to_97_percent_of_intervals_cover_the_truth(
    num_clusters: int, clips_per_cluster: int, skewness: int
) -> None:
    """Clips of very different lengths; unequal clusters account for a third of the spread.

    Across all clusters that could be drawn the mean difference per label is -0.05 nats.
    """
    rng = np.random.default_rng(7)
    num_covered = 0
    for _ in range(1000):
        more = (clips_per_cluster - 1) * rng.gamma(4, 1 / 4, num_clusters)
        num_clips = 1 + rng.poisson(more)
        speakers = np.repeat(np.arange(num_clusters), num_clips)
        counts = rng.lognormal(4.5, 0.6, len(speakers)).round()
        spread = 0.1 * (
            (1 / 3) ** 0.5 * deviations(rng, skewness, num_clusters)[speakers]
            + (2 / 3) ** 0.5 * deviations(rng, skewness, len(speakers))
        )
        base = rng.gamma(20, 0.3, len(speakers)) * counts
        adapter = base + (spread - 0.05) * counts
        found = mean_difference(
            (adapter, base),
            (counts, counts),
            Clusters("speaker", speakers, np.arange(len(speakers))),
        )
        num_covered += covers(found, -0.05)
    assert 930 <= num_covered <= 970


def covers(found: Estimate, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def deviations(rng: np.random.Generator, skewness: int, size: int) -> np.ndarray:
    """Mean 0, variance 1."""
    if skewness == 0:
        return rng.normal(size=size)
    shape = 4 / skewness**2
    return (rng.gamma(shape, size=size) - shape) / shape**0.5


@pytest.mark.parametrize("num_prompts", [8, 20, 60])
@pytest.mark.parametrize(("base_rate", "both"), [(0.9, 0.8), (0.7, 0.5), (0.5, 0.4)])
def test_intervals_of_yes_or_no_outcomes_cover_the_truth(
    num_prompts: int, base_rate: float, both: float
) -> None:
    rng = np.random.default_rng(8)
    adapter_rate = both + (1 - base_rate) / 2
    neither = 1 - base_rate - adapter_rate + both
    probabilities = [both, base_rate - both, adapter_rate - both, neither]
    num_covered = 0
    ones = np.ones(num_prompts)
    for _ in range(1000):
        case = rng.choice(4, num_prompts, p=probabilities)
        base, adapter = np.isin(case, [0, 1]), np.isin(case, [0, 2])
        found = mean_difference((adapter, base), (ones, ones), by_clip(num_prompts), yes_or_no=True)
        num_covered += covers(found, adapter_rate - base_rate)
    # Few prompts give few different answers: the interval leans to the safe side.
    assert 930 <= num_covered <= (975 if num_prompts == 60 else 1000)


def test_the_interval_of_20_of_20_reaches_below_1() -> None:
    ones = np.ones(20)
    found = mean_estimate(ones, ones, by_clip(20), yes_or_no=True)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.86, abs=0.01)
    none = mean_estimate(0 * ones, ones, by_clip(20), yes_or_no=True)
    assert none.low == 0
    assert none.high == pytest.approx(0.14, abs=0.01)


def test_equal_outcomes_of_one_speaker_count_once() -> None:
    speakers = Clusters.of([str(n) for n in range(10)], ["x"] * 10, list("aabbccddee"))
    several = mean_estimate(np.ones(10), np.ones(10), speakers, yes_or_no=True)
    each = mean_estimate(np.ones(5), np.ones(5), by_clip(5), yes_or_no=True)
    assert several.num_clusters == each.num_clusters == 5
    assert several.low == pytest.approx(each.low)
