"""AlpacaEval 2's length-controlled win rate, by the leaderboard's own regression ("length_controlled_v1").

For each evaluated model one logistic regression of its preference share on three features, without an intercept:

    tanh((baseline's length - model's length) / their sample standard deviation),  difficulty of the instruction,  1

and for the "gamed" rows (the baseline itself, told to be verbose and concise) the same with 0 for the 1. Those rows
weigh 0.1 each and tie the length coefficient to the baseline's own. L1 penalty, C out of ten from 1e-4 to 1e4 by
5-fold cross-validation of the weighted log loss, liblinear, as upstream (src/alpaca_eval/metrics/glm_winrate.py). The
win rate is the mean prediction with the length term at 0: what if the lengths were equal.

Difficulties and gamed rows are upstream's files (instruction_difficulty.csv, df_gamed.csv) and belong to one prompt set
and one baseline; for anything else there is `metareward.evaluation.alpaca_eval.length_control`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import Annotation, Gamed, Weights
from metareward.evaluation.alpaca_eval.win_rate import standard_error
from metareward.method.logistic import fit_logistic

Array = NDArray[np.float64]

_GAMED_WEIGHT = 0.2 / 2  # there are two gamed baselines
_FOLDS = 5
_STRENGTHS = np.logspace(-4, 4, 10)
_SEED = 123


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """Rates in percent; ``predictions_P`` are the shares predicted for every row at equal lengths, in [0, 1]."""

    win_rate: float
    standard_error: float | None
    weights: Weights
    predictions_P: tuple[float, ...]


def length_controlled(rows: Sequence[Annotation], difficulty_I: Array, gamed: Gamed) -> LengthControlled | None:
    """The fit on ``rows``; rows without a preference are predicted but not fitted. None without any preference.

    Raises `UserError` when a row's number has no difficulty.
    """
    judged = np.array([row.preference is not None for row in rows], dtype=bool)
    if not judged.any():
        return None
    hard_P = difficulties(rows, difficulty_I)
    if is_baseline(rows):
        return predicted(Weights(0.0, 0.0, 0.0), hard_P)
    own = np.column_stack([scaled_difference(rows), hard_P, np.ones(len(rows))])[judged]
    shares = np.array([row.preference for row in rows if row.preference is not None])
    baseline = np.column_stack([np.tanh(gamed.length_R), gamed.difficulty_R, np.zeros(len(gamed.length_R))])
    coefficients = _fit(
        np.vstack([baseline, own]),
        np.concatenate([gamed.preference_R, shares]),
        np.concatenate([np.full(len(baseline), _GAMED_WEIGHT), np.ones(len(own))]),
    )
    return predicted(Weights(*map(float, coefficients)), hard_P)


def predicted(weights: Weights, difficulty_P: Array, against: Weights | None = None) -> LengthControlled:
    """The win rate that published weights stand for, against the baseline or the model with the weights ``against``."""
    other = against or Weights(0.0, 0.0, 0.0)
    slope, constant = weights.difficulty - other.difficulty, weights.constant - other.constant
    shares = expit(slope * difficulty_P + constant)
    return LengthControlled(
        100 * float(shares.mean()), standard_error(shares.tolist()), weights, tuple(shares.tolist())
    )


def is_baseline(rows: Sequence[Annotation]) -> bool:
    """Whether the model is the baseline itself: every row a draw of equal lengths."""
    return all(row.preference == 0.5 and row.baseline_chars == row.model_chars for row in rows)


def scaled_difference(rows: Sequence[Annotation]) -> Array:
    """The length feature of every row: 0 at equal lengths; scaled but not centred, so that 0 stays 0."""
    difference = np.array([row.baseline_chars - row.model_chars for row in rows], dtype=np.float64)
    spread = float(difference.std(ddof=1)) if len(rows) > 1 else 0.0
    return np.asarray(np.tanh(difference / spread)) if spread > 0 else np.zeros(len(rows))


def difficulties(rows: Sequence[Annotation], difficulty_I: Array) -> Array:
    """The difficulty of each row's instruction."""
    numbers = np.array([row.row for row in rows])
    if numbers.max(initial=0) >= len(difficulty_I) or numbers.min(initial=0) < 0:
        raise UserError(
            f"the annotations go up to row {numbers.max()}, the difficulties to {len(difficulty_I) - 1}; "
            "fix: leave the difficulties out, they belong to another prompt set"
        )
    return np.asarray(difficulty_I[numbers])


def large_change(raw: float, controlled: float) -> bool:
    """Upstream's sign that a fit may have failed: it moved by over 10 points and a quarter of the way to 0 or 100."""
    low = min(raw - raw / 4, raw - 10)
    high = max(raw + (100 - raw) / 4, raw + 10)
    return not low <= controlled <= high


def _fit(x_RF: Array, y_R: Array, weights_R: Array) -> Array:
    """Every row twice: label 1 with weight w y, label 0 with weight w (1 - y). A row and its twin share a fold."""
    rows = _Twins(
        x_RF=np.vstack([x_RF, x_RF]),
        labels_R=np.repeat([1, 0], len(y_R)),
        shares_R=np.concatenate([y_R, y_R]),
        weights_R=np.concatenate([weights_R, weights_R]),
        groups_R=np.tile(np.arange(len(y_R)), 2),
    )
    folds = rows.folds()
    losses = [
        np.mean([_loss(rows, kept_out, _regression(rows, used, strength)) for used, kept_out in folds])
        for strength in _STRENGTHS
    ]
    best = float(_STRENGTHS[int(np.argmin(losses))])
    return _regression(rows, np.arange(len(rows.labels_R)), best)


@dataclass(frozen=True, slots=True)
class _Twins:
    x_RF: Array
    labels_R: NDArray[np.int64]
    shares_R: Array
    weights_R: Array
    groups_R: NDArray[np.int64]

    def folds(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows to fit and the rows to test by, five times."""
        from sklearn.model_selection import GroupKFold

        return list(GroupKFold(_FOLDS).split(self.x_RF, self.labels_R, self.groups_R))


def _regression(rows: _Twins, used: NDArray[np.int64], strength: float) -> Array:
    """The three coefficients."""
    from sklearn.linear_model import LogisticRegression

    labels = rows.labels_R[used]
    soft = np.where(labels == 1, rows.shares_R[used], 1 - rows.shares_R[used])
    model = LogisticRegression(C=strength, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=_SEED).fit(
        rows.x_RF[used], labels, sample_weight=soft * rows.weights_R[used]
    )
    return np.asarray(model.coef_[0], dtype=np.float64)


def _loss(rows: _Twins, kept_out: NDArray[np.int64], coefficients: Array) -> float:
    """The mean weighted log loss."""
    chance = np.clip(expit(rows.x_RF[kept_out] @ coefficients), 1e-15, 1 - 1e-15)
    share = rows.shares_R[kept_out]
    log_likelihood = share * np.log(chance) + (1 - share) * np.log(1 - chance)
    return float(np.mean(-log_likelihood * rows.weights_R[kept_out]))


# --- A win rate at equal lengths for prompt sets and baselines that the leaderboard's regression doesn't know.
#
# The same idea with what is at hand, and another name, because without
# upstream's
# two files the number is another one (over 57 leaderboard models 1.3 points off on average without the gamed rows, 6.9
# without difficulties as well). Per model a logistic regression of the preference share on
#
#     tanh(length difference / its standard deviation),  1,  and the instruction's difficulty where there is one
#
# with a ridge of 0.01 on each coefficient. Difficulties come from a file, or, where several models were judged on the
# same instructions, from one regression over all of them: a slope and a constant to a model, one coefficient to an
# instruction with a ridge of 1. Swapping the two models turns a rate w into 100 - w.
#
# The standard error is that of the fitted rate (sandwich covariance, delta method), the difficulties taken as given.
# Upstream's is the spread of the predictions over instructions, which is 0 without difficulties.


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
    coefficients = fit_logistic(features, shares, np.ones(len(shares)), np.full(3, RIDGE))
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
