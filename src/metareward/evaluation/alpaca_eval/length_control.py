"""Win rates at equal lengths: AlpacaEval 2's own regression, and a fit for other prompt sets and baselines.

`length_controlled` is the leaderboard's length_controlled_v1 (src/alpaca_eval/metrics/glm_winrate.py): per model, a
logistic regression of the preference share, without an intercept, on

    tanh((baseline's length - model's length) / sample standard deviation of the difference),  difficulty,  1

The win rate is the mean prediction with the length feature set to 0. The "gamed" rows (the baseline told to be verbose
or concise) have 0 instead of 1 as the last feature and weight 0.1 each. L1 penalty, ten values of C from 1e-4 to 1e4
chosen by 5-fold cross-validation of the weighted log loss, liblinear. Difficulties and gamed rows are upstream's files
(instruction_difficulty.csv, df_gamed.csv) for one prompt set and one baseline.

`length_adjusted` serves everything else, under another name because its numbers differ (over 57 leaderboard models by
1.3 points on average without gamed rows, 6.9 without difficulties too): the same features with a ridge of 0.01. Its
difficulties come from a file or from `fit_difficulties`. Swapping the models turns a win rate w into 100 - w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import Annotation, Gamed, Weights
from metareward.method.stats import fit_logistic

Array = NDArray[np.float64]

_GAMED_WEIGHT = 0.2 / 2  # there are two gamed baselines
_FOLDS = 5
_CS = np.logspace(-4, 4, 10)
_SEED = 123
_RIDGE = 0.01
_DIFFICULTY_RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """Rates in percent; ``predictions_P``: the predicted preference share of each row at equal lengths, in [0, 1]."""

    win_rate: float
    standard_error: float | None
    weights: Weights
    predictions_P: tuple[float, ...]


def length_controlled(rows: Sequence[Annotation], difficulty_I: Array, gamed: Gamed) -> LengthControlled | None:
    """The leaderboard's fit on ``rows``. Rows without a preference are predicted but not fitted; None without any.

    Raises `UserError` when a row's number has no difficulty.
    """
    if all(row.preference is None for row in rows):
        return None
    difficulty_P = row_difficulties(rows, difficulty_I)
    if _is_baseline(rows):
        return win_rate_of_weights(Weights(0.0, 0.0, 0.0), difficulty_P)
    own_R3, shares_R = _judged_rows(rows, _official_length_feature(rows), difficulty_P)
    baseline = np.column_stack([np.tanh(gamed.length_R), gamed.difficulty_R, np.zeros(len(gamed.length_R))])
    coefficients = _fit_lasso(
        np.vstack([baseline, own_R3]),
        np.concatenate([gamed.preference_R, shares_R]),
        np.concatenate([np.full(len(baseline), _GAMED_WEIGHT), np.ones(len(own_R3))]),
    )
    return win_rate_of_weights(Weights(*map(float, coefficients)), difficulty_P)


def _judged_rows(rows: Sequence[Annotation], length_P: Array, difficulty_P: Array) -> tuple[Array, Array]:
    """The three features of the rows with a preference, of shape (R, 3), and their preferences."""
    judged = np.array([row.preference is not None for row in rows], dtype=bool)
    features_R3 = np.column_stack([length_P, difficulty_P, np.ones(len(rows))])[judged]
    return features_R3, np.array([row.preference for row in rows if row.preference is not None])


def win_rate_of_weights(weights: Weights, difficulty_P: Array, against: Weights | None = None) -> LengthControlled:
    """The win rate of fitted ``weights``, against the baseline or the model with the weights ``against``."""
    from scipy.special import expit  # takes a tenth of a second

    other = against or Weights(0.0, 0.0, 0.0)
    slope, constant = weights.difficulty - other.difficulty, weights.constant - other.constant
    shares = expit(slope * difficulty_P + constant)
    predictions = tuple(shares.tolist())
    return LengthControlled(100 * float(shares.mean()), standard_error(predictions), weights, predictions)


def standard_error(shares: Sequence[float]) -> float | None:
    """The standard error of the mean, in percent; None for fewer than two values."""
    return 100 * float(np.std(shares, ddof=1)) / len(shares) ** 0.5 if len(shares) > 1 else None


def _is_baseline(rows: Sequence[Annotation]) -> bool:
    """Whether the model is the baseline itself: every row a draw of equal lengths."""
    return all(row.preference == 0.5 and row.baseline_chars == row.model_chars for row in rows)


def length_feature(rows: Sequence[Annotation]) -> Array:
    """The length feature of each row: scaled but not centred, so that equal lengths give 0.

    Where all differences are the same, there is no scale: 0 in every row.
    """
    difference = np.array([row.baseline_chars - row.model_chars for row in rows], dtype=np.float64)
    spread = float(difference.std(ddof=1)) if len(rows) > 1 else 0.0
    return np.asarray(np.tanh(difference / spread)) if spread > 0 else np.zeros(len(rows))


def _official_length_feature(rows: Sequence[Annotation]) -> Array:
    """The same, but upstream divides by a spread of 0, and tanh of infinity is 1."""
    feature_P = length_feature(rows)
    if len(rows) > 1 and not feature_P.any():
        return np.array([float(np.sign(row.baseline_chars - row.model_chars)) for row in rows])
    return feature_P


def row_difficulties(rows: Sequence[Annotation], difficulty_I: Array) -> Array:
    """The difficulty of each row's instruction."""
    numbers = np.array([row.row for row in rows])
    if numbers.max(initial=0) >= len(difficulty_I) or numbers.min(initial=0) < 0:
        raise UserError(
            f"the annotations go up to row {numbers.max()}, the difficulties to {len(difficulty_I) - 1}; "
            "fix: leave the difficulties out, they belong to another prompt set"
        )
    return np.asarray(difficulty_I[numbers])


def is_large_change(raw: float, controlled: float) -> bool:
    """Upstream's check for a failed fit: the rate moved by over 10 points and a quarter of the way to 0 or 100."""
    low = min(raw - raw / 4, raw - 10)
    high = max(raw + (100 - raw) / 4, raw + 10)
    return not low <= controlled <= high


def _fit_lasso(x_RF: Array, y_R: Array, weights_R: Array) -> Array:
    """The coefficients, by liblinear, with C chosen by cross-validation.

    Each row twice: label 1 with weight w y and label 0 with weight w (1 - y), both in the same fold.
    """
    from scipy.special import expit  # takes a tenth of a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    groups_R = np.tile(np.arange(len(y_R)), 2)
    labels_R = np.repeat([1, 0], len(y_R))
    x_RF, shares_R, weights_R = (np.concatenate([each, each]) for each in (x_RF, y_R, weights_R))
    soft_R = np.where(labels_R == 1, shares_R, 1 - shares_R)

    def fit(used: NDArray[np.int64], c: float, random: np.random.RandomState) -> Array:
        model = LogisticRegression(C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=random)
        model.fit(x_RF[used], labels_R[used], sample_weight=soft_R[used] * weights_R[used])
        return np.asarray(model.coef_[0], dtype=np.float64)

    def loss(held_out: NDArray[np.int64], coefficients: Array) -> float:
        """The mean weighted log loss."""

        chance = np.clip(expit(x_RF[held_out] @ coefficients), 1e-15, 1 - 1e-15)
        share = shares_R[held_out]
        log_likelihood = share * np.log(chance) + (1 - share) * np.log(1 - chance)
        return float(np.mean(-log_likelihood * weights_R[held_out]))

    losses_C = np.zeros(len(_CS))
    for used, held_out in GroupKFold(_FOLDS).split(x_RF, labels_R, groups_R):
        # As in LogisticRegressionCV, the ten fits of a fold draw their seeds from one generator. liblinear shuffles the
        # coordinates by that seed and stops early, so other seeds give other losses and, for some models, another C.
        random = np.random.RandomState(_SEED)
        losses_C += [loss(held_out, fit(used, c, random)) for c in _CS]
    best = float(_CS[int(np.argmin(losses_C))])
    return fit(np.arange(len(labels_R)), best, np.random.RandomState(_SEED))


def length_adjusted(rows: Sequence[Annotation], difficulty_P: Array | None = None) -> LengthControlled | None:
    """The ridge fit on P ``rows``, with ``difficulty_P`` or without that feature. None without any preference.

    The standard error is that of the fitted rate (sandwich covariance, delta method), the difficulties taken as known.
    """
    if all(row.preference is None for row in rows):
        return None
    known_P = np.zeros(len(rows)) if difficulty_P is None else difficulty_P
    if _is_baseline(rows):
        return win_rate_of_weights(Weights(0.0, 0.0, 0.0), known_P)
    features_R3, shares_R = _judged_rows(rows, length_feature(rows), known_P)
    coefficients = fit_logistic(features_R3, shares_R, np.ones(len(shares_R)), np.full(3, _RIDGE))
    fitted = win_rate_of_weights(Weights(*map(float, coefficients)), known_P)
    error = _standard_error_of_fit(features_R3, shares_R, coefficients, known_P) if len(shares_R) > 1 else None
    return replace(fitted, standard_error=error)


def _standard_error_of_fit(x_R3: Array, share_R: Array, b_3: Array, difficulty_P: Array) -> float:
    """The standard error of the rate, in percent."""
    from scipy.special import expit  # takes a tenth of a second

    chance_R = expit(x_R3 @ b_3)
    curvature = x_R3.T @ (x_R3 * (chance_R * (1 - chance_R))[:, None]) + _RIDGE * np.eye(3)
    scores_R3 = x_R3 * (share_R - chance_R)[:, None]
    covariance = np.linalg.solve(curvature, np.linalg.solve(curvature, scores_R3.T @ scores_R3).T)
    equal_P3 = np.column_stack([np.zeros(len(difficulty_P)), difficulty_P, np.ones(len(difficulty_P))])
    chance_P = expit(equal_P3 @ b_3)
    slope_3 = (equal_P3 * (chance_P * (1 - chance_P))[:, None]).mean(axis=0)
    return 100 * float(np.sqrt(max(0.0, slope_3 @ covariance @ slope_3)))


def fit_difficulties(models: Sequence[Sequence[Annotation]]) -> dict[int, float]:
    """The difficulty of each instruction that any of the ``models`` was judged on, by row number.

    One logistic regression over all models: a length slope and a constant per model (ridge 0.01), a difficulty per
    instruction (ridge 1). L-BFGS, because its thousand sparse columns would be a large dense Newton system.
    """
    from scipy.special import expit  # takes a tenth of a second

    numbers = sorted({row.row for rows in models for row in rows})
    place = {number: i for i, number in enumerate(numbers)}
    length_R = np.concatenate([length_feature(rows) for rows in models])
    table = [(m, place[row.row], row.preference) for m, rows in enumerate(models) for row in rows]
    judged = np.array([share is not None for _, _, share in table], dtype=bool)
    model_R, item_R = np.array([(m, item) for m, item, _ in table]).T[:, judged]
    share_R = np.array([share for _, _, share in table if share is not None])
    length_R = length_R[judged]
    ridge = np.concatenate([np.full(2 * len(models), _RIDGE), np.full(len(numbers), _DIFFICULTY_RIDGE)])

    def loss_and_gradient(b_F: Array) -> tuple[float, Array]:
        """At the slopes, constants and difficulties, concatenated in one array."""

        slope, constant, hard = np.split(b_F, [len(models), 2 * len(models)])
        margin = slope[model_R] * length_R + constant[model_R] + hard[item_R]
        loss = float((np.logaddexp(0.0, margin) - share_R * margin).sum() + ridge @ b_F**2 / 2)
        error = expit(margin) - share_R
        parts = (
            np.bincount(model_R, error * length_R, len(models)),
            np.bincount(model_R, error, len(models)),
            np.bincount(item_R, error, len(numbers)),
        )
        return loss, np.concatenate(parts) + ridge * b_F

    from scipy.optimize import minimize  # takes a quarter of a second

    found = minimize(loss_and_gradient, np.zeros(len(ridge)), jac=True, method="L-BFGS-B")
    return dict(zip(numbers, found.x[2 * len(models) :].tolist(), strict=True))
