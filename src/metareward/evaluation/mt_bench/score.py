"""MT-Bench's numbers: mean scores overall, per turn, per category, and per category and turn.

The overall score is the mean over all readable scores, not of the two turns' means. Unreadable scores are excluded and
counted. Repeated rows enter the means again, as upstream, and are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from metareward.evaluation.mt_bench.data import Grade, Question
from metareward.method.stats import mean_or_none


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """The means of one category; None without a readable score."""

    average: float | None
    turn1: float | None
    turn2: float | None
    n_valid: int


@dataclass(frozen=True, slots=True)
class MtBenchScore:
    """One model. ``n_missing`` counts turns of known questions without a judgment."""

    model: str
    average: float | None
    turn1: float | None
    turn2: float | None
    categories: Mapping[str, CategoryScore]
    n_valid: int
    n_failed: int
    n_refused: int
    n_missing: int
    n_repeated: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def evaluate(grades: Sequence[Grade], questions: Mapping[int, Question] | None = None) -> tuple[MtBenchScore, ...]:
    """The score of each model, the best first. ``questions`` are needed for categories and missing turns."""
    models = dict.fromkeys(grade.model for grade in grades)
    found = [_model(name, [grade for grade in grades if grade.model == name], questions or {}) for name in models]
    return tuple(sorted(found, key=lambda each: -1.0 if each.average is None else each.average, reverse=True))


def _model(name: str, grades: Sequence[Grade], questions: Mapping[int, Question]) -> MtBenchScore:
    judged = Counter((grade.question, grade.turn) for grade in grades)
    unread = [grade for grade in grades if grade.score is None]
    by_category: dict[str, list[Grade]] = {}
    for grade in grades:
        if grade.question in questions:
            by_category.setdefault(questions[grade.question].category, []).append(grade)
    return MtBenchScore(
        model=name,
        average=_mean(grades),
        turn1=_mean(_turn(grades, 1)),
        turn2=_mean(_turn(grades, 2)),
        categories={category: _category(those) for category, those in sorted(by_category.items())},
        n_valid=len(grades) - len(unread),
        n_failed=sum(not grade.refused for grade in unread),
        n_refused=sum(grade.refused for grade in unread),
        n_missing=sum((question, turn) not in judged for question in questions for turn in (1, 2)),
        n_repeated=len(grades) - len(judged),
    )


def _category(grades: Sequence[Grade]) -> CategoryScore:
    valid = sum(grade.score is not None for grade in grades)
    return CategoryScore(_mean(grades), _mean(_turn(grades, 1)), _mean(_turn(grades, 2)), valid)


def _turn(grades: Sequence[Grade], turn: int) -> list[Grade]:
    return [grade for grade in grades if grade.turn == turn]


def _mean(grades: Iterable[Grade]) -> float | None:
    return mean_or_none([grade.score for grade in grades if grade.score is not None])
