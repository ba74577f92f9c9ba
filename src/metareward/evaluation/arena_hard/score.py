"""Arena-Hard's numbers: score, rating, bootstrap intervals and style-controlled scores of every model.

**Score.** A verdict is a battle won (1), tied (1/2) or lost (0) by the model; "significantly better" counts as three
battles. v0.1 fits Bradley-Terry ratings R and reports 100 / (1 + 10^((R_base - R) / 400)). All battles are against the
baseline, so the maximum likelihood estimate is the weighted mean

    score = 100 sum(outcome) / number of battles,     R - R_base = 400 log10(score / (100 - score))

which is computed here, and which v2 prints. v0.1 skips a game without a readable verdict, v2 the whole question.

**Style control.** One logistic regression over all models: a rating per model and a coefficient per style difference
between baseline and model, standardised over the battles. The controlled score uses the rating alone: it is the score
at the average style difference of all battles, not at the baseline's style, so it depends on which models are fitted
together. "length" controls the length only, "markdown" the other three.

v0.1: difference (a - b) / (a + b + 1) of tokens, headers, lists and bold spans; scaled by the population's deviation;
      a ridge of 1/2 to each coefficient, the baseline's among them (upstream doubles the battles and has a ridge of 1).
v2:   length (a - b) / (a + b), markdown as densities d = count / tokens with (d_a - d_b) / (d_a + d_b + 1); scaled by
      the sample's deviation; a ridge of 1e-6, which keeps a model that always wins finite. Upstream stops after 50
      steps; the optimum is reached here.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import Answer, Match, Style, Version, is_significant, score_for_a
from metareward.evaluation.input_checks import coverage_caveat
from metareward.method.stats import ROUNDS, fit_logistic, resample_counts

Array = NDArray[np.float64]
Control = Literal["style", "length", "markdown"]

STRONG_WEIGHT = 3
ANCHOR = 1000.0
# Published intervals: 95 % in v0.1, 90 % in v2.
PERCENTILES: dict[Version, tuple[float, float]] = {"v0.1": (2.5, 97.5), "v2": (5.0, 95.0)}
_JUDGE, _BASELINE, _QUESTIONS = "gpt-4-1106-preview", "gpt-4-0314", 500  # of v0.1's leaderboard
_QUESTIONS_SHA256 = "e837a8ded107ba5e6103ff54b63324c5ea0e2cfc580b0b8c412ae1afb00f5c02"  # of its ids, sorted
_FEATURES = ("length", "headers", "lists", "bold")
_CONTROLLED: dict[Control, tuple[int, ...]] = {"style": (0, 1, 2, 3), "length": (0,), "markdown": (1, 2, 3)}
_RIDGE: dict[Version, float] = {"v0.1": 0.5, "v2": 1e-6}
_BASE = math.log(10)


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
    rows = []
    for match in matches:
        if version == "v2" and None in match.games:
            continue
        for game, model_is_a in zip(match.games, (False, True), strict=True):
            if game is not None:
                outcome = score_for_a(game) if model_is_a else 1 - score_for_a(game)
                weight = STRONG_WEIGHT if is_significant(game) else 1
                rows.append((models[match.model], questions[match.question], outcome, weight))
    table = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    model_R, question_R = table[:2].astype(np.int64)
    return Battles(tuple(models), tuple(questions), model_R, question_R, table[2], table[3])


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


# --- bootstrap intervals ---


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
    drawn = [(times_BQ @ won_QM, times_BQ @ n_QM) for times_BQ in resample_counts(len(battles.questions), rounds, seed)]
    won_BM, n_BM = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return _ranges(won_BM, n_BM, percentiles)


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


# --- style control ---


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
        style_R4=_style_differences(both, weight_R[known], in_tokens, version),
        in_tokens=in_tokens,
        left_out=int((~known).sum()),
    )


def _style_differences(
    pairs: Sequence[tuple[Style, Style]], weight_R: Array, in_tokens: bool, version: Version
) -> Array:
    """Baseline minus model, centred and scaled over the battles; a feature that never differs becomes 0."""
    base_R4, own_R4 = (
        np.array(
            [
                ((style.tokens if in_tokens else style.chars) or 0.0, style.headers, style.lists, style.bolds)
                for style in side
            ]
        )
        for side in zip(*pairs, strict=True)
    )
    if version == "v0.1":
        style_R4 = (base_R4 - own_R4) / (base_R4 + own_R4 + 1)
    else:
        one, other = (counts_R4[:, 1:] / np.maximum(counts_R4[:, :1], 1) for counts_R4 in (base_R4, own_R4))
        length = (base_R4[:, :1] - own_R4[:, :1]) / np.maximum(base_R4[:, :1] + own_R4[:, :1], 1)
        style_R4 = np.hstack([length, (one - other) / (one + other + 1)])
    centred = style_R4 - np.average(style_R4, axis=0, weights=weight_R)
    degrees = weight_R.sum() - (version == "v2")
    spread = np.sqrt((weight_R[:, None] * centred**2).sum(axis=0) / max(degrees, 1.0))
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def style_controlled(
    rows: StyledBattles, control: Control, version: Version, rounds: int = 0, seed: int = 0
) -> StyleControlled:
    """The scores with ``control``; with ``rounds`` also 95 % (v2: 90 %) bootstrap intervals over questions."""
    from scipy.special import expit  # takes a tenth of a second

    features, battles, count = list(_CONTROLLED[control]), rows.battles, len(rows.battles.models)
    # A column per model (ln 10), one for the baseline (-ln 10), and the controlled features.
    ratings = np.zeros((len(battles.model_R), count + 1))
    ratings[np.arange(len(battles.model_R)), battles.model_R] = _BASE
    ratings[:, -1] = -_BASE
    x_RF = np.hstack([ratings, rows.style_R4[:, features]])
    ridge_F = np.full(x_RF.shape[1], _RIDGE[version])

    def scores_of(fitted_F: Array) -> Array:

        return np.asarray(100 * expit(_BASE * (fitted_F[:count] - fitted_F[count])))

    found = fit_logistic(x_RF, battles.outcome_R, battles.weight_R, ridge_F)
    fought_M = count_battles(battles)
    scores_M = tuple(float(score) if n else None for score, n in zip(scores_of(found), fought_M, strict=True))
    # The style differences are baseline minus model.
    weights = {_FEATURES[feature]: -float(found[count + 1 + i]) for i, feature in enumerate(features)}
    if not rounds:
        return StyleControlled(scores_M, weights)
    fits = [
        fit_logistic(x_RF, battles.outcome_R, battles.weight_R * times_Q[battles.question_R], ridge_F, found)
        for times_BQ in resample_counts(len(battles.questions), rounds, seed)
        for times_Q in times_BQ
    ]
    low_M, high_M = np.percentile([scores_of(each) for each in fits], PERCENTILES[version], axis=0)
    ranges_M = tuple(
        Range(float(low), float(high)) if n else None for low, high, n in zip(low_M, high_M, fought_M, strict=True)
    )
    return StyleControlled(scores_M, weights, ranges_M)


# --- all numbers of a category ---


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model in one category; scores in percent. ``n_unreadable`` counts games without a verdict, refused or not.

    ``questions`` is the interval from drawing questions, ``rows`` the narrower one that is published.
    """

    model: str
    score: float | None
    rating: float | None
    questions: Range | None
    rows: Range | None
    controlled: Mapping[str, float | None]
    controlled_ranges: Mapping[str, Range | None]
    avg_tokens: float | None
    avg_chars: float | None
    n_questions: int
    n_battles: int
    n_unreadable: int
    n_refused: int


@dataclass(frozen=True, slots=True)
class ArenaResult:
    """One category, the best model first. ``length_in`` says what lengths were controlled in, if they were."""

    version: Version
    category: str
    baseline: str
    models: tuple[ModelScore, ...]
    coefficients: Mapping[str, Mapping[str, float]]
    length_in: str | None
    n_without_style: int
    caveats: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        low, high = PERCENTILES[self.version]
        return {
            "version": self.version,
            "category": self.category,
            "baseline": self.baseline,
            "interval_percent": high - low,
            "models": [asdict(each) for each in self.models],
            "style_coefficients": {name: dict(each) for name, each in self.coefficients.items()},
            "length_in": self.length_in,
            "n_without_style": self.n_without_style,
            "official": not self.caveats,
            "caveats": list(self.caveats),
        }


def evaluate(
    matches: Sequence[Match],
    answers: Mapping[str, Mapping[str, Answer]],
    version: Version,
    rounds: int = ROUNDS,
    style_rounds: int = 0,
    seed: int = 0,
) -> tuple[ArenaResult, ...]:
    """The numbers of every category; ``answers`` by model and question give style control, as far as they go.

    ``rounds`` of the bootstrap serve the plain intervals, ``style_rounds`` those of the style-controlled scores. v0.1
    has one ranking over all questions. Raises `UserError` when a category has two baselines.
    """
    groups: dict[str, list[Match]] = {}
    for match in matches:
        groups.setdefault(match.category if version == "v2" else "", []).append(match)
    return tuple(_category(group, answers, version, rounds, style_rounds, seed) for group in groups.values())


def _category(
    matches: Sequence[Match],
    answers: Mapping[str, Mapping[str, Answer]],
    version: Version,
    rounds: int,
    style_rounds: int,
    seed: int,
) -> ArenaResult:
    baselines = sorted({match.baseline for match in matches})
    if len(baselines) > 1:
        raise UserError(f"the judgments have two baselines, {' and '.join(baselines[:2])}; fix: score them apart")
    battles, ends = to_battles(matches, version), PERCENTILES[version]
    styled = style_battles(battles, baselines[0], answers, version) if answers else None
    fits = (
        {}
        if styled is None
        else {c: style_controlled(styled, c, version, style_rounds, seed) for c in get_args(Control)}
    )
    by_question, by_row = (draw(battles, rounds, seed, ends) for draw in (resample_questions, resample_rows))
    models = []
    for i, (name, score, n) in enumerate(zip(battles.models, scores(battles), count_battles(battles), strict=True)):
        own = [match for match in matches if match.model == name]
        styles = [answer.style for answer in answers.get(name, {}).values()]
        refused = sum(match.refused for match in own)
        models.append(
            ModelScore(
                model=name,
                score=score,
                rating=rating(score),
                questions=by_question[i],
                rows=by_row[i],
                controlled={control: each.scores_M[i] for control, each in fits.items()},
                controlled_ranges={control: each.ranges_M[i] for control, each in fits.items() if each.ranges_M},
                avg_tokens=_mean_of_known([style.tokens for style in styles]),
                avg_chars=_mean_of_known([style.chars for style in styles]),
                n_questions=len(own),
                n_battles=int(n),
                n_unreadable=sum(match.games.count(None) for match in own) - refused,
                n_refused=refused,
            )
        )
    return ArenaResult(
        version=version,
        category=matches[0].category,
        baseline=baselines[0],
        models=tuple(sorted(models, key=lambda each: -1.0 if each.score is None else each.score, reverse=True)),
        coefficients={name: each.coefficients for name, each in fits.items()},
        length_in=None if styled is None else "tokens" if styled.in_tokens else "characters",
        n_without_style=0 if styled is None else styled.left_out,
        caveats=_caveats(matches, version, battles.questions),
    )


def _caveats(matches: Sequence[Match], version: Version, questions: Sequence[str]) -> tuple[str, ...]:
    """What keeps the numbers from being the leaderboard's, and which models were judged on a part of the questions."""
    judges, baseline = sorted({match.judge or "not named" for match in matches}), matches[0].baseline
    reasons = []
    if version == "v2":
        reasons.append("v2 is published for several judges and baselines")
    elif judges != [_JUDGE]:
        reasons.append(f"judge {' and '.join(judges)}")
    if version == "v0.1" and baseline != _BASELINE:
        reasons.append(f"baseline {baseline}")
    if version == "v0.1" and len(questions) != _QUESTIONS:
        reasons.append(f"{len(questions)} of {_QUESTIONS} questions")
    elif version == "v0.1" and hashlib.sha256("\0".join(sorted(questions)).encode()).hexdigest() != _QUESTIONS_SHA256:
        reasons.append("other questions")
    caveats = [f"not comparable with the leaderboard: {'; '.join(reasons)}"] if reasons else []
    if len(judges) > 1:
        caveats.append("the models have different judges: their scores are not comparable")
    own, read = Counter[str](), Counter[str]()
    for match in matches:
        own[match.model] += 1
        read[match.model] += 2 - match.games.count(None)
    for model, judged in own.items():
        games = coverage_caveat(read[model], 2 * judged, "games have a verdict")
        both = (coverage_caveat(judged, len(questions), "questions are judged"), games)
        caveats += [f"{model}: {caveat}" for caveat in both if caveat is not None]
    return tuple(caveats)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    """None without values, or where one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
