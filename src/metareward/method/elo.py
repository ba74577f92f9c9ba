"""Battle matrix and Elo ratings of the disputed answer's judgments (Meta-Rewarding section 2.2).

With judgment m shown first and n second, r_mn is +1 if the meta-judge prefers m, -1 if it prefers n, else 0. The
position weights w1 = wins in second place / all wins and w2 = wins in first place / all wins correct position bias: the
battle matrix is ``B_mn = w1 [r_mn = +1] + w2 [r_nm = -1]``. The ratings e maximise the Bradley-Terry log likelihood,
with a ridge penalty, without which a judgment that never loses would have an infinite rating:

    sum_mn B_mn log sigmoid(e_m - e_n)  -  prior / 2 * sum_m e_m^2

**Fewer comparisons.** The papers compare every two judgments in both orders, 110 times for N = 11, and a pair uses the
first and the last. `Battles` compares those pairs that tell most about these two, as LUCB does (Kalyanakrishnan et al.,
"PAC Subset Selection in Stochastic Multi-armed Bandits", ICML 2012), here with the covariance of the ratings: the
judgment that is rated first with the one most likely to be above it, the one rated last with the one most likely to be
below it. A pair is always asked in both orders, so that a preference for a position adds nothing to either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metareward.method.stats import Optimum, minimize
from metareward.seeds import derive
from metareward.types import Dispute, MetaJudgment, Won

Array = NDArray[np.float64]

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class PositionWeights:
    """The weights of a win in ``first`` and in ``second`` place (they sum to 1), and the wins that they come from."""

    first: float
    second: float
    first_wins: int
    second_wins: int

    @classmethod
    def from_wins(cls, first: int, second: int) -> PositionWeights:
        """w1 and w2 for so many wins in first and in second place; one half each without any."""
        wins = first + second
        return cls(second / wins, first / wins, first, second) if wins else cls(0.5, 0.5, 0, 0)


def position_weights(metas: Iterable[MetaJudgment]) -> PositionWeights:
    """w1 and w2 from all comparisons in ``metas`` with a winner; one half each without any."""
    first = second = 0
    for meta in metas:
        if isinstance(meta.verdict, Won):
            first += meta.verdict.winner == meta.first
            second += meta.verdict.winner == meta.second
    return PositionWeights.from_wins(first, second)


def battle_matrix(dispute: Dispute, weights: PositionWeights) -> Array:
    """B of shape (M, M): entry (m, n) is the weight of m's wins over n, in the order of ``judgments_M``.

    Ties and verdicts without a winner add nothing. Raises `ValueError` when a verdict names a judgment that is not in
    ``judgments_M``.
    """
    place = {index: at for at, index in enumerate(dispute.judgments_M)}
    battles = np.zeros((len(place), len(place)))
    for meta in dispute.meta:
        if isinstance(meta.verdict, Won):
            winner = meta.verdict.winner
            if meta.first == meta.second or winner not in (meta.first, meta.second):
                raise ValueError(f"judgment {winner} can't win between judgments {meta.first} and {meta.second}")
            loser = meta.second if winner == meta.first else meta.first
            if winner not in place or loser not in place:
                raise ValueError(f"judgments {meta.first} and {meta.second} are compared, but not among {list(place)}")
            battles[place[winner], place[loser]] += weights.first if winner == meta.first else weights.second
    return battles


@dataclass(frozen=True, slots=True)
class Ratings:
    """Bradley-Terry ratings of M judgments in natural-log units, summing to 0, with 95 % intervals.

    The interval comes from the curvature at the optimum and takes each unit of battle weight as one independent trial.
    ``converged`` tells whether the gradient vanished; ``steps`` counts Newton steps.
    """

    values_M: tuple[float, ...]
    low_M: tuple[float, ...]
    high_M: tuple[float, ...]
    converged: bool
    steps: int


def fit_elo(battles_MM: Array, prior: float = 0.1) -> Ratings:
    """The ratings that best explain ``battles_MM``, of shape (M, M): entry (m, n) is what m's wins over n count.

    Raises `ValueError` for a matrix that isn't square, finite and non-negative, and with ``prior`` 0 when some
    judgments never lose, or never win, against the others, because then no finite optimum exists.
    """
    battles = np.array(battles_MM, dtype=np.float64)
    if battles.ndim != 2 or battles.shape[0] != battles.shape[1] or battles.shape[0] == 0:
        raise ValueError(f"battles must be a square matrix, not of shape {battles.shape}")
    if not np.isfinite(battles).all() or (battles < 0).any():
        raise ValueError("battles must be finite and not negative")
    if not 0 <= prior < np.inf:
        raise ValueError(f"prior must be 0 or more, not {prior}")
    if prior == 0 and not _strongly_connected(battles):
        raise ValueError("without a prior every judgment must win and lose, directly or over others: use prior > 0")
    found, covariance = _fit(battles, prior)
    ratings = found.b_F
    spread = _Z95 * np.sqrt(np.clip(np.diag(covariance), 0.0, None))
    low, high = ratings - spread, ratings + spread
    return Ratings(tuple(ratings.tolist()), tuple(low.tolist()), tuple(high.tolist()), found.converged, found.steps)


def rating_posterior(battles_MM: Array, prior: float) -> tuple[Array, Array]:
    """The ratings, of shape (M,), and their covariance, (M, M), of a battle matrix that `fit_elo` takes; prior > 0."""
    found, covariance = _fit(np.array(battles_MM, dtype=np.float64), prior)
    return found.b_F, covariance


def _fit(battles: Array, prior: float) -> tuple[Optimum, Array]:
    """The ratings, which sum to 0, and their covariance with that sum held."""
    np.fill_diagonal(battles, 0.0)
    loss, count = _BradleyTerryLoss(battles, prior), len(battles)
    found = minimize(loss, np.zeros(count), float(battles.sum()), project=lambda ratings: ratings - ratings.mean())
    centre = np.eye(count) - 1 / count
    return found, np.asarray(centre @ np.linalg.inv(loss.hessian(found.b_F)) @ centre)


def _strongly_connected(battles: Array) -> bool:
    from scipy.sparse.csgraph import connected_components  # takes a tenth of a second

    return bool(connected_components(battles > 0, connection="strong")[0] == 1)


@dataclass(frozen=True, slots=True)
class _BradleyTerryLoss:
    """Minus the penalised log likelihood: logistic regression on rating differences (`metareward.method.stats`)."""

    battles: Array
    prior: float

    def value(self, ratings: Array) -> float:
        from scipy.special import log_expit  # takes a tenth of a second

        margins = ratings[:, None] - ratings[None, :]
        return float(self.prior / 2 * ratings @ ratings - (self.battles * log_expit(margins)).sum())

    def gradient(self, ratings: Array) -> Array:
        from scipy.special import expit  # takes a tenth of a second

        unexpected = self.battles * expit(ratings[None, :] - ratings[:, None])  # wins beyond the expected ones
        return np.asarray(self.prior * ratings - (unexpected.sum(axis=1) - unexpected.sum(axis=0)))

    def hessian(self, ratings: Array) -> Array:
        """Plus 1/M in every cell, which makes it regular without a prior and leaves ratings that sum to 0 alone."""
        from scipy.special import expit  # takes a tenth of a second

        count = len(ratings)
        p = expit(ratings[:, None] - ratings[None, :])
        weights = (self.battles + self.battles.T) * p * (1 - p)
        return np.asarray(np.diag(weights.sum(axis=1)) - weights + self.prior * np.eye(count) + 1 / count)


@dataclass(frozen=True, slots=True)
class Battles:
    """How judgments are compared: at most ``budget`` pairs, ``batch`` of them at once, each in both orders.

    ``z``: how many standard deviations the first must be above, and the last below, all others to stop earlier.
    """

    budget: int
    batch: int = 2
    z: float = 2.0
    prior: float = 0.1

    def next_pairs(self, battles_MM: Array, asked_MM: Array, seed: int) -> tuple[tuple[int, int], ...]:
        """The next pairs (i, j) of M judgments to compare; empty when first and last are told apart or all is spent.

        ``battles_MM``: the battle matrix so far; ``asked_MM``: how often each two were compared, of shape (M, M),
        symmetric. In the beginning every judgment is compared once, two and two in an order by ``seed``.
        """
        count = len(battles_MM)
        spent = int(np.triu(asked_MM).sum())
        left = min(self.budget, count * (count - 1) // 2) - spent
        if left <= 0:
            return ()
        order = np.random.default_rng(derive(seed, "order")).permutation(count).tolist()
        if not spent:
            first = [(order[at], order[at + 1]) for at in range(0, count - 1, 2)]
            first += [(order[-1], order[0])] if count % 2 and count > 1 else []
            return tuple(first[:left])
        return self._by_confidence(battles_MM, asked_MM, order, spent, min(left, self.batch))

    def _by_confidence(
        self, battles_MM: Array, asked_MM: Array, order: Sequence[int], spent: int, most: int
    ) -> tuple[tuple[int, int], ...]:
        ratings, covariance = rating_posterior(battles_MM, self.prior)
        asked = np.array(asked_MM)
        chosen: list[tuple[int, int]] = []
        for turn in range(spent, spent + 2 * most):
            pair = self._most_telling(ratings * (-1) ** turn, covariance, asked, order)
            if pair is not None:
                chosen.append(pair)
                asked[pair] = asked[pair[::-1]] = 1
            if len(chosen) == most:
                break
        return tuple(chosen)

    def _most_telling(
        self, ratings: Array, covariance: Array, asked: Array, order: Sequence[int]
    ) -> tuple[int, int] | None:
        """The leader with its likeliest unmet rival; if it met all, the likeliest with its next unmet neighbour."""
        leader = max(order, key=lambda each: float(ratings[each]))

        def reach(other: int) -> float:
            apart = covariance[leader, leader] + covariance[other, other] - 2 * covariance[leader, other]
            return float(self.z * math.sqrt(max(0.0, apart)) - (ratings[leader] - ratings[other]))

        rivals = sorted((each for each in order if each != leader and reach(each) > 0), key=reach, reverse=True)
        unmet = {each: [other for other in order if other != each and not asked[each, other]] for each in rivals}
        for rival in rivals:
            if leader in unmet[rival]:
                return leader, rival
        for rival in rivals:
            if unmet[rival]:
                return rival, min(unmet[rival], key=lambda each: abs(float(ratings[each] - ratings[rival])))
        return None
