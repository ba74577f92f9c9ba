"""Mean and variance of an answer's scores, and the answer with the largest variance (Meta-Rewarding 2.1 and 2.2).

Only valid scores count, and an answer with too few of them has no score: no number stands for a failed judgment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metareward.seeds import derive, pick
from metareward.types import Candidate, PromptRecord, Scored

# Means and variances that differ by less than this are equal; the tolerance only covers rounding.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The score of answer ``index``: the mean of its ``n_valid`` valid judgments' scores, or its reward.

    ``variance`` is the sample variance (ddof = 1), so that answers with different numbers of valid judgments can be
    compared; None for a single judgment and for a reward. ``uncertainty``: the standard error of ``mean``, from the
    differences of the judgments and the judge's own probabilities (`uncertainty`); None where neither is known.
    ``chars`` is the answer's length in characters (code points).
    """

    index: int
    mean: float
    variance: float | None
    n_valid: int
    chars: int
    uncertainty: float | None = None


def valid_scores(candidate: Candidate) -> tuple[float, ...]:
    """The scores of the answer's valid judgments, in their order."""
    readings = (judgment.reading for judgment in candidate.judgments_N)
    return tuple(reading.score for reading in readings if isinstance(reading, Scored))


def mean(values: Sequence[float]) -> float:
    """The mean of ``values`` (not empty), rounded once, so that their order does not matter."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float | None:
    """The sample variance (ddof = 1), None for fewer than two values; their order does not matter."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)


def uncertainty(readings: Sequence[Scored]) -> float | None:
    """The standard error of the mean of N scores: sqrt((v + d) / N) with the sample variance v of the scores and the
    mean d of the squares of their deviations under the judge's probabilities; what is unknown of v and d is left out.
    """
    spread = variance([reading.score for reading in readings])
    squares = [reading.deviation**2 for reading in readings if reading.deviation is not None]
    known = [each for each in (spread, mean(squares) if squares else None) if each is not None]
    return math.sqrt(math.fsum(known) / len(readings)) if known else None


def answer_scores(record: PromptRecord, min_valid: int) -> tuple[AnswerScore, ...]:
    """One `AnswerScore` for each distinct answer with at least ``min_valid`` (at least 1) valid judgments.

    If any answer of the record has a reward, the scores are the rewards, and answers without a reward have no score.
    """
    rewards = {each.index: each.reward for each in record.candidates_K if each.reward is not None}
    scores = []
    for candidate in record.candidates_K:
        values, chars = valid_scores(candidate), len(candidate.text)
        readings = [each.reading for each in candidate.judgments_N if isinstance(each.reading, Scored)]
        if candidate.index in rewards:
            scores.append(AnswerScore(candidate.index, rewards[candidate.index], None, len(values), chars))
        elif not rewards and len(values) >= max(1, min_valid):
            scores.append(
                AnswerScore(candidate.index, mean(values), variance(values), len(values), chars, uncertainty(readings))
            )
    return tuple(scores)


def disputed(candidates: Sequence[Candidate], min_valid: int, seed: int) -> Candidate | None:
    """The answer whose scores vary most; ``seed``, derived for this prompt, breaks ties.

    None when no answer has ``max(2, min_valid)`` valid judgments, or when the scores of each answer are all equal.
    """
    spread: dict[int, float] = {}
    for candidate in candidates:
        values = valid_scores(candidate)
        spread[candidate.index] = (variance(values) or 0.0) if len(values) >= max(2, min_valid) else 0.0
    largest = max(spread.values(), default=0.0)
    if largest <= TOLERANCE:
        return None
    widest = [candidate for candidate in candidates if spread[candidate.index] >= largest - TOLERANCE]
    return pick(sorted(widest, key=lambda candidate: candidate.index), derive(seed, "disputed"))
