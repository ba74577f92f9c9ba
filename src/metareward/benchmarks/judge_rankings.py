"""A grading judge against human rankings (Self-Rewarding section 3.1 and Table 4, Meta-Rewarding section 3.3).

Per prompt with responses that a human ranked and the judge scored:

* pairwise accuracy: all pairs of all prompts; the share ordered as by the humans. A tie of the judge counts 1/2, or is
  left out (two figures, named so); pairs that the humans tie have no right order.
* exact match: prompts whose whole order agrees, strictly: any tie is no match.
* 5-best: of the responses with a perfect score, the share that the humans rank first.
* best-of: prompts where the response with the top score is the humans' best; tied top scores share the credit.
* Spearman and Kendall (tau-b): means over the prompts where they are defined, which all-equal scores are not.

A response whose judgments are all unreadable takes no part, and a prompt needs two that do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from metareward.agreement import PairwiseAccuracy, kendall, pairwise_accuracy, same_order, spearman
from metareward.benchmarks.judge_files import Item

_EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class RankingQuality:
    """The measures; None where there is nothing to count."""

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
class _Ranked:
    """One prompt: scores, and human ranks turned so that more is better."""

    scores: tuple[float, ...]
    human: tuple[float, ...]


def ranking_quality(items: Sequence[Item], perfect: float = 5.0) -> RankingQuality:
    """The measures of the scores that the responses of ``items`` carry; ``perfect`` is the top of the judge's scale."""
    ranked = [each for each in map(_ranked, items) if len(each.scores) > 1]
    pairs = sum((pairwise_accuracy(each.scores, each.human) for each in ranked), PairwiseAccuracy(0, 0, 0))
    fives = [hit for each in ranked for hit in _fives(each, perfect)]
    rank_correlations = _defined(spearman(each.scores, each.human) for each in ranked)
    judgments = [response for item in items for response in item.responses]
    return RankingQuality(
        n_prompts=len(ranked),
        n_pairs=pairs.pairs,
        pairwise_accuracy_ties_half=pairs.accuracy,
        pairwise_accuracy_without_ties=pairs.accuracy_without_ties,
        n_tied_pairs=pairs.tied,
        exact_match=_mean([same_order(each.scores, each.human) for each in ranked]),
        five_best=_mean(fives),
        n_fives=len(fives),
        best_of_match_ties_shared=_mean([_best_of(each) for each in ranked]),
        mean_spearman_defined=_mean(rank_correlations),
        n_spearman_defined=len(rank_correlations),
        mean_kendall_tau_b_defined=_mean(_defined(kendall(each.scores, each.human) for each in ranked)),
        n_unparsable=sum(each.scores_N.count(None) for each in judgments),
        n_refused=sum(each.refused for each in judgments),
    )


def _ranked(item: Item) -> _Ranked:
    used = [(each.score, each.rank) for each in item.responses]
    known = [(score, rank) for score, rank in used if score is not None and rank is not None]
    return _Ranked(tuple(score for score, _ in known), tuple(-rank for _, rank in known))


def _fives(each: _Ranked, perfect: float) -> list[bool]:
    best = max(each.human)
    return [human == best for score, human in zip(each.scores, each.human, strict=True) if score >= perfect - _EQUAL]


def _best_of(each: _Ranked) -> float:
    top, best = max(each.scores), max(each.human)
    chosen = [human == best for score, human in zip(each.scores, each.human, strict=True) if score >= top - _EQUAL]
    return sum(chosen) / len(chosen)


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
