"""Agreement of a judge's scores with a reference, bootstrap confidence intervals, and logistic regression.

The metrics of Self-Rewarding section 3.1 and Meta-Rewarding section 3.3: pairwise accuracy (a tie of the judge counts
one half, or is excluded), exact match, Spearman and Kendall correlation. An undefined metric is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EQUAL = 1e-9  # scores closer than this are tied
ROUNDS = 10_000  # of the bootstrap, unless a caller says otherwise
_CHUNK = 1_000_000  # bootstrap draws held in memory at once
_Z = 1.959964  # 95 % of a normal distribution lies within so many standard deviations
_MAX_STEPS = 100
_GRADIENT_TOLERANCE = 1e-10  # largest gradient component at the optimum, per unit of weight
_LOSS_TOLERANCE = 1e-12  # a step may raise the loss by rounding, relative to 1 + |loss|
_MIN_STEP_SIZE = 1e-6


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return fmean(values) if values else None


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with average ranks for ties; None for fewer than 2 values or a constant side."""
    from scipy.stats import rankdata  # scipy.stats takes half a second

    first, second = _paired(a, b)
    if not (_varies(first) and _varies(second)):
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def spearman_of_samples(a: Sequence[float], b: Sequence[float], times_BN: Array) -> Array:
    """`spearman` of each of B samples, in which the pair n is ``times_BN[b, n]`` times; NaN where it is undefined."""
    first_BN, second_BN = (_centred_ranks(values, times_BN) for values in _paired(a, b))
    products_B, first_B, second_B = (
        (times_BN * each_BN).sum(axis=1) for each_BN in (first_BN * second_BN, first_BN**2, second_BN**2)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 where a side is constant
        return np.asarray(products_B / np.sqrt(first_B * second_B))


def _centred_ranks(values_N: Array, times_BN: Array) -> Array:
    """The average ranks in each sample, less their mean; all 0 where the sample doesn't vary."""
    values_U, which_N = np.unique(values_N, return_inverse=True)
    starts_U = np.searchsorted(np.sort(which_N), np.arange(len(values_U)))
    times_BU = np.add.reduceat(times_BN[:, np.argsort(which_N)], starts_U, axis=1)
    ranks_BU = times_BU.cumsum(axis=1) - (times_BU - 1) / 2 - (times_BN.sum(axis=1, keepdims=True) + 1) / 2
    drawn_BU = times_BU > 0
    highest_B = np.where(drawn_BU, values_U, -np.inf).max(axis=1)
    ranks_BU[highest_B - np.where(drawn_BU, values_U, np.inf).min(axis=1) <= EQUAL] = 0.0
    return np.asarray(ranks_BU[:, which_N])


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b; None for fewer than 2 values or a constant side."""
    from scipy.stats import kendalltau

    first, second = _paired(a, b)
    return float(kendalltau(first, second).statistic) if _varies(first) and _varies(second) else None


def same_order(predicted: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether ``predicted`` orders every pair strictly as ``reference`` does; a tie on either side is no match."""
    predicted_signs, reference_signs = _differences(*_paired(predicted, reference))
    return bool((predicted_signs * reference_signs > 0).all())


@dataclass(frozen=True, slots=True)
class PairwiseAccuracy:
    """Counts of the pairs that the reference decides, by the judge's order; ``+`` pools the pairs of two counts."""

    right: int
    tied: int
    wrong: int

    def __add__(self, other: PairwiseAccuracy) -> PairwiseAccuracy:
        return PairwiseAccuracy(self.right + other.right, self.tied + other.tied, self.wrong + other.wrong)

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        return self.right + self.tied + self.wrong

    @property
    def accuracy(self) -> float | None:
        """The share ordered correctly, a tie of the judge counting one half; None without pairs."""
        return (self.right + self.tied / 2) / self.pairs if self.pairs else None

    @property
    def accuracy_without_ties(self) -> float | None:
        """The share ordered correctly among the pairs that the judge doesn't tie; None without such pairs."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None


def pairwise_accuracy(predicted: Sequence[float], reference: Sequence[float]) -> PairwiseAccuracy:
    """The counts over all pairs of values; pairs that the reference ties are excluded."""
    predicted_signs, reference_signs = _differences(*_paired(predicted, reference))
    decided = reference_signs != 0
    product = (predicted_signs * reference_signs)[decided]
    return PairwiseAccuracy(int((product > 0).sum()), int((product == 0).sum()), int((product < 0).sum()))


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, share or ratio of ``n`` values with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def resample_counts(size: int, rounds: int, seed: int) -> Iterator[Array]:
    """How often each of ``size`` items is drawn in each bootstrap round: arrays of shape (B, size), B rounds at once.

    The B of all arrays add up to ``rounds``; no array has more than a million entries unless one round has.
    """
    generator, at_once = np.random.default_rng(seed), max(1, _CHUNK // max(1, size))
    for start in range(0, rounds, at_once):
        count = min(at_once, rounds - start)
        drawn = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(np.float64)


def mean_interval(
    values: Sequence[float], groups: Sequence[object] | None = None, seed: int = 0, draws: int = ROUNDS
) -> Interval:
    """The mean of ``values`` with a 95 % percentile bootstrap interval, the same for the same ``seed``.

    ``groups`` (one label per value, such as the prompt id) makes it a cluster bootstrap: whole groups are resampled,
    because values of one prompt are not independent; every value still has the same weight. Raises `ValueError` without
    values, when one of them is not finite, or when ``groups`` has another length.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("mean_interval needs at least one value, all of them finite")
    sums_G, counts_G = array, np.ones_like(array)
    if groups is not None:
        if len(groups) != array.size:
            raise ValueError(f"{array.size} values but {len(groups)} group labels")
        numbers: dict[object, int] = {}  # of the groups, in the order in which they appear
        groups_N = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
        sums_G, counts_G = (np.bincount(groups_N, weights=weights).astype(np.float64) for weights in (array, None))
    means = [(times_BG @ sums_G) / (times_BG @ counts_G) for times_BG in resample_counts(len(sums_G), draws, seed)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    mean = float(sums_G.sum() / counts_G.sum())
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), int(array.size))


def share_interval(flags: Sequence[bool], groups: Sequence[object]) -> Interval:
    """The share of true ``flags`` with Wilson's 95 % interval; ``groups``: one label per flag, such as the prompt id.

    The interval takes n / D observations, where D is the design effect: the variance of the share with groups as
    clusters, divided by that of independent flags. Where all flags are equal each group counts as one observation.
    Raises `ValueError` without flags.
    """
    if not flags:
        raise ValueError("share_interval needs at least one flag")
    y_N = np.array(flags, dtype=np.float64)
    counts_G, sums_G = group_sums(np.stack([np.ones_like(y_N), y_N], axis=1), groups).T
    n, size, p = y_N.size, counts_G.size, float(y_N.mean())
    observations = float(size)
    if 0 < p < 1 and size > 1:
        clustered = float(((sums_G - p * counts_G) ** 2).sum()) / n**2 * size / (size - 1)
        observations = max(1.0, min(float(n), p * (1 - p) / clustered)) if clustered > 0 else float(n)
    shrink = 1 + _Z**2 / observations
    centre = (p + _Z**2 / (2 * observations)) / shrink
    half = _Z / shrink * math.sqrt(p * (1 - p) / observations + _Z**2 / (4 * observations**2))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def group_sums(terms_NF: Array, groups: Sequence[object]) -> Array:
    """The sums of the rows of each group, of shape (G, F), in the order in which the groups appear."""
    numbers: dict[object, int] = {}
    groups_N = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums_GF = np.zeros((len(numbers), terms_NF.shape[1]))
    np.add.at(sums_GF, groups_N, terms_NF)
    return sums_GF


def resampled_interval(
    totals_GF: Array, statistic: Callable[[Array], Array], n: int, seed: int = 0, draws: int = 2000
) -> Interval | None:
    """``statistic`` of the summed totals of G groups with a 95 % percentile bootstrap interval over the groups.

    ``statistic`` maps sums of shape (D, F) to D values, one per draw; draws for which it is undefined are left out.
    None if it is undefined for the data. ``n`` is what the result counts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(totals_GF.sum(axis=0, keepdims=True))[0])
        drawn = [statistic(times_BG @ totals_GF) for times_BG in resample_counts(len(totals_GF), draws, seed)]
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if not math.isfinite(value) or not values.size:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def _paired(a: Sequence[float], b: Sequence[float]) -> tuple[Array, Array]:
    if len(a) != len(b):
        raise ValueError(f"both sequences need the same length, not {len(a)} with {len(b)} values")
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)


def _varies(values: Array) -> bool:
    return values.size > 1 and bool(np.ptp(values) > EQUAL)


def _differences(first: Array, second: Array) -> tuple[Array, Array]:
    """The sign (-1, 0, 1) of every pair's difference, on both sides, each pair once."""
    upper = np.triu_indices(first.size, k=1)
    differences = (values[upper[0]] - values[upper[1]] for values in (first, second))
    one, other = (np.where(np.abs(each) <= EQUAL, 0.0, np.sign(each)) for each in differences)
    return one, other


# Ridge-penalised logistic regression to its exact optimum by damped Newton steps: the one solver behind Elo ratings and
# the length- and style-controlled win rates.


class Loss(Protocol):
    """A convex loss of coefficients b of shape (F,)."""

    def value(self, b_F: Array) -> float:
        """The loss."""
        ...

    def gradient(self, b_F: Array) -> Array:
        """Of shape (F,)."""
        ...

    def hessian(self, b_F: Array) -> Array:
        """Of shape (F, F), positive definite."""
        ...


@dataclass(frozen=True, slots=True)
class Optimum:
    """Where the solver stopped: ``converged`` says whether the gradient vanished, ``steps`` counts Newton steps."""

    b_F: Array
    converged: bool
    steps: int


def minimize(loss: Loss, start_F: Array, weight: float, project: Callable[[Array], Array] | None = None) -> Optimum:
    """Newton's method with step halving. ``weight``, the total weight of the data, scales the gradient tolerance.

    ``project`` is applied after every step, to hold a quantity that the loss doesn't determine (such as the mean).
    """
    here = start_F
    tolerance = _GRADIENT_TOLERANCE * max(1.0, weight)
    for step in range(_MAX_STEPS):
        gradient = loss.gradient(here)
        if np.abs(gradient).max(initial=0.0) <= tolerance:
            return Optimum(here, True, step)
        direction = np.asarray(np.linalg.solve(loss.hessian(here), -gradient), dtype=np.float64)
        now, size = loss.value(here), 1.0
        ceiling = now + _LOSS_TOLERANCE * (1.0 + abs(now))
        while size > _MIN_STEP_SIZE and loss.value(here + size * direction) > ceiling:
            size /= 2
        here = here + size * direction
        here = here if project is None else project(here)
    return Optimum(here, False, _MAX_STEPS)


@dataclass(frozen=True, slots=True)
class _LogisticLoss:
    x_RF: Array
    y_R: Array
    weights_R: Array
    ridge_F: Array

    def value(self, b_F: Array) -> float:
        logits = self.x_RF @ b_F
        return float(self.weights_R @ (np.logaddexp(0.0, logits) - self.y_R * logits) + self.ridge_F @ b_F**2 / 2)

    def gradient(self, b_F: Array) -> Array:
        from scipy.special import expit  # takes a tenth of a second

        return self.ridge_F * b_F - self.x_RF.T @ (self.weights_R * (self.y_R - expit(self.x_RF @ b_F)))

    def hessian(self, b_F: Array) -> Array:
        from scipy.special import expit  # takes a tenth of a second

        p_R = expit(self.x_RF @ b_F)
        return self.x_RF.T @ (self.x_RF * (self.weights_R * p_R * (1 - p_R))[:, None]) + np.diag(self.ridge_F)


def fit_logistic(x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array, start_F: Array | None = None) -> Array:
    """Logistic regression on soft targets y in [0, 1] with weights w and ridges r; the coefficients b, of shape (F,).

    They minimise, over R rows of F features,

        sum_i w_i (log(1 + exp(x_i b)) - y_i x_i b)  +  1/2 sum_j r_j b_j^2

    A soft target y with weight w equals a row of label 1 with weight w y and one of label 0 with weight w (1 - y). With
    every ridge above 0 the optimum is finite and unique, also for separable data. Raises `ValueError` without
    convergence.
    """
    start = np.zeros(x_RF.shape[1]) if start_F is None else start_F
    found = minimize(_LogisticLoss(x_RF, y_R, weights_R, ridge_F), start, float(weights_R.sum()))
    if not found.converged:
        raise ValueError("the regression did not converge: give every feature a ridge above 0")
    return found.b_F
