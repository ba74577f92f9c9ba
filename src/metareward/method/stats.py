"""Agreement of a judge's scores with a reference, and bootstrap confidence intervals.

The metrics of Self-Rewarding section 3.1 and Meta-Rewarding section 3.3: pairwise accuracy (a tie of the judge counts
one half, or is excluded), exact match, Spearman and Kendall correlation. An undefined metric is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EQUAL = 1e-9  # scores closer than this are tied
_CHUNK = 1_000_000  # bootstrap draws held in memory at once


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return fmean(values) if values else None


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with average ranks for ties; None for fewer than 2 values or a constant side."""
    from scipy.stats import rankdata  # scipy.stats takes half a second

    first, second = _paired(a, b)
    if not (_varies(first) and _varies(second)):
        return None
    ranks = np.corrcoef(rankdata(first), rankdata(second))
    return float(np.clip(ranks[0, 1], -1.0, 1.0))


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b; None for fewer than 2 values or a constant side."""
    from scipy.stats import kendalltau

    first, second = _paired(a, b)
    return float(kendalltau(first, second).statistic) if _varies(first) and _varies(second) else None


def exact_share(predicted: Sequence[float], reference: Sequence[float]) -> float | None:
    """The share of values equal to their reference; None when there are no values."""
    first, second = _paired(predicted, reference)
    return float((np.abs(first - second) <= EQUAL).mean()) if first.size else None


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
    """A mean of ``n`` values with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(
    values: Sequence[float], groups: Sequence[object] | None = None, seed: int = 0, draws: int = 2000
) -> Interval:
    """The mean of ``values`` with a 95 % percentile bootstrap interval, the same for the same ``seed``.

    ``groups`` (one label per value, such as the prompt id) makes it a cluster bootstrap: whole groups are resampled,
    because values of one prompt are not independent; every value still has the same weight. Raises `ValueError` without
    values, when one of them is not finite, or when ``groups`` has another length.
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
        raise ValueError(f"both sequences need the same length, not {len(a)} with {len(b)} values")
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)


def _varies(values: Array) -> bool:
    return values.size > 1 and bool(np.ptp(values) > EQUAL)


def _differences(first: Array, second: Array) -> tuple[Array, Array]:
    """The sign (-1, 0, 1) of every pair's difference, on both sides, each pair once."""
    upper = np.triu_indices(first.size, k=1)
    return _signs(first, upper), _signs(second, upper)


def _signs(values: Array, upper: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Array:
    difference = values[upper[0]] - values[upper[1]]
    return np.asarray(np.where(np.abs(difference) <= EQUAL, 0.0, np.sign(difference)))
