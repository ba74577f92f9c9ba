import warnings

import numpy as np
import pytest
from builders import scores_on_scale
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from metareward.method.stats import (
    PairwiseAccuracy,
    kendall,
    mean_interval,
    mean_or_none,
    pairwise_accuracy,
    resample_counts,
    same_order,
    spearman,
    spearman_of_samples,
)

two_sides = st.lists(st.tuples(scores_on_scale, scores_on_scale), max_size=12)


def sides(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


@given(two_sides)
def test_rank_correlations_agree_with_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = sides(pairs)
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert spearman(a, b) is None
        assert kendall(a, b) is None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)


@given(st.lists(st.tuples(scores_on_scale, scores_on_scale, st.integers(0, 3)), min_size=1, max_size=12))
def test_rank_correlations_of_samples_are_those_of_each_sample(drawn: list[tuple[float, float, int]]) -> None:
    times_BN = np.array([[times for *_, times in drawn], [1] * len(drawn), [0] * len(drawn)], dtype=np.float64)
    found = spearman_of_samples(*sides([(a, b) for a, b, _ in drawn]), times_BN)
    for times_N, one in zip(times_BN, found, strict=True):
        sample = [(a, b) for (a, b, _), times in zip(drawn, times_N, strict=True) for _ in range(int(times))]
        due = spearman(*sides(sample))
        assert np.isnan(one) if due is None else one == pytest.approx(due, abs=1e-12)


def test_rank_correlations_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(np.sqrt(3) / 2)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(6))
    assert spearman([5, 5, 5], [1, 2, 3]) is None
    assert spearman([], []) is None


def test_rank_correlations_of_two_values_and_of_constant_sides() -> None:
    assert spearman([1, 2], [4, 9]) == pytest.approx(1)
    assert kendall([1, 2], [4, 9]) == pytest.approx(1)
    assert kendall([5, 5, 5], [1, 2, 3]) is None
    assert kendall([1, 2, 3], [5, 5, 5]) is None
    assert spearman([0.0, 1e-9], [1, 2]) is None  # the first side is constant but for rounding
    assert spearman([0.0, 2e-9], [1, 2]) == pytest.approx(1)


def test_the_mean_of_nothing_is_none() -> None:
    assert mean_or_none([]) is None
    assert mean_or_none([1.0, 4.0]) == 2.5


def test_pairwise_accuracy_counts_ties_one_half_and_skips_reference_ties() -> None:
    counted = pairwise_accuracy([3, 3, 1, 5], [2, 1, 1, 3])
    # (0,1) tied; (0,2) right; (0,3) right; (1,2) tied by the reference; (1,3) right; (2,3) right
    assert counted == PairwiseAccuracy(right=4, tied=1, wrong=0)
    assert counted.accuracy == pytest.approx(0.9)
    assert counted.accuracy_without_ties == 1.0
    pooled = counted + pairwise_accuracy([1, 2], [2, 1])
    assert (pooled.pairs, pooled.accuracy) == (6, 0.75)
    assert PairwiseAccuracy(1, 2, 3) + PairwiseAccuracy(10, 20, 30) == PairwiseAccuracy(11, 22, 33)


def test_pairwise_accuracy_without_pairs_is_none() -> None:
    assert pairwise_accuracy([1], [1]).accuracy is None
    assert pairwise_accuracy([1, 1], [1, 2]).accuracy_without_ties is None
    assert pairwise_accuracy([1, 1], [1, 2]).accuracy == 0.5


@given(two_sides)
def test_pairwise_accuracy_agrees_with_counting(pairs: list[tuple[float, float]]) -> None:
    a, b = sides(pairs)
    right = tied = wrong = 0
    for i in range(len(a)):
        for j in range(i):
            if b[i] != b[j]:
                product = (a[i] - a[j]) * (b[i] - b[j])
                right, tied, wrong = right + (product > 0), tied + (product == 0), wrong + (product < 0)
    assert pairwise_accuracy(a, b) == PairwiseAccuracy(right, tied, wrong)
    assert same_order(a, b) == (right == len(a) * (len(a) - 1) // 2)


def test_same_order_is_strict() -> None:
    assert same_order([1, 2.5, 3], [-2, 0, 9])
    assert not same_order([1, 1, 3], [1, 2, 3])
    assert not same_order([1, 2, 3], [1, 2, 2])
    assert not same_order([3, 2, 1], [2, 2, 1])


def test_sequences_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 with 1"):
        spearman([1, 2], [1])


def test_the_interval_is_deterministic() -> None:
    values = np.random.default_rng(3).normal(2, 1, 60).tolist()
    one = mean_interval(values, seed=5)
    assert one == mean_interval(values, seed=5)
    assert one != mean_interval(values, seed=6)
    assert one.low < one.mean < one.high
    assert one.n == 60
    assert one.mean == pytest.approx(sum(values) / 60)


def test_the_interval_is_that_of_seed_0_unless_told() -> None:
    values = np.random.default_rng(4).normal(size=30).tolist()
    assert mean_interval(values) == mean_interval(values, seed=0) != mean_interval(values, seed=1)


def test_resampling_in_parts_makes_every_round() -> None:
    parts = list(resample_counts(300_000, rounds=7, seed=0))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all((part.sum(axis=1) == 300_000).all() and part.dtype == np.float64 for part in parts)


def test_the_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(10, 2, 400).tolist()
    made = mean_interval(values, seed=1)
    assert (made.high - made.low) / 2 == pytest.approx(1.96 * np.std(values) / 20, rel=0.08)


def test_values_of_one_group_are_not_independent() -> None:
    base = np.random.default_rng(0).normal(0, 1, 50)
    values, groups = np.repeat(base, 8).tolist(), np.repeat(np.arange(50), 8).tolist()
    alone, grouped = mean_interval(values), mean_interval(values, groups)
    assert grouped.mean == pytest.approx(alone.mean)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_groups_of_different_size_weigh_by_their_values() -> None:
    made = mean_interval([1, 1, 1, 5], ["a", "a", "a", "b"])
    assert made.mean == 2.0
    assert (made.low, made.high) == (1.0, 5.0)


def test_a_single_group_has_an_interval_of_width_0() -> None:
    made = mean_interval([1, 3], ["a", "a"])
    assert (made.low, made.mean, made.high) == (2.0, 2.0, 2.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(0, 2**40))
def test_the_interval_contains_the_mean(values: list[float], seed: int) -> None:
    made = mean_interval(values, seed=seed, draws=50)
    assert made.low <= made.mean <= made.high


@pytest.mark.parametrize(("values", "groups"), [([], None), ([float("nan")], None), ([1.0, 2.0], ["a"])])
def test_invalid_values_and_groups_are_refused(values: list[float], groups: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"value"):
        mean_interval(values, groups)
