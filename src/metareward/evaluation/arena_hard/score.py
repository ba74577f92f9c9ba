"""Arena-Hard's score: the win rate against the baseline over two games a question, with bootstrap intervals.

A verdict is a battle won (1), tied (1/2) or lost (0) by the model; "significantly better" counts as three battles. v0.1
fits Bradley-Terry ratings R and reports 100 / (1 + 10^((R_base - R) / 400)). All battles are against the baseline, so
the maximum likelihood estimate is the weighted mean

    score = 100 sum(outcome) / number of battles,     R - R_base = 400 log10(score / (100 - score))

which is computed here, and which v2 prints. v0.1 skips a game without a readable verdict, v2 the whole question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metareward.evaluation.arena_hard.data import Match, Version, is_significant, score_for_a

Array = NDArray[np.float64]

STRONG_WEIGHT = 3
ANCHOR = 1000.0
# Published intervals: 95 % in v0.1, 90 % in v2.
PERCENTILES: dict[Version, tuple[float, float]] = {"v0.1": (2.5, 97.5), "v2": (5.0, 95.0)}


@dataclass(frozen=True, slots=True)
class Battles:
    """Battles of M models on Q questions, one row per game: model, question, the model's outcome, its weight."""

    models: tuple[str, ...]
    questions: tuple[str, ...]
    model_R: NDArray[np.int64]
    question_R: NDArray[np.int64]
    outcome_R: Array
    weight_R: Array

    def sums(self, value_R: Array) -> Array:
        """The sum of a per-row value for each question and model, of shape (Q, M)."""
        total = np.zeros((len(self.questions), len(self.models)))
        np.add.at(total, (self.question_R, self.model_R), value_R)
        return total


def to_battles(matches: Sequence[Match], version: Version) -> Battles:
    """The battles in ``matches``; models and questions in order of first appearance, also those without a battle."""
    models = {name: i for i, name in enumerate(dict.fromkeys(match.model for match in matches))}
    questions = {name: i for i, name in enumerate(dict.fromkeys(match.question for match in matches))}
    rows = [
        (models[match.model], questions[match.question], outcome, weight)
        for match in matches
        for outcome, weight in _outcomes(match, version)
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    model_R, question_R = table[:2].astype(np.int64)
    return Battles(tuple(models), tuple(questions), model_R, question_R, table[2], table[3])


def _outcomes(match: Match, version: Version) -> list[tuple[float, float]]:
    """(the model's outcome, its weight) of each game that counts."""
    if version == "v2" and None in match.games:
        return []
    model_is_b, model_is_a = match.games
    found = []
    if model_is_b is not None:
        found.append((1 - score_for_a(model_is_b), float(STRONG_WEIGHT if is_significant(model_is_b) else 1)))
    if model_is_a is not None:
        found.append((score_for_a(model_is_a), float(STRONG_WEIGHT if is_significant(model_is_a) else 1)))
    return found


def count_battles(battles: Battles) -> Array:
    """The number of battles of each model, of shape (M,)."""
    return np.asarray(np.bincount(battles.model_R, battles.weight_R, len(battles.models)), dtype=np.float64)


def scores(battles: Battles) -> list[float | None]:
    """The score of each model, in percent; None without battles."""
    won_M = np.bincount(battles.model_R, battles.weight_R * battles.outcome_R, len(battles.models))
    return [100 * float(won / n) if n else None for won, n in zip(won_M, count_battles(battles), strict=True)]


def rating(score: float | None) -> float | None:
    """The Bradley-Terry rating on Elo's scale, the baseline at 1000; None where it would be infinite."""
    if score is None or not 0 < score < 100:
        return None
    return ANCHOR + 400 * math.log10(score / (100 - score))


@dataclass(frozen=True, slots=True)
class Range:
    """The ends of an interval, in percent."""

    low: float
    high: float


def resample_questions(
    battles: Battles, rounds: int, seed: int, percentiles: tuple[float, float]
) -> list[Range | None]:
    """Intervals from resampling whole questions, the same ones for all models.

    Games of one question and battles of one verdict aren't independent, so these intervals have the right width.
    """
    won_QM, n_QM = battles.sums(battles.weight_R * battles.outcome_R), battles.sums(battles.weight_R)
    drawn = draw_questions(len(battles.questions), rounds, seed)
    return _ranges(drawn @ won_QM, drawn @ n_QM, percentiles)


def draw_questions(questions: int, rounds: int, seed: int) -> Array:
    """How often each question is drawn in each bootstrap round, of shape (rounds, Q)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(questions, np.full(questions, 1 / max(1, questions)), rounds).astype(np.float64)


def resample_rows(battles: Battles, rounds: int, seed: int, percentiles: tuple[float, float]) -> list[Range | None]:
    """Intervals from resampling single battles of all models together, as v0.1 publishes them: too narrow.

    A sample of n battles is its counts of each (model, outcome), so multinomial counts are drawn.
    """
    models = len(battles.models)
    cell_R = battles.model_R * 3 + (2 * battles.outcome_R).astype(np.int64)
    cells = np.bincount(cell_R, battles.weight_R, 3 * models)
    total = round(float(cells.sum()))
    if not total:
        return [None] * models
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(total, cells / cells.sum(), rounds).reshape(rounds, models, 3).astype(np.float64)
    return _ranges(drawn @ np.array([0.0, 0.5, 1.0]), drawn.sum(axis=2), percentiles)


def _ranges(won_BM: Array, n_BM: Array, percentiles: tuple[float, float]) -> list[Range | None]:
    """Percentiles of won / n over the B rounds in which a model has battles; None if there are no such rounds."""
    found: list[Range | None] = []
    for won_B, n_B in zip(won_BM.T, n_BM.T, strict=True):
        share = 100 * won_B[n_B > 0] / n_B[n_B > 0]
        ends = np.percentile(share, percentiles) if share.size else None
        found.append(None if ends is None else Range(float(ends[0]), float(ends[1])))
    return found
