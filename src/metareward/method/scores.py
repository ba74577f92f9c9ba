"""From judgments to numbers: an answer's mean and variance, and which answer the judge is least sure of.

Only judgments that hold a score take part, and an answer without enough of them is out: no number ever stands for a
failure (Meta-Rewarding sections 2.1 and 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metareward.seeds import derive, pick
from metareward.types import Candidate, PromptRecord, Scored

# Means and variances that differ by less than this are equal: it covers rounding, never a real difference of scores.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """What the valid judgments of answer ``index`` come to.

    ``variance`` is the sample variance (ddof = 1), so that answers with different numbers of valid judgments can be
    compared, and None for a single judgment. ``chars`` is the answer's length in characters (code points).
    """

    index: int
    mean: float
    variance: float | None
    n_valid: int
    chars: int


def valid_scores(candidate: Candidate) -> tuple[float, ...]:
    """The scores of the answer's readable judgments, in the order of the judgments."""
    readings = (judgment.reading for judgment in candidate.judgments_N)
    return tuple(reading.score for reading in readings if isinstance(reading, Scored))


def mean(values: Sequence[float]) -> float:
    """The mean, rounded once, so that it doesn't depend on the order of ``values`` (not empty)."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float | None:
    """The sample variance (ddof = 1), None for fewer than two values; it doesn't depend on their order."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)


def answer_scores(record: PromptRecord, min_valid: int) -> tuple[AnswerScore, ...]:
    """One `AnswerScore` for each distinct answer with at least ``min_valid`` (at least 1) valid judgments."""
    scored = ((candidate, valid_scores(candidate)) for candidate in record.candidates_K)
    return tuple(
        AnswerScore(candidate.index, mean(values), variance(values), len(values), len(candidate.text))
        for candidate, values in scored
        if len(values) >= max(1, min_valid)
    )


def disputed(candidates: Sequence[Candidate], min_valid: int, seed: int) -> Candidate | None:
    """The answer whose judgments vary most; ties are broken by ``seed``, which the caller derives for this prompt.

    None when no answer has ``max(2, min_valid)`` valid judgments, or when every answer's judgments agree.
    """
    spread = {candidate.index: _spread(candidate, min_valid) for candidate in candidates}
    largest = max(spread.values(), default=0.0)
    if largest <= TOLERANCE:
        return None
    widest = [candidate for candidate in candidates if spread[candidate.index] >= largest - TOLERANCE]
    return pick(sorted(widest, key=lambda candidate: candidate.index), derive(seed, "disputed"))


def _spread(candidate: Candidate, min_valid: int) -> float:
    values = valid_scores(candidate)
    return (variance(values) or 0.0) if len(values) >= max(2, min_valid) else 0.0
