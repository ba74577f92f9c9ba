"""Paired differences: coverage of the intervals, power, and prompts saved, on made-up models of known difference."""

from __future__ import annotations

from statistics import mean, variance

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_rel

from metareward.method.paired import holm, paired_difference

DRAWS = 2000


def models(generator: np.random.Generator, prompts: int, difference: float, share: float = 0.6) -> np.ndarray:
    """Values of two models, (2, prompts): ``share`` of the variance is the prompt's, the same for both."""
    hard = generator.normal(0, share**0.5, prompts)
    own = generator.normal(0, (1 - share) ** 0.5, (2, prompts))
    return np.asarray(hard + own + np.array([[0.0], [difference]]))


def test_it_is_the_paired_t_test_of_scipy() -> None:
    a, b = models(np.random.default_rng(1), 40, 0.4)
    found, theirs = paired_difference(a[None], b[None]), ttest_rel(b, a)
    interval = theirs.confidence_interval(0.95)
    assert (found.difference, found.p_value) == pytest.approx((float(np.mean(b - a)), float(theirs.pvalue)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.a_better + found.equal + found.b_better, found.n_prompts) == (40, 40)


@pytest.mark.parametrize("kind", ["normal", "right or wrong", "skewed"])
def test_intervals_cover_at_95_percent(kind: str) -> None:
    generator, prompts, covered, p_below = np.random.default_rng(2), 100, 0, 0
    for _ in range(DRAWS):
        if kind == "normal":
            (a, b), truth = models(generator, prompts, 0.3), 0.3
        elif kind == "right or wrong":
            chance = generator.uniform(0.1, 0.8, prompts)
            a, b = (generator.uniform(size=prompts) < chance + lift for lift in (0, 0.1))
            truth = 0.1
        else:
            a, b = (generator.exponential(1.0, prompts) ** 1.5 for _ in range(2))
            truth = 0.0
        found = paired_difference(np.array([a], dtype=float), np.array([b], dtype=float))
        assert found.low is not None and found.high is not None and found.p_value is not None
        covered += found.low <= truth <= found.high
        p_below += found.p_value < 0.05 if truth == 0 else 0
    assert 0.935 <= covered / DRAWS <= 0.965  # three standard errors of 2,000 draws
    assert p_below / DRAWS < 0.065


def seeds_of(generator: np.random.Generator, kind: str, seeds: int, prompts: int = 60) -> tuple[np.ndarray, ...]:
    """Values of two models (seeds, prompts), whose seeds differ by 0.3 standard deviations or 8 points; the truth."""
    shift_a, shift_b = generator.normal(0, 0.3, (2, seeds, 1))
    if kind == "right or wrong":
        chance, moved = (
            generator.uniform(0.2, 0.7, prompts),
            (np.clip(each, -0.6, 0.6) * 0.27 for each in (shift_a, shift_b)),
        )
        a, b = (generator.uniform(size=(seeds, prompts)) < chance + each for each in moved)
        return np.asarray(a, float), np.asarray(b, float), np.array(0.0)
    if kind == "skewed":
        a, b = (generator.exponential(1, prompts) ** 1.5 + generator.exponential(1, (seeds, prompts)) for _ in "ab")
        return a + shift_a, b + shift_b, np.array(0.0)
    a, b = models(generator, prompts, 0.5)
    noise = generator.normal(0, 0.5, (2, seeds, prompts))
    one_model = 0.1 if kind == "one model's seeds alike" else 1.0
    return a + one_model * shift_a + noise[0], b + shift_b + noise[1], np.array(0.5)


def coverage(kind: str, seeds: int, draws: int, first_only: bool = False) -> float:
    generator, covered = np.random.default_rng(3), 0.0
    for _ in range(draws):
        a, b, truth = seeds_of(generator, kind, seeds)
        found = paired_difference(a[:1], b[:1]) if first_only else paired_difference(a, b)
        assert found.low is not None and found.high is not None
        covered += float(found.low <= truth <= found.high)
    return covered / draws


def test_intervals_cover_with_three_seeds() -> None:
    """Seeds differ by 0.3, so that an interval over prompts alone covers far less."""
    assert 0.92 <= coverage("normal", 3, 300) <= 0.98
    assert coverage("normal", 3, 300, first_only=True) < 0.75


KINDS = ("normal", "right or wrong", "skewed", "one model's seeds alike")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_at_95_percent_with_few_seeds(seeds: int) -> None:
    covered = [coverage(kind, seeds, DRAWS) for kind in KINDS]
    assert 0.94 <= sum(covered) / len(covered) <= 0.96
    assert min(covered) > 0.92 and max(covered) < 0.975


def test_seeds_that_are_alike_change_nothing() -> None:
    """The same values for every seed give the paired t-test of one seed."""
    a, b = models(np.random.default_rng(8), 50, 0.3)
    one, three = paired_difference(a[None], b[None]), paired_difference(np.tile(a, (3, 1)), np.tile(b, (3, 1)))
    assert (three.low, three.high, three.p_value) == pytest.approx((one.low, one.high, one.p_value))
    assert (one.n_seeds, three.n_seeds) == ((1, 1), (3, 3))
    moved = np.tile(a, (3, 1)) + np.array([[-1.0], [0.0], [1.0]])
    wider = paired_difference(moved, np.tile(b, (3, 1)))
    assert wider.difference == pytest.approx(one.difference) and (wider.low or 0) < (one.low or 0) - 1


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_pairing_saves_the_prompts_share_of_the_variance(share: float) -> None:
    """var d = 2 (1 - share), var a + var b = 2: a paired comparison needs 1 - share of an unpaired one's prompts."""
    a, b = models(np.random.default_rng(4), 20_000, 0.1, share)
    assert paired_difference(a[None], b[None]).prompts_saved == pytest.approx(share, abs=0.03)


def test_the_detectable_difference_is_found_in_80_percent() -> None:
    generator, found, prompts = np.random.default_rng(5), 0, 100
    wanted = paired_difference(*(each[None] for each in models(generator, 200_000, 0.0))).detectable
    assert wanted is not None
    wanted *= (200_000 / prompts) ** 0.5
    for _ in range(DRAWS):
        a, b = models(generator, prompts, wanted)
        p_value = paired_difference(a[None], b[None]).p_value
        found += p_value is not None and p_value < 0.05
    assert 0.77 <= found / DRAWS <= 0.83


def test_edges() -> None:
    one = paired_difference(np.array([[1.0]]), np.array([[2.0]]))
    assert (one.difference, one.low, one.p_value, one.detectable) == (1.0, None, None, None)
    same = paired_difference(np.ones((1, 5)), np.ones((1, 5)))
    assert (same.difference, same.low, same.p_value, same.equal, same.prompts_saved) == (0.0, 0.0, 1.0, 5, None)
    always = paired_difference(np.zeros((1, 5)), np.ones((1, 5)))
    assert (always.difference, always.low, always.p_value) == (1.0, None, 2**-4)  # no spread to go by: the sign test
    for a, b in (([[]], [[]]), ([[1.0]], [[1.0, 2.0]]), ([[np.nan]], [[1.0]])):
        with pytest.raises(ValueError, match="finite values on the same prompts"):
            paired_difference(np.array(a), np.array(b))


def test_small_samples_by_hand() -> None:
    a, b = np.array([[1.0, 2.0, 4.0]]), np.array([[2.0, 2.0, 7.0]])
    found = paired_difference(a, b)
    assert (found.mean_a, found.mean_b) == pytest.approx((7 / 3, 11 / 3))
    assert (found.a_better, found.equal, found.b_better) == (0, 1, 2)
    # The sample variances are 7/3, 25/3 and, of the differences 1, 0 and 3, 7/3.
    assert found.prompts_saved == pytest.approx(1 - (7 / 3) / (7 / 3 + 25 / 3))
    assert found.detectable == pytest.approx((4.3026527 + 0.8416212) * (7 / 9) ** 0.5)
    small = paired_difference(a[:, :2] / 10, b[:, :2] / 10)  # differences 0.1 and 0
    assert small.low is not None and small.low == pytest.approx(0.05 - 12.7062047 * 0.05)
    assert small.prompts_saved == pytest.approx(0.0)
    nearly = paired_difference(np.zeros((1, 3)), np.array([[1e-12, -1e-12, 1.0]]))
    assert (nearly.a_better, nearly.equal, nearly.b_better) == (0, 2, 1)


@pytest.mark.parametrize("swapped", [False, True])
def test_several_seeds_by_hand(swapped: bool) -> None:
    """One model with three seeds, the other with one: an analysis of variance of seeds and prompts, step by step."""
    one, several = [[1.0, 2.0, 4.0, 3.0]], [[2.0, 2.0, 7.0, 4.0], [5.0, 4.0, 9.0, 8.0], [1.0, 0.0, 5.0, 2.0]]
    over_prompts = [mean(values) for values in several]  # 3.75, 6.5 and 2
    over_seeds = [mean(values) for values in zip(*several, strict=True)]
    differences = [theirs - mine for theirs, mine in zip(over_seeds, one[0], strict=True)]
    rest = sum(
        (value - of_seed - of_prompt + mean(over_seeds)) ** 2
        for values, of_seed in zip(several, over_prompts, strict=True)
        for value, of_prompt in zip(values, over_seeds, strict=True)
    )
    of_prompts, of_seeds = variance(differences) / 4, variance(over_prompts) / 3
    squared = of_prompts + of_seeds - rest / (2 * 3) / (3 * 4)
    freedom = squared**2 / (of_prompts**2 / 3 + of_seeds**2 / 2)
    sides = (several, one) if swapped else (one, several)
    found = paired_difference(*(np.array(side) for side in sides))
    reach = float(student.ppf(0.975, freedom)) * squared**0.5
    difference = -mean(differences) if swapped else mean(differences)
    assert (found.difference, found.low, found.high) == pytest.approx(
        (difference, difference - reach, difference + reach)
    )


def test_swapping_the_models_swaps_everything() -> None:
    a, b = models(np.random.default_rng(6), 30, 0.2)
    here, there = paired_difference(a[None], b[None]), paired_difference(b[None], a[None])
    assert (here.difference, here.low, here.a_better) == (-there.difference, -(there.high or 0), there.b_better)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()
    assert holm([0.9, 0.6]) == (1.0, 1.0)
