"""A scoring judge against human rankings (Self-Rewarding section 3.1 and Table 4, Meta-Rewarding section 3.3).

Metrics, over the prompts that have at least two responses with a human rank and a readable score:

* pairwise accuracy: the share of response pairs that the judge orders as the humans do, pooled over prompts. A tied
  score counts 1/2 or is excluded (two columns). Pairs with equal human ranks are excluded.
* exact match: prompts whose whole order matches; any tie is a mismatch.
* 5-best: of the responses with the maximum score, the share with the best human rank.
* best-of: prompts where the top-scored response has the best human rank; tied top scores share the credit.
* Spearman and Kendall (tau-b): means over the prompts where they are defined (all-equal scores are undefined).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from metareward.evaluation.judge_quality.data import Item
from metareward.method.stats import (
    EQUAL,
    PairwiseAccuracy,
    kendall,
    mean_or_none,
    pairwise_accuracy,
    same_order,
    spearman,
)

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
    n_unparsable: int
    n_refused: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


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
    prompts = [each for each in map(scored_prompt, items) if len(each.scores) > 1]
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
        n_unparsable=sum(each.scores_N.count(None) for each in responses),
        n_refused=sum(each.refused for each in responses),
    )


def scored_prompt(item: Item) -> ScoredPrompt:
    """The responses that have both a readable score and a human rank."""
    given = [(each.score, each.rank) for each in item.responses]
    known = [(score, rank) for score, rank in given if score is not None and rank is not None]
    return ScoredPrompt(tuple(score for score, _ in known), tuple(-rank for _, rank in known))


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


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
