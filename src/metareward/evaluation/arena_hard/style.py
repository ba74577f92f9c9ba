"""Arena-Hard's style control: each model's score at the same style as the others.

One logistic regression over all models: a rating per model and a coefficient per style difference between baseline and
model, standardised over the battles. The controlled score uses the rating alone: it is the score at the average style
difference of all battles, not at the baseline's style, so it depends on which models are fitted together.

v0.1: difference (a - b) / (a + b + 1) of tokens, headers, lists and bold spans; scaled by the population's deviation;
      a ridge of 1/2 to each coefficient, the baseline's among them (upstream doubles the battles and has a ridge of 1).
v2:   length (a - b) / (a + b), markdown as densities d = count / tokens with (d_a - d_b) / (d_a + d_b + 1); scaled by
      the sample's deviation; a ridge of 1e-6, which keeps a model that always wins finite. Upstream stops after 50
      steps; the optimum is reached here.

"length" controls the length only, "markdown" the other three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from metareward.evaluation.arena_hard.data import Answer, Style, Version
from metareward.evaluation.arena_hard.score import PERCENTILES, Battles, Range, count_battles, draw_questions
from metareward.method.logistic import fit_logistic

Array = NDArray[np.float64]
Control = Literal["style", "length", "markdown"]

_COLUMNS: dict[Control, tuple[int, ...]] = {"style": (0, 1, 2, 3), "length": (0,), "markdown": (1, 2, 3)}
NAMES = ("length", "headers", "lists", "bold")
_RIDGE: dict[Version, float] = {"v0.1": 0.5, "v2": 1e-6}
_BASE = math.log(10)


@dataclass(frozen=True, slots=True)
class StyleControlled:
    """The models' scores at one style, in percent, and the coefficients of the controlled features.

    A positive coefficient means that the judge prefers more of the feature; ``ranges_M`` is empty without intervals.
    """

    scores_M: tuple[float | None, ...]
    coefficients: Mapping[str, float]
    ranges_M: tuple[Range | None, ...] = ()


@dataclass(frozen=True, slots=True)
class StyledBattles:
    """``battles`` with one row per model and question (mean outcome, number of battles), and their style differences.

    ``left_out`` counts the rows without known styles; ``in_tokens`` says what lengths are measured in.
    """

    battles: Battles
    style_R4: Array
    in_tokens: bool
    left_out: int


def style_battles(
    battles: Battles, baseline: str, answers: Mapping[str, Mapping[str, Answer]], version: Version
) -> StyledBattles | None:
    """The battles where the styles of both answers are known; None if there are none.

    ``answers`` are by model and question. Lengths are in tokens if all answers have token counts, else in characters.
    """
    n_QM = battles.sums(battles.weight_R)
    question_R, model_R = np.nonzero(n_QM)
    by_model = [answers.get(name, {}) for name in battles.models]
    names = [battles.questions[q] for q in question_R]
    pairs = [
        (answers.get(baseline, {}).get(name), by_model[m].get(name)) for name, m in zip(names, model_R, strict=True)
    ]
    known = np.array([base is not None and own is not None for base, own in pairs], dtype=bool)
    both = [(base.style, own.style) for base, own in pairs if base is not None and own is not None]
    if not both:
        return None
    in_tokens = all(style.tokens is not None for pair in both for style in pair)
    weight_R = n_QM[question_R, model_R]
    won_R = battles.sums(battles.weight_R * battles.outcome_R)[question_R, model_R]
    outcome_R = (won_R / weight_R)[known]
    return StyledBattles(
        Battles(battles.models, battles.questions, model_R[known], question_R[known], outcome_R, weight_R[known]),
        style_R4=_standardised(_differences(both, in_tokens, version), weight_R[known], version),
        in_tokens=in_tokens,
        left_out=int((~known).sum()),
    )


def _differences(pairs: Sequence[tuple[Style, Style]], in_tokens: bool, version: Version) -> Array:
    base_R4, own_R4 = (np.array([_counts(pair[side], in_tokens) for pair in pairs]) for side in (0, 1))
    if version == "v0.1":
        return np.asarray((base_R4 - own_R4) / (base_R4 + own_R4 + 1))
    one, other = (_densities(counts_R4) for counts_R4 in (base_R4, own_R4))
    length = (base_R4[:, :1] - own_R4[:, :1]) / np.maximum(base_R4[:, :1] + own_R4[:, :1], 1)
    return np.hstack([length, (one - other) / (one + other + 1)])


def _densities(counts_R4: Array) -> Array:
    return np.asarray(counts_R4[:, 1:] / np.maximum(counts_R4[:, :1], 1))


def _counts(style: Style, in_tokens: bool) -> tuple[float, float, float, float]:
    length = style.tokens if in_tokens else style.chars
    return (length or 0.0, style.headers, style.lists, style.bolds)


def _standardised(style_R4: Array, weight_R: Array, version: Version) -> Array:
    """Centred and scaled over the battles; a feature that never differs becomes 0."""
    centred = style_R4 - np.average(style_R4, axis=0, weights=weight_R)
    degrees = weight_R.sum() - (version == "v2")
    spread = np.sqrt((weight_R[:, None] * centred**2).sum(axis=0) / max(degrees, 1.0))
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def style_controlled(
    rows: StyledBattles, control: Control, version: Version, rounds: int = 0, seed: int = 0
) -> StyleControlled:
    """The scores with ``control``; with ``rounds`` also 95 % (v2: 90 %) bootstrap intervals over questions."""
    columns, battles = _COLUMNS[control], rows.battles
    x_RF = _design(rows, columns)
    ridge_F = np.full(x_RF.shape[1], _RIDGE[version])
    found = fit_logistic(x_RF, battles.outcome_R, battles.weight_R, ridge_F)
    count = len(battles.models)
    fought_M = count_battles(battles)
    scores = [float(score) if n else None for score, n in zip(_scores(found, count), fought_M, strict=True)]
    # The style differences are baseline minus model.
    weights = {NAMES[column]: -float(found[count + 1 + i]) for i, column in enumerate(columns)}
    drawn = _resampled(battles, x_RF, ridge_F, found, rounds, seed)
    return StyleControlled(tuple(scores), weights, _ranges(drawn, fought_M, version) if rounds else ())


def _design(rows: StyledBattles, columns: Sequence[int]) -> Array:
    """A column per model (ln 10), one for the baseline (-ln 10), and the controlled features."""
    model_R = rows.battles.model_R
    ratings = np.zeros((len(model_R), len(rows.battles.models) + 1))
    ratings[np.arange(len(model_R)), model_R] = _BASE
    ratings[:, -1] = -_BASE
    return np.hstack([ratings, rows.style_R4[:, list(columns)]])


def _scores(found_F: Array, models: int) -> Array:
    return np.asarray(100 * expit(_BASE * (found_F[:models] - found_F[models])))


def _resampled(rows: Battles, x_RF: Array, ridge_F: Array, start_F: Array, rounds: int, seed: int) -> Array:
    """The scores in each bootstrap round, of shape (rounds, M)."""
    drawn = draw_questions(len(rows.questions), rounds, seed)[:, rows.question_R]
    fits = [fit_logistic(x_RF, rows.outcome_R, rows.weight_R * times_R, ridge_F, start_F) for times_R in drawn]
    return np.array([_scores(found, len(rows.models)) for found in fits])


def _ranges(scores_BM: Array, fought_M: Array, version: Version) -> tuple[Range | None, ...]:
    low_M, high_M = np.percentile(scores_BM, PERCENTILES[version], axis=0)
    return tuple(
        Range(float(low), float(high)) if n else None for low, high, n in zip(low_M, high_M, fought_M, strict=True)
    )
