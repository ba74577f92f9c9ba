"""A judge against pairwise labels: accuracy by several named rules, agreement of both orders with each other, kappa.

The label names the better of two outputs. Every pair is judged in one order (a grading judge) or in both.

* accuracy: mean over the orders; a tie of the judge counts 1/2, an unreadable verdict earns nothing (LLMBar's rule).
* accuracy_readable: over the readable verdicts alone. accuracy_without_ties: over those that name a winner.
* accuracy_both_orders: pairs won by the label in both orders.
* positional_agreement: pairs with the same verdict in both orders, two unreadable ones included (LLMBar's rule);
  positional_agreement_readable: among the pairs with two readable ones.
* kappa: Cohen's, of label and verdict, mean over the orders; kappa_between_orders: of the two orders' verdicts. An
  unreadable verdict is a class of its own.

Pairs that the label ties count in accuracy_three_classes alone, where a tie is a third answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from metareward.benchmarks.judge_files import Pair, PairVerdicts, Winner
from metareward.errors import UserError

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
