"""A win rate at equal lengths for prompt sets and baselines that the leaderboard's regression doesn't know.

The same idea as `metareward.benchmarks.lc_win_rate` with what is at hand, and another name, because without upstream's
two files the number is another one (over 57 leaderboard models 1.3 points off on average without the gamed rows, 6.9
without difficulties as well). Per model a logistic regression of the preference share on

    tanh(length difference / its standard deviation),  1,  and the instruction's difficulty where there is one

with a ridge of 0.01 on each coefficient. Difficulties come from a file, or, where several models were judged on the
same instructions, from one regression over all of them: a slope and a constant to a model, one coefficient to an
instruction with a ridge of 1. Swapping the two models turns a rate w into 100 - w.

The standard error is that of the fitted rate (sandwich covariance, delta method), the difficulties taken as given.
Upstream's is the spread of the predictions over instructions, which is 0 without difficulties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from metareward.benchmarks.alpaca_files import Annotation, Weights
from metareward.benchmarks.lc_win_rate import LengthControlled, is_baseline, predicted, scaled_difference
from metareward.benchmarks.soft_logistic import fit

Array = NDArray[np.float64]

RIDGE = 0.01
DIFFICULTY_RIDGE = 1.0


def length_adjusted(rows: Sequence[Annotation], difficulty_P: Array | None = None) -> LengthControlled | None:
    """The fit on P ``rows`` with a difficulty for each, or without that term. None without any preference."""
    judged = np.array([row.preference is not None for row in rows], dtype=bool)
    if not judged.any():
        return None
    hard_P = np.zeros(len(rows)) if difficulty_P is None else difficulty_P
    if is_baseline(rows):
        return predicted(Weights(0.0, 0.0, 0.0), hard_P)
    features = np.column_stack([scaled_difference(rows), hard_P, np.ones(len(rows))])[judged]
    shares = np.array([row.preference for row in rows if row.preference is not None])
    coefficients = fit(features, shares, np.ones(len(shares)), np.full(3, RIDGE))
    fitted = predicted(Weights(*map(float, coefficients)), hard_P)
    return replace(fitted, standard_error=_error(features, shares, coefficients, hard_P) if len(shares) > 1 else None)


def _error(x_R3: Array, share_R: Array, b_3: Array, hard_P: Array) -> float:
    """The standard error of the rate, in percent."""
    chance_R = expit(x_R3 @ b_3)
    curvature = x_R3.T @ (x_R3 * (chance_R * (1 - chance_R))[:, None]) + RIDGE * np.eye(3)
    scores_R3 = x_R3 * (share_R - chance_R)[:, None]
    covariance = np.linalg.solve(curvature, np.linalg.solve(curvature, scores_R3.T @ scores_R3).T)
    equal_P3 = np.column_stack([np.zeros(len(hard_P)), hard_P, np.ones(len(hard_P))])
    chance_P = expit(equal_P3 @ b_3)
    slope_3 = (equal_P3 * (chance_P * (1 - chance_P))[:, None]).mean(axis=0)
    return 100 * float(np.sqrt(max(0.0, slope_3 @ covariance @ slope_3)))


def joint_difficulty(models: Sequence[Sequence[Annotation]]) -> dict[int, float]:
    """The difficulty of every instruction that any of the ``models`` was judged on, by row number."""
    numbers = sorted({row.row for rows in models for row in rows})
    place = {number: i for i, number in enumerate(numbers)}
    length_R = np.concatenate([scaled_difference(rows) for rows in models])
    table = [(m, place[row.row], row.preference) for m, rows in enumerate(models) for row in rows]
    judged = np.array([share is not None for _, _, share in table], dtype=bool)
    model_R, item_R = np.array([(m, item) for m, item, _ in table]).T[:, judged]
    share_R = np.array([share for _, _, share in table if share is not None])
    data = _Joint(length_R[judged], model_R, item_R, share_R, len(models), len(numbers))
    found = minimize(data, np.zeros(len(data.ridge)), jac=True, method="L-BFGS-B")
    return dict(zip(numbers, found.x[2 * len(models) :].tolist(), strict=True))


@dataclass(frozen=True)
class _Joint:
    """Loss and gradient at slopes (one to a model), constants (one to a model) and difficulties, in one array."""

    length_R: Array
    model_R: NDArray[np.int64]
    item_R: NDArray[np.int64]
    share_R: Array
    models: int
    items: int

    @property
    def ridge(self) -> Array:
        return np.concatenate([np.full(2 * self.models, RIDGE), np.full(self.items, DIFFICULTY_RIDGE)])

    def __call__(self, at: Array) -> tuple[float, Array]:
        slope, constant, hard = np.split(at, [self.models, 2 * self.models])
        margin = slope[self.model_R] * self.length_R + constant[self.model_R] + hard[self.item_R]
        loss = float((np.logaddexp(0.0, margin) - self.share_R * margin).sum() + self.ridge @ at**2 / 2)
        error = expit(margin) - self.share_R
        parts = (
            np.bincount(self.model_R, error * self.length_R, self.models),
            np.bincount(self.model_R, error, self.models),
            np.bincount(self.item_R, error, self.items),
        )
        return loss, np.concatenate(parts) + self.ridge * at
