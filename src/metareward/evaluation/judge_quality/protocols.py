"""The papers' own protocols for a judge that grades, by name (Meta-Rewarding section 3.3).

* ``gpt4-chosen`` (Table 3): two answers of the seed model to each held-out prompt, a reference judge asked in both
  orders and kept only where it agrees with itself; the judge scores each answer with the mean of 11 judgments.
* ``self-chosen`` (Table 3): seven answers, of which the judge's best and worst go to the reference judge. Where its two
  orders differ, it ties; the paper doesn't say. Equal scores for all answers are a tie of the judge.
* ``human`` (Table 7): human rankings; Spearman's correlation is averaged over prompts.
* ``meta-judge`` (Table 5): the meta-judge's lean to the first place and to the higher score, from a run's records, in
  the terms of `metareward.monitors.position_statistics`.

Agreement counts a tie 1/2; agreement without ties leaves tied pairs out. Intervals are of 95 %, from drawing prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from metareward.evaluation.judge_quality.data import Item, Pair
from metareward.evaluation.judge_quality.metrics import mean
from metareward.evaluation.judge_quality.sections import CHANCE, LENGTH, graded_by_length
from metareward.method.stats import mean_interval, pairwise_accuracy, spearman
from metareward.types import Tied, Won

Name = Literal["gpt4-chosen", "self-chosen", "human", "meta-judge"]

_EQUAL = 1e-9
Rows = list[tuple[str, float]]  # (prompt id, 1, 1/2 or 0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one judge agrees with the reference; None where there is nothing to count.

    ``n_left_out`` pairs have no usable reference, or a score that couldn't be read.
    """

    judge: str
    agreement: float | None
    low: float | None
    high: float | None
    agreement_without_ties: float | None
    spearman: float | None
    n_pairs: int
    n_ties: int
    n_left_out: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def gpt4_chosen(pairs: Sequence[Pair], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge, the length-only judge and chance on the pairs whose reference agrees with itself."""
    kept = [pair for pair in pairs if pair.label in (1, 2)]
    by_length = [Pair(graded_by_length([p.item])[0], p.label, p.subset, p.generators) for p in kept]
    left_out = len(pairs) - len(kept)
    return (
        _agreement(judge, [_hit(pair) for pair in kept], left_out, seed),
        _agreement(LENGTH, [_hit(pair) for pair in by_length], left_out, seed),
        _chance(len(kept), None),
    )


def _hit(pair: Pair) -> tuple[str, float | None]:
    one, other = (response.score for response in pair.item.responses)
    if one is None or other is None:
        return pair.item.id, None
    return pair.item.id, _share(one - other if pair.label == 1 else other - one)


def _share(lead: float) -> float:
    """1 for a lead of the reference's winner, 1/2 for a tie, else 0."""
    return 0.5 if abs(lead) <= _EQUAL else float(lead > 0)


def self_chosen(items: Sequence[Item], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge on its own best and worst answers, and the length-only judge and chance on the same pairs."""
    rows = [_judged(item) for item in items]
    lengths = [_longer(item) for item in items]
    return (
        _agreement(judge, [row for row in rows if row[1] is not None], _absent(rows), seed),
        _agreement(LENGTH, [row for row in lengths if row[1] is not None], _absent(lengths), seed),
        _chance(len(rows) - _absent(rows), None),
    )


def _absent(rows: Iterable[tuple[str, float | None]]) -> int:
    return sum(share is None for _, share in rows)


def chosen_by_judge(item: Item) -> tuple[int, int] | None:
    """The indices of the best and the worst answer, the first of equals; None when all readable scores are equal, or
    fewer than two are there."""
    scores = {i: each.score for i, each in enumerate(item.responses)}
    known = {i: score for i, score in scores.items() if score is not None}
    if len(known) < 2 or max(known.values()) - min(known.values()) <= _EQUAL:
        return None
    return max(known, key=lambda i: known[i]), min(known, key=lambda i: known[i])


def _judged(item: Item) -> tuple[str, float | None]:
    chosen = chosen_by_judge(item)
    if chosen is None:
        readable = sum(each.score is not None for each in item.responses)
        return item.id, 0.5 if readable > 1 else None
    return item.id, _reference(item, *chosen)


def _longer(item: Item) -> tuple[str, float | None]:
    """Whether the reference prefers the longer one of the two that the judge named."""
    chosen = chosen_by_judge(item)
    if chosen is None:
        return item.id, None
    longer, shorter = sorted(chosen, key=lambda i: len(item.responses[i].text), reverse=True)
    if len(item.responses[longer].text) == len(item.responses[shorter].text):
        return item.id, 0.5
    return item.id, _reference(item, longer, shorter)


def _reference(item: Item, winner: int, loser: int) -> float | None:
    """1 if the reference prefers ``winner``, 0 if ``loser``, 1/2 if it ties or its orders differ; None: not known."""
    about = [each for each in item.comparisons if {each.first, each.second} == {winner, loser}]
    said = {_side(each.verdict, winner) for each in about}
    if not said or None in said:
        return None
    return said.pop() if len(said) == 1 else 0.5


def _side(verdict: Won | Tied | None, winner: int) -> float | None:
    if isinstance(verdict, Won):
        return float(verdict.winner == winner)
    return None if verdict is None else 0.5


def human(items: Sequence[Item], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge, the length-only judge and chance against human rankings."""
    judges = ((judge, items), (LENGTH, graded_by_length(items)))
    found = tuple(_ranked(name, those, seed) for name, those in judges)
    return (*found, _chance(found[1].n_pairs, 0.0))


def _ranked(judge: str, items: Sequence[Item], seed: int) -> Agreement:
    rows: Rows = []
    correlations = []
    possible = 0
    for item in items:
        known = [
            (each.score, -each.rank) for each in item.responses if each.score is not None and each.rank is not None
        ]
        scores, ranks = [score for score, _ in known], [rank for _, rank in known]
        counted = pairwise_accuracy(scores, ranks)
        every = [each.rank for each in item.responses if each.rank is not None]
        possible += pairwise_accuracy(every, every).pairs
        rows += [(item.id, 1.0)] * counted.right + [(item.id, 0.5)] * counted.tied + [(item.id, 0.0)] * counted.wrong
        correlations.append(spearman(scores, ranks))
    defined = [value for value in correlations if value is not None]
    found = _agreement(judge, rows, possible - len(rows), seed)
    return Agreement(**(asdict(found) | {"spearman": mean(defined)}))


def _agreement(judge: str, rows: Sequence[tuple[str, float | None]], left_out: int, seed: int) -> Agreement:
    known = [(group, share) for group, share in rows if share is not None]
    shares = [share for _, share in known]
    interval = mean_interval(shares, [group for group, _ in known], seed) if known else None
    return Agreement(
        judge=judge,
        agreement=interval.mean if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        agreement_without_ties=mean([share for share in shares if share != 0.5]),
        spearman=None,
        n_pairs=len(known),
        n_ties=shares.count(0.5),
        n_left_out=left_out + len(rows) - len(known),
    )


def _chance(pairs: int, correlation: float | None) -> Agreement:
    return Agreement(CHANCE, 0.5, None, None, 0.5, correlation, pairs, 0, 0)
