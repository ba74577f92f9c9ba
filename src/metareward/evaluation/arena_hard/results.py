"""Arena-Hard's numbers: score, rating, both intervals, style-controlled scores, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import Answer, Match, Version, categories
from metareward.evaluation.arena_hard.score import (
    PERCENTILES,
    Range,
    count_battles,
    rating,
    resample_questions,
    resample_rows,
    scores,
    to_battles,
)
from metareward.evaluation.arena_hard.style import (
    Control,
    StyleControlled,
    StyledBattles,
    style_battles,
    style_controlled,
)

ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model in one category; scores in percent. ``n_unparsable`` counts games without a verdict, refused or not.

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
    n_unparsable: int
    n_refused: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


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

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        low, high = PERCENTILES[self.version]
        return {
            "version": self.version,
            "category": self.category,
            "baseline": self.baseline,
            "interval_percent": high - low,
            "models": [each.as_dict() for each in self.models],
            "style_coefficients": {name: dict(each) for name, each in self.coefficients.items()},
            "length_in": self.length_in,
            "n_without_style": self.n_without_style,
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
    groups = [list(matches)] if version == "v0.1" else []
    if version == "v2":
        groups = [[match for match in matches if match.category == name] for name in categories(matches)]
    return tuple(_category(group, answers, version, (rounds, style_rounds), seed) for group in groups if group)


def _category(
    matches: Sequence[Match],
    answers: Mapping[str, Mapping[str, Answer]],
    version: Version,
    rounds: tuple[int, int],
    seed: int,
) -> ArenaResult:
    baseline = _baseline(matches)
    battles = to_battles(matches, version)
    ends = PERCENTILES[version]
    rows = style_battles(battles, baseline, answers, version) if answers else None
    controls = _controls(rows, version, rounds[1], seed)
    by_question, by_row = (draw(battles, rounds[0], seed, ends) for draw in (resample_questions, resample_rows))
    models = [
        _model(name, score, int(n), matches, answers.get(name, {}), (questions, singly), (i, controls))
        for i, (name, score, n, questions, singly) in enumerate(
            zip(battles.models, scores(battles), count_battles(battles), by_question, by_row, strict=True)
        )
    ]
    return ArenaResult(
        version=version,
        category=matches[0].category,
        baseline=baseline,
        models=tuple(sorted(models, key=lambda each: -1.0 if each.score is None else each.score, reverse=True)),
        coefficients={name: each.coefficients for name, each in controls.items()},
        length_in=None if rows is None else "tokens" if rows.in_tokens else "characters",
        n_without_style=0 if rows is None else rows.left_out,
    )


def _baseline(matches: Sequence[Match]) -> str:
    names = {match.baseline for match in matches}
    if len(names) > 1:
        raise UserError(f"the judgments have two baselines, {' and '.join(sorted(names)[:2])}; fix: score them apart")
    return names.pop()


def _controls(rows: StyledBattles | None, version: Version, rounds: int, seed: int) -> dict[str, StyleControlled]:
    if rows is None:
        return {}
    return {name: style_controlled(rows, name, version, rounds, seed) for name in get_args(Control)}


def _model(
    name: str,
    score: float | None,
    n_battles: int,
    matches: Sequence[Match],
    answers: Mapping[str, Answer],
    ranges: tuple[Range | None, Range | None],
    controls: tuple[int, Mapping[str, StyleControlled]],
) -> ModelScore:
    own = [match for match in matches if match.model == name]
    place, fits = controls
    styles = [answer.style for answer in answers.values()]
    return ModelScore(
        model=name,
        score=score,
        rating=rating(score),
        questions=ranges[0],
        rows=ranges[1],
        controlled={control: fitted.scores_M[place] for control, fitted in fits.items()},
        controlled_ranges={control: each.ranges_M[place] for control, each in fits.items() if each.ranges_M},
        avg_tokens=_mean([style.tokens for style in styles]),
        avg_chars=_mean([style.chars for style in styles]),
        n_questions=len(own),
        n_battles=n_battles,
        n_unparsable=sum(match.games.count(None) for match in own) - sum(match.refused for match in own),
        n_refused=sum(match.refused for match in own),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
