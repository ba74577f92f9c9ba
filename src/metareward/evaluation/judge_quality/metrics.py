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

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import Item, Pair, PairVerdicts, Winner
from metareward.method.stats import PairwiseAccuracy, kendall, pairwise_accuracy, same_order, spearman

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


# --- A judge against pairwise labels: accuracy by several named rules, agreement of both orders with each other, kappa.
#
# The label names the better of two outputs. Every pair is judged in one order (a grading judge) or in both.
#
# * accuracy: mean over the orders; a tie of the judge counts 1/2, an unreadable verdict earns nothing (LLMBar's rule).
# * accuracy_readable: over the readable verdicts alone. accuracy_without_ties: over those that name a winner.
# * accuracy_both_orders: pairs won by the label in both orders.
# * positional_agreement: pairs with the same verdict in both orders, two unreadable ones included (LLMBar's rule);
#   positional_agreement_readable: among the pairs with two readable ones.
# * kappa: Cohen's, of label and verdict, mean over the orders; kappa_between_orders: of the two orders' verdicts. An
#   unreadable verdict is a class of its own.
#
# Pairs that the label ties count in accuracy_three_classes alone, where a tie is a third answer.


Orders = tuple[Winner | None, ...]


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair with a label, what a judge said of it, and what its biases are measured by."""

    id: str
    label: Winner
    winners: Orders
    chars: tuple[int, int]
    generators: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class PairQuality:
    """The measures; None where there is nothing to count."""

    n_pairs: int
    n_verdicts: int
    n_unparsable: int
    n_ties: int
    n_label_ties: int
    accuracy: float | None
    accuracy_by_order: tuple[float | None, ...]
    accuracy_both_orders: float | None
    accuracy_readable: float | None
    accuracy_without_ties: float | None
    accuracy_three_classes: float | None
    positional_agreement: float | None
    positional_agreement_readable: float | None
    kappa: float | None
    kappa_between_orders: float | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def judged_pairs(pairs: Sequence[Pair], verdicts: Sequence[PairVerdicts]) -> tuple[JudgedPair, ...]:
    """The labelled pairs that have verdicts. Raises `UserError` for a verdict about no pair."""
    by_id: Mapping[str, PairVerdicts] = {each.id: each for each in verdicts}
    unknown = by_id.keys() - {pair.item.id for pair in pairs}
    if unknown:
        raise UserError(f"verdicts: {min(unknown)!r} is no pair's id; fix: give the pairs that were judged")
    return tuple(
        JudgedPair(pair.item.id, pair.label, by_id[pair.item.id].winners, _chars(pair), pair.generators)
        for pair in pairs
        if pair.label is not None and pair.item.id in by_id
    )


def _chars(pair: Pair) -> tuple[int, int]:
    one, other = pair.item.responses
    return len(one.text), len(other.text)


def pair_quality(judged: Sequence[JudgedPair]) -> PairQuality:
    """The measures of one judge. Pairs judged in both orders and in one don't mix: raises `ValueError`."""
    orders = _orders(judged)
    decided = [pair for pair in judged if pair.label]
    said = [(pair.label, winner) for pair in decided for winner in pair.winners]
    all_said = [(pair.label, winner) for pair in judged for winner in pair.winners]
    both = [pair for pair in judged if len(pair.winners) == 2]
    readable = [pair for pair in both if None not in pair.winners]
    return PairQuality(
        n_pairs=len(judged),
        n_verdicts=len(all_said),
        n_unparsable=sum(winner is None for _, winner in all_said),
        n_ties=sum(winner == 0 for _, winner in all_said),
        n_label_ties=len(judged) - len(decided),
        accuracy=mean([credit(*each) for each in said]),
        accuracy_by_order=tuple(mean([credit(pair.label, pair.winners[i]) for pair in decided]) for i in range(orders)),
        accuracy_both_orders=mean([set(pair.winners) == {pair.label} for pair in decided]) if both else None,
        accuracy_readable=mean([credit(*each) for each in said if each[1] is not None]),
        accuracy_without_ties=mean([label == winner for label, winner in said if winner]),
        accuracy_three_classes=mean([label == winner for label, winner in all_said]),
        positional_agreement=mean([len(set(pair.winners)) == 1 for pair in both]),
        positional_agreement_readable=mean([len(set(pair.winners)) == 1 for pair in readable]),
        kappa=_mean_kappa(judged, orders),
        kappa_between_orders=cohen_kappa([(pair.winners[0], pair.winners[1]) for pair in both]),
    )


def _orders(judged: Sequence[JudgedPair]) -> int:
    counts = {len(pair.winners) for pair in judged}
    if len(counts) > 1:
        raise ValueError(f"some pairs are judged in {min(counts)} order, some in {max(counts)}")
    return counts.pop() if counts else 0


def credit(label: Winner, winner: Winner | None) -> float:
    """What a verdict earns: 1 for the label's winner, 1/2 for a tie, nothing for the other or an unreadable one."""
    return 0.5 if winner == 0 else float(winner == label)


def _mean_kappa(judged: Sequence[JudgedPair], orders: int) -> float | None:
    values = [cohen_kappa([(pair.label, pair.winners[i]) for pair in judged]) for i in range(orders)]
    return mean([value for value in values if value is not None])


def cohen_kappa(pairs: Sequence[tuple[object, object]]) -> float | None:
    """(observed - expected) / (1 - expected) agreement; None without pairs, or when both sides always say the same."""
    if not pairs:
        return None
    one, other = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / len(pairs)
    expected = sum(one[label] * other[label] for label in one) / len(pairs) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return fmean(values) if values else None


# --- LLMBar's published statistics, as its own script counts them (princeton-nlp/LLMBar, LLMEvaluator/evaluate.py).
#
# Its kappa is not Cohen's kappa of labels and verdicts: labels are coded 1 and 2, verdicts 1 and 0, where 0 stands for
# "the second output" as well as for no verdict at all. It is here to compare with the published files; the right one is
# `metareward.benchmarks.judge_pairs.PairQuality.kappa`.


def llmbar_statistics(judged: Sequence[JudgedPair]) -> dict[str, float | None]:
    """The numbers of a ``statistics.json``, shares in [0, 1]. All pairs must be judged in both orders."""
    original, swapped = ([pair.winners[order] for pair in judged] for order in (0, 1))
    labels = [pair.label for pair in judged]
    right = [[winner == label for winner, label in zip(said, labels, strict=True)] for said in (original, swapped)]
    coded = [[int(winner == 1) for winner in said] for said in (original, swapped)]
    kappas = [cohen_kappa(list(zip(said, labels, strict=True))) for said in coded]
    return {
        "correct_False": mean(right[0]),
        "correct_True": mean(right[1]),
        "correct_average": mean(right[0] + right[1]),
        "correct_both": mean([a and b for a, b in zip(*right, strict=True)]),
        "equal": mean([a == b for a, b in zip(original, swapped, strict=True)]),
        "kappa_False": kappas[0],
        "kappa_True": kappas[1],
        "kappa_average": mean([kappa for kappa in kappas if kappa is not None]),
        "kappa_agreement": cohen_kappa(list(zip(*coded, strict=True))),
    }
