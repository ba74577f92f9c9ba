"""A scoring judge against human rankings, and the protocols of Meta-Rewarding section 3.3.

Metrics of rankings (Self-Rewarding section 3.1 and Table 4), over the prompts that have at least two responses with a
human rank and a readable score:

* pairwise accuracy: the share of response pairs that the judge orders as the humans do, pooled over prompts. A tied
  score counts 1/2 or is excluded (two columns). Pairs with equal human ranks are excluded.
* exact match: prompts whose whole order matches; any tie is a mismatch.
* 5-best: of the responses with the maximum score, the share with the best human rank.
* best-of: prompts where the top-scored response has the best human rank; tied top scores share the credit.
* Spearman and Kendall (tau-b): means over the prompts where they are defined (all-equal scores are undefined).

RewardBench 2 (arXiv 2506.01937; allenai/reward-bench, rewardbench/utils.py) is the mean of six subsets, five with
best-of. Ties has prompts with several right answers ("tied:1"), each with a reference prompt that has one ("ref:1"):

    score = 0.3 right(tied) + 0.3 right(ref) + 0.2 mean[gap(tied) > spread] + 0.2 mean[least > spread]
            + 0.01 mean tanh(least / spread - 1)                                  least = min(gap(ref), gap(tied))

gap is the lowest score of a right answer minus the highest of a wrong one, right the share of prompts whose gap is
above 0, and spread the highest minus the lowest score of right answers of the tied prompt; 0 / 0 counts 0 in the last
term.

The paper's protocols by name:

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

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from metareward.evaluation.judge_quality.data import Item, Pair
from metareward.method.stats import (
    EQUAL,
    PairwiseAccuracy,
    kendall,
    mean_interval,
    mean_or_none,
    pairwise_accuracy,
    same_order,
    spearman,
)
from metareward.types import Won

ProtocolName = Literal["gpt4-chosen", "self-chosen", "human", "meta-judge"]

# The two baseline judges of every table. Human preference correlates with length: on OpenAssistant's English trees,
# "score = number of characters" orders about 70 % of the pairs as humans do.
LENGTH, CHANCE = "length only", "chance"


@dataclass(frozen=True, slots=True)
class RankingQuality:
    """The metrics; None where nothing can be counted."""

    n_prompts: int
    n_pairs: int
    pairwise_accuracy_ties_half: float | None
    pairwise_accuracy_without_ties: float | None
    n_tied_pairs: int
    exact_match: float | None
    five_best: float | None
    n_fives: int
    best_of_match_ties_shared: float | None
    mean_spearman_defined: float | None
    n_spearman_defined: int
    mean_kendall_tau_b_defined: float | None
    n_unreadable: int
    n_refused: int


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The responses of one prompt that have both a score and a human rank; ``quality`` is the negated rank."""

    scores: tuple[float, ...]
    quality: tuple[float, ...]

    def best_ranked(self, score: float) -> list[bool]:
        """For each response that scores at least ``score``: whether it has the best human rank."""
        best, lowest = max(self.quality), score - EQUAL
        return [rank == best for given, rank in zip(self.scores, self.quality, strict=True) if given >= lowest]


def ranking_quality(items: Sequence[Item], max_score: float = 5.0) -> RankingQuality:
    """The metrics of the scores that ``items`` carry; ``max_score`` is the top of the judge's scale."""
    prompts = [each for each in map(_scored_prompt, items) if len(each.scores) > 1]
    pairs = sum((pairwise_accuracy(each.scores, each.quality) for each in prompts), PairwiseAccuracy(0, 0, 0))
    fives = [hit for each in prompts for hit in each.best_ranked(max_score)]
    top_scored = [each.best_ranked(max(each.scores)) for each in prompts]
    rank_correlations = _defined(spearman(each.scores, each.quality) for each in prompts)
    responses = [response for item in items for response in item.responses]
    return RankingQuality(
        n_prompts=len(prompts),
        n_pairs=pairs.pairs,
        pairwise_accuracy_ties_half=pairs.accuracy,
        pairwise_accuracy_without_ties=pairs.accuracy_without_ties,
        n_tied_pairs=pairs.tied,
        exact_match=mean_or_none([same_order(each.scores, each.quality) for each in prompts]),
        five_best=mean_or_none(fives),
        n_fives=len(fives),
        best_of_match_ties_shared=mean_or_none([sum(hits) / len(hits) for hits in top_scored]),
        mean_spearman_defined=mean_or_none(rank_correlations),
        n_spearman_defined=len(rank_correlations),
        mean_kendall_tau_b_defined=mean_or_none(_defined(kendall(each.scores, each.quality) for each in prompts)),
        n_unreadable=sum(each.scores_N.count(None) for each in responses),
        n_refused=sum(each.refused for each in responses),
    )


def _scored_prompt(item: Item) -> ScoredPrompt:
    """The responses that have both a readable score and a human rank."""
    given = [(each.score, each.rank) for each in item.responses]
    known = [(score, rank) for score, rank in given if score is not None and rank is not None]
    return ScoredPrompt(tuple(score for score, _ in known), tuple(-rank for _, rank in known))


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# --- RewardBench 2 ---

TIES = "Ties"
REWARD_BENCH_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus", TIES)
_TIES_ID = re.compile(r"(ref|tied):(\d+)\Z")


@dataclass(frozen=True, slots=True)
class TiesScore:
    """The score of the subset Ties and its parts, all shares but ``margin``, which is from -1 to 1.

    ``n_left_out``: prompts without a readable score of every answer.
    """

    score: float
    accuracy_tied: float
    accuracy_reference: float
    gap_above_spread: float
    least_gap_above_spread: float
    margin: float
    n_prompts: int
    n_left_out: int


def ties_score(items: Sequence[Item]) -> TiesScore | None:
    """The score of the items of the subset Ties; None where there is no pair of prompts with readable scores."""
    scores: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    named = [(item, found) for item in items if item.subset == TIES and (found := _TIES_ID.search(item.id))]
    for item, found in named:
        given = [(each.score, each.rank == 0) for each in item.responses]
        known = [(score, right) for score, right in given if score is not None]
        sides = [[score for score, right in known if right == side] for side in (True, False)]
        if len(known) == len(given) and all(sides):
            scores[found[1], found[2]] = (sides[0], sides[1])
    gaps = {key: min(right) - max(wrong) for key, (right, wrong) in scores.items()}
    numbers = [number for kind, number in gaps if kind == "tied" and ("ref", number) in gaps]
    if not numbers:
        return None
    tied, reference = (
        fmean(gap > EQUAL for (kind, _), gap in gaps.items() if kind == side) for side in ("tied", "ref")
    )
    right = [scores["tied", number][0] for number in numbers]
    spreads = [max(each) - min(each) for each in right]
    own = [gaps["tied", number] for number in numbers]
    least = [min(gaps["ref", number], gaps["tied", number]) for number in numbers]
    above, least_above = (
        fmean(gap - spread > EQUAL for gap, spread in zip(side, spreads, strict=True)) for side in (own, least)
    )
    margin = fmean(map(_margin, least, spreads))
    score = 0.3 * tied + 0.3 * reference + 0.2 * above + 0.2 * least_above + 0.01 * margin
    return TiesScore(score, tied, reference, above, least_above, margin, len(scores), len(named) - len(scores))


def _margin(gap: float, spread: float) -> float:
    if spread > EQUAL:
        return math.tanh(gap / spread - 1)
    return 0.0 if abs(gap) <= EQUAL else math.copysign(1.0, gap)


def reward_bench_2_score(subsets: Mapping[str, float | None]) -> float | None:
    """The mean of the six subsets' scores; None where one is missing."""
    scores = [subsets.get(name) for name in REWARD_BENCH_2]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def score_histogram(items: Sequence[Item]) -> dict[str, int]:
    """How often each single score was given, in ascending order of the score."""
    counts = Counter(score for item in items for each in item.responses for score in each.scores_N if score is not None)
    return {f"{score:g}": counts[score] for score in sorted(counts)}


def scored_by_length(items: Sequence[Item]) -> tuple[Item, ...]:
    """``items`` scored by the length-only judge: the number of characters is every response's only score."""
    return tuple(
        replace(item, responses=tuple(replace(each, scores_N=(float(len(each.text)),)) for each in item.responses))
        for item in items
    )


def chance_ranking_quality(items: Sequence[Item]) -> Mapping[str, float | None]:
    """The expected metrics of `ranking_quality` for random scores without ties."""
    ranks = [[each.rank for each in item.responses if each.rank is not None] for item in items]
    compared = [each for each in ranks if len(each) > 1]
    firsts, sizes = [each.count(min(each)) for each in compared], [len(each) for each in compared]
    orders = [1 / math.factorial(len(each)) if len(set(each)) == len(each) else 0.0 for each in compared]
    return {
        "pairwise_accuracy_ties_half": 0.5,
        "pairwise_accuracy_without_ties": 0.5,
        "exact_match": mean_or_none(orders),
        "five_best": sum(firsts) / sum(sizes) if sizes else None,
        "best_of_match_ties_shared": mean_or_none([n / size for n, size in zip(firsts, sizes, strict=True)]),
        "mean_spearman_defined": 0.0,
        "mean_kendall_tau_b_defined": 0.0,
    }


# --- the paper's protocols ---


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
    """1 if the reference's winner scores higher, 1/2 for a tie, else 0; None where a score is unreadable."""
    one, other = (response.score for response in pair.item.responses)
    if one is None or other is None:
        return pair.item.id, None
    lead = one - other if pair.label == 1 else other - one
    return pair.item.id, 0.5 if abs(lead) <= EQUAL else float(lead > 0)


def self_chosen(items: Sequence[Item], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge, the length-only judge and chance, on the pairs of the judge's best and worst answers."""
    rows: list[tuple[str, float | None]] = []
    lengths: list[tuple[str, float | None]] = []
    for item in items:
        chosen = chosen_by_judge(item)
        if chosen is None:
            readable = sum(each.score is not None for each in item.responses)
            rows.append((item.id, 0.5 if readable > 1 else None))
            lengths.append((item.id, None))
            continue
        rows.append((item.id, _reference_verdict(item, *chosen)))
        # Whether the reference prefers the longer of the two.
        chars = [len(item.responses[i].text) for i in chosen]
        longer, shorter = chosen if chars[0] > chars[1] else chosen[::-1]
        lengths.append((item.id, 0.5 if chars[0] == chars[1] else _reference_verdict(item, longer, shorter)))
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


def _reference_verdict(item: Item, winner: int, loser: int) -> float | None:
    """1 if the reference prefers ``winner``, 0 if ``loser``, 1/2 for a tie or different orders; None if unknown."""
    shares: set[float | None] = set()
    for each in item.comparisons:
        if {each.first, each.second} == {winner, loser}:
            verdict = each.verdict
            tied = None if verdict is None else 0.5
            shares.add(float(verdict.winner == winner) if isinstance(verdict, Won) else tied)
    if not shares or None in shares:
        return None
    return shares.pop() if len(shares) == 1 else 0.5


def human(items: Sequence[Item], judge: str, seed: int = 0) -> tuple[Agreement, ...]:
    """The judge, the length-only judge and chance against human rankings."""
    own, by_length = _against_ranks(judge, items, seed), _against_ranks(LENGTH, scored_by_length(items), seed)
    return own, by_length, _chance(by_length.n_pairs, 0.0)


def _against_ranks(judge: str, items: Sequence[Item], seed: int) -> Agreement:
    rows: list[tuple[str, float]] = []
    correlations = []
    possible = 0
    for item in items:
        known = _scored_prompt(item)
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
