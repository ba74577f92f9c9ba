"""How well a judge's scores agree with a reference: order, equality, and how sure the figures are.

The measures are those of Self-Rewarding section 3.1 and Meta-Rewarding section 3.3: share of pairs ordered as the
reference orders them (a tie of the judge counts one half, or is left out), exact matches, Spearman's and Kendall's
correlations. A measure that isn't defined, for one because all scores are equal, is None and never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

Array = NDArray[np.float64]

_EQUAL = 1e-9  # scores closer than this are tied
_CHUNK = 1_000_000  # bootstrap draws held in memory at once


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with average ranks for ties; None for fewer than 2 values or a constant side."""
    first, second = _paired(a, b)
    if not (_varies(first) and _varies(second)):
        return None
    ranks = np.corrcoef(rankdata(first), rankdata(second))
    return float(np.clip(ranks[0, 1], -1.0, 1.0))


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b; None for fewer than 2 values or a constant side."""
    first, second = _paired(a, b)
    return float(kendalltau(first, second).statistic) if _varies(first) and _varies(second) else None


def exact_share(predicted: Sequence[float], reference: Sequence[float]) -> float | None:
    """The share of values equal to their reference; None when there are no values."""
    first, second = _paired(predicted, reference)
    return float((np.abs(first - second) <= _EQUAL).mean()) if first.size else None


def same_order(predicted: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether ``predicted`` orders every pair strictly as ``reference`` does; a tie on either side is no match."""
    gained, wanted = _differences(*_paired(predicted, reference))
    return bool((gained * wanted > 0).all())


@dataclass(frozen=True, slots=True)
class PairwiseAccuracy:
    """Pairs that the reference decides, by what the judge makes of them; add two to pool their pairs."""

    right: int
    tied: int
    wrong: int

    def __add__(self, other: PairwiseAccuracy) -> PairwiseAccuracy:
        return PairwiseAccuracy(self.right + other.right, self.tied + other.tied, self.wrong + other.wrong)

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.right + self.tied + self.wrong

    @property
    def accuracy(self) -> float | None:
        """The share ordered right, with one half for a tie of the judge; None without pairs."""
        return (self.right + self.tied / 2) / self.pairs if self.pairs else None

    @property
    def accuracy_without_ties(self) -> float | None:
        """The share ordered right among the pairs that the judge decides; None without such pairs."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None


def pairwise_accuracy(predicted: Sequence[float], reference: Sequence[float]) -> PairwiseAccuracy:
    """Every pair of values compared; a pair that the reference ties has no right order and is left out."""
    gained, wanted = _differences(*_paired(predicted, reference))
    decided = wanted != 0
    product = (gained * wanted)[decided]
    return PairwiseAccuracy(int((product > 0).sum()), int((product == 0).sum()), int((product < 0).sum()))


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` values with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(
    values: Sequence[float], groups: Sequence[object] | None = None, seed: int = 0, draws: int = 2000
) -> Interval:
    """The mean of ``values`` with a 95 % percentile bootstrap interval, the same for the same ``seed``.

    With ``groups`` (one label per value, such as the prompt) whole groups are drawn, because values of one prompt are
    not independent of each other; every value still weighs the same. Raises `ValueError` without values, when one of
    them is not finite, or when ``groups`` has another length.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("mean_interval needs at least one value, all of them finite")
    sums_G, counts_G = _by_group(array, groups)
    means = _resampled(sums_G, counts_G, np.random.default_rng(seed), draws)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(sums_G.sum() / counts_G.sum())
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), int(array.size))


def _by_group(values: Array, groups: Sequence[object] | None) -> tuple[Array, Array]:
    """The sum and the number of values of each group, in the order in which the groups appear."""
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != values.size:
        raise ValueError(f"{values.size} values but {len(groups)} group labels")
    place: dict[object, int] = {}
    places = np.array([place.setdefault(group, len(place)) for group in groups])
    return np.bincount(places, weights=values).astype(np.float64), np.bincount(places).astype(np.float64)


def _resampled(sums_G: Array, counts_G: Array, generator: np.random.Generator, draws: int) -> Array:
    """The means of ``draws`` resamples of the groups; in chunks, to bound the memory."""
    size = len(sums_G)
    rows = max(1, _CHUNK // size)
    means: list[Array] = []
    for start in range(0, draws, rows):
        drawn = generator.integers(size, size=(min(rows, draws - start), size))
        means.append(sums_G[drawn].sum(axis=1) / counts_G[drawn].sum(axis=1))
    return np.concatenate(means)


def _paired(a: Sequence[float], b: Sequence[float]) -> tuple[Array, Array]:
    if len(a) != len(b):
        raise ValueError(f"two sides of the same length are compared, not {len(a)} with {len(b)} values")
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)


def _varies(values: Array) -> bool:
    return values.size > 1 and bool(np.ptp(values) > _EQUAL)


def _differences(first: Array, second: Array) -> tuple[Array, Array]:
    """The sign (-1, 0, 1) of every pair's difference, on both sides, each pair once."""
    upper = np.triu_indices(first.size, k=1)
    return _signs(first, upper), _signs(second, upper)


def _signs(values: Array, upper: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Array:
    difference = values[upper[0]] - values[upper[1]]
    return np.asarray(np.where(np.abs(difference) <= _EQUAL, 0.0, np.sign(difference)))


# --- Logistic regression with weights, soft targets in [0, 1] and a ridge, to its exact optimum by Newton's method.
#
# Minimises over b:   sum_i w_i (log(1 + exp(x_i b)) - y_i x_i b)  +  1/2 sum_j r_j b_j^2
#
# A soft target y with weight w stands for a row of label 1 with weight w y and one of label 0 with weight w (1 - y).
# With
# every r_j > 0 the optimum is finite and unique for any data, also where one side always wins.


_STEPS = 100
_ENOUGH = 1e-10  # largest component of the gradient, per unit of weight


def fit(x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array, start_F: Array | None = None) -> Array:
    """The coefficients, of shape (F,), for R rows of F features. Raises `ValueError` when no optimum was reached."""
    found = np.zeros(x_RF.shape[1]) if start_F is None else start_F
    enough = _ENOUGH * max(1.0, float(weights_R.sum()))
    for _ in range(_STEPS):
        chance = expit(x_RF @ found)
        gradient = x_RF.T @ (weights_R * (y_R - chance)) - ridge_F * found
        if np.abs(gradient).max(initial=0.0) <= enough:
            return found
        curvature = x_RF.T @ (x_RF * (weights_R * chance * (1 - chance))[:, None]) + np.diag(ridge_F)
        direction = np.linalg.solve(curvature, gradient)
        found = _downhill(found, np.asarray(direction, dtype=np.float64), x_RF, y_R, weights_R, ridge_F)
    raise ValueError("the regression did not settle: give its features a ridge")


def _downhill(here: Array, direction: Array, x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array) -> Array:
    """The Newton step, or as much of it as doesn't raise the loss (beyond rounding)."""
    now = _loss(here, x_RF, y_R, weights_R, ridge_F)
    ceiling = now + 1e-12 * (1.0 + abs(now))
    scale = 1.0
    while scale > 1e-6 and _loss(here + scale * direction, x_RF, y_R, weights_R, ridge_F) > ceiling:
        scale /= 2
    return here + scale * direction


def _loss(b_F: Array, x_RF: Array, y_R: Array, weights_R: Array, ridge_F: Array) -> float:
    margins = x_RF @ b_F
    return float(weights_R @ (np.logaddexp(0.0, margins) - y_R * margins) + ridge_F @ b_F**2 / 2)
