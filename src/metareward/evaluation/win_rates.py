"""One model's answers against another's to the same held-out prompts, as a judge sees them.

A prompt is won, drawn or lost; what the judge could not read is left out and counted, never a loss. The win rate is
AlpacaEval's (draws are half a win) with a 95 % interval resampled by prompt; beside it the rate at equal lengths
(a fit of our own and named so) and the sign test on wins and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from scipy.stats import binomtest

from metareward.evaluation.alpaca_eval.data import Annotation
from metareward.evaluation.alpaca_eval.length_control import length_adjusted
from metareward.evaluation.held_out import HeldOut, Oracle
from metareward.method.scores import mean, valid_scores
from metareward.method.stats import mean_interval
from metareward.types import Candidate, Prompt

# Means of scores that differ by less are equal.
_EQUAL = 1e-9
Grade = Callable[[Prompt, Candidate], float | None]


@dataclass(frozen=True, slots=True)
class Duel:
    """How a model fared ``against`` an earlier one before ``judge``. Rates and their ends are in percent.

    ``length_adjusted`` is the win rate at equal lengths and ``length_adjusted_error`` its standard error; ``p_value``:
    of the two-sided sign test that wins and losses are equally likely, None without either.
    """

    against: str
    judge: str
    win_rate: float
    low: float
    high: float
    length_adjusted: float | None
    length_adjusted_error: float | None
    wins: int
    losses: int
    draws: int
    left_out: int
    p_value: float | None


def duels(
    records: Sequence[HeldOut], earlier: Mapping[str, Sequence[HeldOut]], oracle: Oracle | None, seed: int
) -> tuple[Duel, ...]:
    """A model's duels: by the oracle, if there is one, against each of ``earlier`` (records by the model's name), and
    by the model itself against M0, whose answers it judged too.
    """
    found = [duel_by("itself", records, seed)]
    if oracle is not None:
        grade = partial(_true_score, oracle)
        found += [_duel(name, "oracle", _graded(records, others, grade), seed) for name, others in earlier.items()]
    return tuple(duel for duel in found if duel is not None)


def duel_by(judge: str, records: Sequence[HeldOut], seed: int) -> Duel | None:
    """A model's answers against M0's, by the judgments that ``records`` hold of both; None where none can be read."""
    others = [replace(record, own=record.anchors_K) for record in records]
    return _duel("M0", judge, _graded(records, others, _own_mean), seed)


def _true_score(oracle: Oracle, prompt: Prompt, answer: Candidate) -> float:
    return oracle.answer_score(prompt, answer.text)


def _own_mean(_: Prompt, answer: Candidate) -> float | None:
    scores = valid_scores(answer)
    return mean(scores) if scores else None


def _graded(records: Sequence[HeldOut], others: Sequence[HeldOut], grade: Grade) -> list[tuple[str, Annotation]]:
    """One comparison to a prompt and sample that both have; 1 is won, 1/2 drawn, 0 lost, None left out."""
    rows, answered = [], {other.prompt.id: other.own for other in others}
    for number, record in enumerate(records):
        prompt = record.prompt
        # Samples that one of the two lacks are paired with nothing.
        for own, base in zip(record.own, answered.get(prompt.id, ()), strict=False):
            share = _share(grade(prompt, own), grade(prompt, base))
            rows.append((prompt.id, Annotation(number, share, len(base.text), len(own.text))))
    return rows


def _share(mine: float | None, theirs: float | None) -> float | None:
    if mine is None or theirs is None:
        return None
    return 0.5 if abs(mine - theirs) < _EQUAL else float(mine > theirs)


def _duel(against: str, judge: str, rows: Sequence[tuple[str, Annotation]], seed: int) -> Duel | None:
    """None where nothing could be judged."""
    judged = [(prompt, row.preference) for prompt, row in rows if row.preference is not None]
    if not judged:
        return None
    shares = [share for _, share in judged]
    interval = mean_interval(shares, [prompt for prompt, _ in judged], seed)
    adjusted = length_adjusted([row for _, row in rows])
    wins, losses = shares.count(1.0), shares.count(0.0)
    return Duel(
        against=against,
        judge=judge,
        win_rate=100 * interval.mean,
        low=100 * interval.low,
        high=100 * interval.high,
        length_adjusted=adjusted.win_rate if adjusted else None,
        length_adjusted_error=adjusted.standard_error if adjusted else None,
        wins=wins,
        losses=losses,
        draws=len(shares) - wins - losses,
        left_out=len(rows) - len(shares),
        p_value=_sign_test(wins, losses),
    )


def _sign_test(wins: int, losses: int) -> float | None:
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else None
