"""Mean and variance of an answer's scores, and the answer with the largest variance (Meta-Rewarding 2.1 and 2.2).

Only valid scores count, and an answer with too few of them has no score: no number stands for a failed judgment.

**Judgments in rounds.** The papers ask N judgments of every answer, and a pair uses the best and the worst. In rounds
(`Rounds`) the later ones are asked only of answers that could still be chosen, rejected or disputed. The mean of an
answer with m of N judgments is predicted for all N as it is, with the standard deviation sqrt(v (1/m - 1/N)), and its
variance with v sqrt(2 (1/(m-1) - 1/(N-1))). v is the answer's variance, shrunk towards that of the prompt's answers, as
few judgments tell little about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metareward.seeds import derive, pick
from metareward.types import Candidate, PromptRecord, Scored

# Means and variances that differ by less than this are equal; the tolerance only covers rounding.
TOLERANCE = 1e-9
# How many judgments' worth the variance of a prompt's answers counts in that of one answer; and that of the scale.
_SHRINKAGE, _SCALE_WEIGHT = 3.0, 1.0
# The standard deviation of a judge's scores before any is known, as a part of the scale.
_USUAL_DEVIATION = 0.1


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


# --- judgments in rounds ---


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer with the ``scores`` of its readable judgments, of ``asked``; ``chars``: its length in characters.

    ``cut_off``: by the token limit.
    """

    index: int
    scores: tuple[float, ...]
    asked: int
    chars: int
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Rounds:
    """Judgments in rounds: ``size`` of each answer, then as many more of those in doubt, ``n`` at most.

    ``z`` and ``z_variance``: how many standard deviations of a predicted mean and variance an answer must be away from
    being chosen, rejected or disputed, to get no more. One with fewer than ``min_valid`` readable judgments always gets
    more. ``rho`` and ``mask_truncated_completions``: as in `PairRules`. ``disputed``: whether the most disputed answer
    is needed, for the meta-judge. ``low`` and ``high``: the scale.
    """

    n: int
    size: int = 4
    z: float = 1.0
    z_variance: float = 0.5
    min_valid: int = 2
    rho: float = 0.0
    mask_truncated_completions: bool = True
    disputed: bool = True
    low: float = 0.0
    high: float = 5.0

    def more(self, answer: ScoredAnswer) -> int:
        """How many judgments the next round asks of an answer in doubt."""
        return min(self.size, self.n - answer.asked)


@dataclass(frozen=True, slots=True)
class _Predicted:
    answer: ScoredAnswer
    mean: float
    spread: float
    variance: float
    variance_spread: float


def answers_in_doubt(answers: Sequence[ScoredAnswer], rounds: Rounds) -> tuple[int, ...]:
    """The indices of the answers to judge further; empty when best, worst and most disputed are told apart."""
    wanted = {each.index for each in answers if len(each.scores) < max(2, rounds.min_valid)}
    predicted = _predict(answers, rounds)
    masked = rounds.mask_truncated_completions
    wanted |= _for_actor_pair([each for each in predicted if not (masked and each.answer.cut_off)], rounds)
    if rounds.disputed:
        wanted |= _contenders(
            [(each.answer.index, each.variance, rounds.z_variance * each.variance_spread) for each in predicted]
        )
    left = {each.index for each in answers if each.asked < rounds.n}
    return tuple(each.index for each in answers if each.index in wanted & left)


def _predict(answers: Sequence[ScoredAnswer], rounds: Rounds) -> list[_Predicted]:
    """Means and variances of all n judgments of each answer with two readable ones or more."""
    judged = [each for each in answers if len(each.scores) >= 2]
    usual = (_USUAL_DEVIATION * (rounds.high - rounds.low)) ** 2
    squares = math.fsum((variance(each.scores) or 0.0) * (len(each.scores) - 1) for each in judged)
    freedom = sum(len(each.scores) - 1 for each in judged)
    pooled = (squares + _SCALE_WEIGHT * usual) / (freedom + _SCALE_WEIGHT)
    found = []
    for each in judged:
        m, own = len(each.scores), variance(each.scores) or 0.0
        shrunk = (own * (m - 1) + _SHRINKAGE * pooled) / (m - 1 + _SHRINKAGE)
        final = max(m, round(rounds.n * m / each.asked))  # as many of the judgments to come are readable
        left = 1 / m - 1 / final
        of_variance = shrunk * math.sqrt(2 * max(0.0, 1 / (m - 1) - 1 / max(1, final - 1)))
        found.append(_Predicted(each, mean(each.scores), math.sqrt(shrunk * left), own, of_variance))
    return found


def _for_actor_pair(predicted: Sequence[_Predicted], rounds: Rounds) -> set[int]:
    """The answers that decide which is chosen and which rejected."""
    if len(predicted) < 2:
        return set()
    chosen = _in_doubt([(each, each.mean) for each in predicted], rounds, 1)
    rejected = _in_doubt([(each, -each.mean) for each in predicted], rounds, -1)
    return chosen | rejected


def _in_doubt(valued: Sequence[tuple[_Predicted, float]], rounds: Rounds, sign: int) -> set[int]:
    """The answers that may be at the top (``sign`` -1: at the bottom, whose values are negated), if more than one may.

    With length control the shortest answer of the top tier is chosen (the longest of the bottom tier rejected): whoever
    is longer than an answer that is surely in the tier is out of it. While more than one may be chosen, the tier's edge
    matters, and with it the answers that may be the best or the worst.
    """
    bounds = {
        each.answer.index: (value - rounds.z * each.spread, value + rounds.z * each.spread) for each, value in valued
    }
    high, highest = (max(bound[side] for bound in bounds.values()) for side in (0, 1))
    low, lowest = (min(bound[side] for bound in bounds.values()) for side in (0, 1))
    floor = (1 - rounds.rho) * high + rounds.rho * low - TOLERANCE  # the tier's edge at the least, and at the most
    ceiling = (1 - rounds.rho) * highest + rounds.rho * lowest - TOLERANCE
    order = {each.answer.index: (sign * each.answer.chars, each.answer.index) for each, _ in valued}
    shortest = min((order[index] for index, (least, _) in bounds.items() if least >= ceiling), default=None)
    left = {
        index for index, (_, most) in bounds.items() if most >= floor and (shortest is None or order[index] <= shortest)
    }
    if len(left) < 2:
        return set()
    edge = {index for index, (least, most) in bounds.items() if most >= high or least <= lowest}
    return left | edge if rounds.rho > 0 else left


def _contenders(found: Sequence[tuple[int, float, float]]) -> set[int]:
    """The indices whose value, give or take its spread, may be the largest; none if one alone may."""
    if not found:
        return set()
    surely = max(value - spread for _, value, spread in found)
    left = {index for index, value, spread in found if value + spread >= surely - TOLERANCE}
    return left if len(left) > 1 else set()
