"""The paper's protocols for a scoring judge, by name (Meta-Rewarding section 3.3).

* ``gpt4-chosen`` (Table 3): two answers of the seed model to each held-out prompt; the reference judge compares them in
  both orders, and only pairs where both orders agree are used. The judge's score is the mean of 11 judgments.
* ``self-chosen`` (Table 3): seven answers; the reference judge compares the judge's best and worst. Different verdicts
  in the two orders count as a tie (the paper doesn't say). Equal scores for all answers are a tie of the judge.
* ``human`` (Table 7): human rankings; Spearman's correlation is averaged over prompts.
* ``meta-judge`` (Table 5): the meta-judge's position bias and preference for the higher score, from a run's records
  (`metareward.method.diagnostics.position_statistics`).

Agreement counts a tie 1/2; agreement without ties excludes tied pairs. Intervals: 95 % bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from metareward.evaluation.judge_quality.data import Item, Pair
from metareward.evaluation.judge_quality.rankings import CHANCE, LENGTH, scored_by_length, scored_prompt
from metareward.method.stats import EQUAL, mean_interval, mean_or_none, pairwise_accuracy, spearman
from metareward.types import Tied, Won

ProtocolName = Literal["gpt4-chosen", "self-chosen", "human", "meta-judge"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """One judge's agreement with the reference; None where nothing can be counted.

    ``n_left_out`` counts pairs without a usable reference verdict or without a readable score.
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
    """The judge, the length-only judge and chance, on pairs whose reference verdict is the same in both orders."""
    kept = [pair for pair in pairs if pair.label in (1, 2)]
    by_length = [Pair(scored_by_length([p.item])[0], p.label, p.subset, p.generators) for p in kept]
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
    """1 if the reference's winner scores higher, 1/2 for a tie, else 0."""
    return 0.5 if abs(lead) <= EQUAL else float(lead > 0)


def self_chosen(items: Sequence[Item], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge, the length-only judge and chance, on the pairs of the judge's best and worst answers."""
    rows = [_best_against_worst(item) for item in items]
    lengths = [_longer_against_shorter(item) for item in items]
    return (
        _agreement(judge, rows, 0, seed),
        _agreement(LENGTH, lengths, 0, seed),
        _chance(sum(share is not None for _, share in rows), None),
    )


def chosen_by_judge(item: Item) -> tuple[int, int] | None:
    """The indices of the best and the worst answer, the first of equals; None when all readable scores are equal, or
    fewer than two are there."""
    scores = {i: each.score for i, each in enumerate(item.responses)}
    known = {i: score for i, score in scores.items() if score is not None}
    if len(known) < 2 or max(known.values()) - min(known.values()) <= EQUAL:
        return None
    return max(known, key=lambda i: known[i]), min(known, key=lambda i: known[i])


def _best_against_worst(item: Item) -> tuple[str, float | None]:
    chosen = chosen_by_judge(item)
    if chosen is None:
        readable = sum(each.score is not None for each in item.responses)
        return item.id, 0.5 if readable > 1 else None
    return item.id, _reference_verdict(item, *chosen)


def _longer_against_shorter(item: Item) -> tuple[str, float | None]:
    """Whether the reference prefers the longer of the judge's best and worst answers."""
    chosen = chosen_by_judge(item)
    if chosen is None:
        return item.id, None
    longer, shorter = sorted(chosen, key=lambda i: len(item.responses[i].text), reverse=True)
    if len(item.responses[longer].text) == len(item.responses[shorter].text):
        return item.id, 0.5
    return item.id, _reference_verdict(item, longer, shorter)


def _reference_verdict(item: Item, winner: int, loser: int) -> float | None:
    """1 if the reference prefers ``winner``, 0 if ``loser``, 1/2 for a tie or different orders; None if unknown."""
    comparisons = [each for each in item.comparisons if {each.first, each.second} == {winner, loser}]
    shares = {_side(each.verdict, winner) for each in comparisons}
    if not shares or None in shares:
        return None
    return shares.pop() if len(shares) == 1 else 0.5


def _side(verdict: Won | Tied | None, winner: int) -> float | None:
    if isinstance(verdict, Won):
        return float(verdict.winner == winner)
    return None if verdict is None else 0.5


def human(items: Sequence[Item], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge, the length-only judge and chance against human rankings."""
    own, by_length = _against_ranks(judge, items, seed), _against_ranks(LENGTH, scored_by_length(items), seed)
    return own, by_length, _chance(by_length.n_pairs, 0.0)


def _against_ranks(judge: str, items: Sequence[Item], seed: int) -> Agreement:
    rows: list[tuple[str, float]] = []
    correlations = []
    possible = 0
    for item in items:
        known = scored_prompt(item)
        counted = pairwise_accuracy(known.scores, known.quality)
        every = [each.rank for each in item.responses if each.rank is not None]
        possible += pairwise_accuracy(every, every).pairs
        rows += [(item.id, 1.0)] * counted.right + [(item.id, 0.5)] * counted.tied + [(item.id, 0.0)] * counted.wrong
        correlations.append(spearman(known.scores, known.quality))
    defined = [value for value in correlations if value is not None]
    return replace(_agreement(judge, rows, possible - len(rows), seed), spearman=mean_or_none(defined))


def _agreement(judge: str, rows: Sequence[tuple[str, float | None]], left_out: int, seed: int) -> Agreement:
    known = [(group, share) for group, share in rows if share is not None]
    shares = [share for _, share in known]
    interval = mean_interval(shares, [group for group, _ in known], seed) if known else None
    return Agreement(
        judge=judge,
        agreement=interval.mean if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        agreement_without_ties=mean_or_none([share for share in shares if share != 0.5]),
        spearman=None,
        n_pairs=len(known),
        n_ties=shares.count(0.5),
        n_left_out=left_out + len(rows) - len(known),
    )


def _chance(pairs: int, correlation: float | None) -> Agreement:
    return Agreement(CHANCE, 0.5, None, None, 0.5, correlation, pairs, 0, 0)
