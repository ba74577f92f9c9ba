"""Win rates between two models' answers to the same held-out prompts.

An answer pair is a win, a draw (half a win) or a loss; pairs with an unreadable score are excluded and counted. The
95 % interval is a bootstrap over prompts. Also given: the win rate at equal lengths (`length_adjusted`, not
AlpacaEval's own regression) and the sign test on wins and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from scipy.stats import binomtest

from metareward.evaluation.alpaca_eval.data import Annotation
from metareward.evaluation.alpaca_eval.length_control import length_adjusted
from metareward.evaluation.held_out import HeldOut, Oracle
from metareward.method.scores import TOLERANCE, mean, valid_scores
from metareward.method.stats import mean_interval
from metareward.types import Candidate, Prompt

ScoreFunction = Callable[[Prompt, Candidate], float | None]


@dataclass(frozen=True, slots=True)
class WinRate:
    """A model's win rate ``against`` an earlier one by ``judge``, in percent with its 95 % interval.

    ``length_adjusted`` is the win rate at equal lengths, ``length_adjusted_error`` its standard error, and ``p_value``
    that of the two-sided sign test of equally likely wins and losses (None without either).
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


def held_out_win_rates(
    records: Sequence[HeldOut], earlier: Mapping[str, Sequence[HeldOut]], oracle: Oracle | None, seed: int
) -> tuple[WinRate, ...]:
    """A model's win rates: by its own judgments against M0, whose answers it judged too, and by the oracle, if there is
    one, against each of ``earlier`` (records by model name).
    """
    found = [win_rate_by("itself", records, seed)]
    if oracle is not None:
        score = partial(_true_score, oracle)
        found += [
            _win_rate(name, "oracle", _compared(records, others, score), seed) for name, others in earlier.items()
        ]
    return tuple(each for each in found if each is not None)


def win_rate_by(judge: str, records: Sequence[HeldOut], seed: int) -> WinRate | None:
    """A model's win rate against M0, by the judgments of both in ``records``; None without readable ones."""
    others = [replace(record, own=record.anchors_K) for record in records]
    return _win_rate("M0", judge, _compared(records, others, _own_mean), seed)


def _true_score(oracle: Oracle, prompt: Prompt, answer: Candidate) -> float:
    return oracle.answer_score(prompt, answer.text)


def _own_mean(_: Prompt, answer: Candidate) -> float | None:
    scores = valid_scores(answer)
    return mean(scores) if scores else None


def _compared(
    records: Sequence[HeldOut], others: Sequence[HeldOut], score: ScoreFunction
) -> list[tuple[str, Annotation]]:
    """One comparison per prompt and sample index that both have: 1 won, 1/2 drawn, 0 lost, None unreadable."""
    rows, answered = [], {other.prompt.id: other.own for other in others}
    for number, record in enumerate(records):
        prompt = record.prompt
        # The models may have different numbers of samples; extra ones have no partner.
        for own, base in zip(record.own, answered.get(prompt.id, ()), strict=False):
            share = _share(score(prompt, own), score(prompt, base))
            rows.append((prompt.id, Annotation(number, share, len(base.text), len(own.text))))
    return rows


def _share(mine: float | None, theirs: float | None) -> float | None:
    if mine is None or theirs is None:
        return None
    return 0.5 if abs(mine - theirs) < TOLERANCE else float(mine > theirs)


def _win_rate(against: str, judge: str, rows: Sequence[tuple[str, Annotation]], seed: int) -> WinRate | None:
    """None if no pair is readable."""
    judged = [(prompt, row.preference) for prompt, row in rows if row.preference is not None]
    if not judged:
        return None
    shares = [share for _, share in judged]
    interval = mean_interval(shares, [prompt for prompt, _ in judged], seed)
    adjusted = length_adjusted([row for _, row in rows])
    wins, losses = shares.count(1.0), shares.count(0.0)
    return WinRate(
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
