"""A judge against pairwise labels: accuracy, agreement between the two orders, Cohen's kappa, and the judge's biases.

Metrics, over pairs whose label names the better output; each pair is judged in one order or in both:

* accuracy: mean over the orders; a tie counts 1/2, an unreadable verdict 0 (LLMBar's rule).
* accuracy_readable: over readable verdicts only. accuracy_without_ties: over verdicts that name a winner.
* accuracy_both_orders: the share of pairs where both orders name the label.
* positional_agreement: pairs with the same verdict in both orders, two unreadable ones included (LLMBar's rule);
  positional_agreement_readable: among pairs with two readable verdicts.
* accuracy_majority: the share of pairs where more verdicts name the label than the other output (JudgeBench's rule).
* macro_precision, macro_recall, macro_f1: means over the classes (output 1, output 2, tie) that occur, in all pairs and
  orders; an unreadable verdict is a miss (PandaLM's measures).
* kappa: Cohen's kappa of label and verdict, mean over the orders; kappa_between_orders: of the two orders' verdicts. An
  unreadable verdict is a class of its own.

Pairs labelled as ties count in accuracy_three_classes only, where a tie is the third class.

RewardBench's accuracy by subset, section and overall (allenai/reward-bench, rewardbench/constants.py): each row has a
chosen and a rejected answer. A scoring judge is correct when the chosen answer scores higher; a tie is wrong. A verdict
earns 1, 0, or 1/2 for a tie. An unreadable judgment earns 1/2 and is counted. A section is the mean of its subsets,
weighted by upstream's numbers of examples (math-prm counts as much as all code); the overall score is the plain mean of
the sections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from metareward.data.files import read_rows
from metareward.errors import UserError
from metareward.evaluation.input_checks import require_field, require_one_row
from metareward.evaluation.judge_quality.data import Pair, PairVerdicts, Winner
from metareward.method.stats import mean_or_none

_LENGTH_MARGIN = 30  # characters; AlpacaEval's threshold for "longer"


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A labelled pair, the judge's verdict in each order, and the outputs' lengths (characters) and generators."""

    id: str
    label: Winner
    winners: tuple[Winner | None, ...]
    chars: tuple[int, int]
    generators: tuple[str, str] | None = None
    subset: str = ""


@dataclass(frozen=True, slots=True)
class PairQuality:
    """The metrics; None where nothing can be counted."""

    n_pairs: int
    n_verdicts: int
    n_unreadable: int
    n_ties: int
    n_label_ties: int
    accuracy: float | None
    accuracy_by_order: tuple[float | None, ...]
    accuracy_both_orders: float | None
    accuracy_readable: float | None
    accuracy_without_ties: float | None
    accuracy_three_classes: float | None
    accuracy_majority: float | None
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    positional_agreement: float | None
    positional_agreement_readable: float | None
    kappa: float | None
    kappa_between_orders: float | None


def judged_pairs(pairs: Sequence[Pair], verdicts: Sequence[PairVerdicts]) -> tuple[JudgedPair, ...]:
    """The labelled pairs that have verdicts, none of them refused.

    Raises `UserError` for a verdict whose id is no pair's.
    """
    by_id = {each.id: each for each in verdicts}
    unknown = by_id.keys() - {pair.item.id for pair in pairs}
    if unknown:
        raise UserError(f"verdicts: {min(unknown)!r} is no pair's id; fix: give the pairs that were judged")
    return tuple(
        JudgedPair(pair.item.id, pair.label, by_id[pair.item.id].winners, pair.chars, pair.generators, pair.subset)
        for pair in pairs
        if pair.label is not None and pair.item.id in by_id and not by_id[pair.item.id].refused
    )


def pair_quality(judged: Sequence[JudgedPair]) -> PairQuality:
    """The metrics of one judge. Raises `ValueError` when some pairs are judged in one order and some in two."""
    counts = {len(pair.winners) for pair in judged}
    if len(counts) > 1:
        raise ValueError(f"some pairs are judged in {min(counts)} order, some in {max(counts)}")
    orders = max(counts, default=0)
    decided = [pair for pair in judged if pair.label]
    verdicts = [(pair.label, winner) for pair in decided for winner in pair.winners]
    all_verdicts = [(pair.label, winner) for pair in judged for winner in pair.winners]
    both = [pair for pair in judged if len(pair.winners) == 2]
    readable = [pair for pair in both if None not in pair.winners]
    by_order = [[credit(pair.label, pair.winners[i]) for pair in decided] for i in range(orders)]
    return PairQuality(
        n_pairs=len(judged),
        n_verdicts=len(all_verdicts),
        n_unreadable=sum(winner is None for _, winner in all_verdicts),
        n_ties=sum(winner == 0 for _, winner in all_verdicts),
        n_label_ties=len(judged) - len(decided),
        accuracy=mean_or_none([credit(label, winner) for label, winner in verdicts]),
        accuracy_by_order=tuple(mean_or_none(credits) for credits in by_order),
        accuracy_both_orders=mean_or_none([set(pair.winners) == {pair.label} for pair in decided]) if both else None,
        accuracy_readable=mean_or_none([credit(label, winner) for label, winner in verdicts if winner is not None]),
        accuracy_without_ties=mean_or_none([label == winner for label, winner in verdicts if winner]),
        accuracy_three_classes=mean_or_none([label == winner for label, winner in all_verdicts]),
        accuracy_majority=mean_or_none([_majority(pair) for pair in decided]),
        **_macro(all_verdicts),
        positional_agreement=mean_or_none([len(set(pair.winners)) == 1 for pair in both]),
        positional_agreement_readable=mean_or_none([len(set(pair.winners)) == 1 for pair in readable]),
        kappa=_mean_kappa([[(pair.label, pair.winners[i]) for pair in judged] for i in range(orders)]),
        kappa_between_orders=cohen_kappa([(pair.winners[0], pair.winners[1]) for pair in both]),
    )


def _majority(pair: JudgedPair) -> bool:
    other = 3 - pair.label
    return pair.winners.count(pair.label) > sum(winner == other for winner in pair.winners)


def _macro(verdicts: Sequence[tuple[Winner, Winner | None]]) -> dict[str, float | None]:
    """The means over classes of precision, recall and F1; a class without verdicts has precision 0."""
    counts, labels, winners = Counter(verdicts), Counter(a for a, _ in verdicts), Counter(b for _, b in verdicts)
    classes = (labels.keys() | winners.keys()) - {None}
    hits = {each: counts[each, each] for each in classes if each is not None}
    return {
        "macro_precision": mean_or_none([n / winners[each] if winners[each] else 0.0 for each, n in hits.items()]),
        "macro_recall": mean_or_none([n / labels[each] if labels[each] else 0.0 for each, n in hits.items()]),
        "macro_f1": mean_or_none([2 * n / (winners[each] + labels[each]) for each, n in hits.items()]),
    }


def credit(label: Winner, winner: Winner | None) -> float:
    """1 for naming the label's winner, 1/2 for a tie, 0 for the other output or an unreadable verdict."""
    return 0.5 if winner == 0 else float(winner == label)


def cohen_kappa(pairs: Sequence[tuple[object, object]]) -> float | None:
    """(observed - expected) / (1 - expected) agreement; None without pairs, or when both sides are one constant."""
    if not pairs:
        return None
    one, other = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / len(pairs)
    expected = sum(one[label] * other[label] for label in one) / len(pairs) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def _mean_kappa(by_order: Sequence[Sequence[tuple[object, object]]]) -> float | None:
    return mean_or_none([kappa for pairs in by_order if (kappa := cohen_kappa(pairs)) is not None])


def llmbar_statistics(judged: Sequence[JudgedPair]) -> dict[str, float | None]:
    """LLMBar's published ``statistics.json`` (princeton-nlp/LLMBar, LLMEvaluator/evaluate.py), shares in [0, 1].

    Only for comparison with the published files: their kappa codes labels as 1 and 2 but verdicts as 1 and 0, where 0
    is "the second output" as well as "unreadable". `PairQuality.kappa` is Cohen's kappa. All pairs must be judged in
    both orders.
    """
    original, swapped = ([pair.winners[order] for pair in judged] for order in (0, 1))
    labels = [pair.label for pair in judged]
    correct = [[a == label for a, label in zip(side, labels, strict=True)] for side in (original, swapped)]
    coded = [[int(winner == 1) for winner in side] for side in (original, swapped)]
    with_labels = [list(zip(side, labels, strict=True)) for side in coded]
    return {
        "correct_False": mean_or_none(correct[0]),
        "correct_True": mean_or_none(correct[1]),
        "correct_average": mean_or_none(correct[0] + correct[1]),
        "correct_both": mean_or_none([a and b for a, b in zip(*correct, strict=True)]),
        "equal": mean_or_none([a == b for a, b in zip(original, swapped, strict=True)]),
        "kappa_False": cohen_kappa(with_labels[0]),
        "kappa_True": cohen_kappa(with_labels[1]),
        "kappa_average": _mean_kappa(with_labels),
        "kappa_agreement": cohen_kappa(list(zip(*coded, strict=True))),
    }


def verdicts_by_length(pairs: Sequence[Pair], orders: int) -> tuple[PairVerdicts, ...]:
    """The length-only judge: the longer output wins in each of ``orders`` orders; equal lengths tie."""
    found = []
    for pair in pairs:
        one, other = pair.chars
        longer: Winner = 0 if one == other else 1 if one > other else 2
        found.append(PairVerdicts(pair.item.id, (longer,) * orders))
    return tuple(found)


def chance_pair_quality(judged: Sequence[JudgedPair]) -> Mapping[str, float | None]:
    """The expected metrics of `pair_quality` for a judge that names a random winner."""
    both = any(len(pair.winners) == 2 for pair in judged)
    decided = sum(pair.label != 0 for pair in judged)
    return {
        "accuracy": 0.5,
        "accuracy_both_orders": 0.25 if both else None,
        "accuracy_readable": 0.5,
        "accuracy_without_ties": 0.5,
        "accuracy_three_classes": decided / len(judged) / 2 if judged else None,
        "positional_agreement": 0.5 if both else None,
        "positional_agreement_readable": 0.5 if both else None,
        "kappa": 0.0,
        "kappa_between_orders": 0.0 if both else None,
    }


# --- biases


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Over ``n`` verdicts that name a winner: the share for the output shown first (1/2 is unbiased).

    A flip is a pair where the output in the same position won in both orders.
    """

    p_first_shown: float | None
    n: int
    flips_to_first_shown: int
    flips_to_second_shown: int


@dataclass(frozen=True, slots=True)
class LengthBias:
    """The share of verdicts for the longer output, over all pairs and those that differ by more than 30 characters.

    ``winner_length_excess`` is the mean of (winner - loser) / mean length of the two.
    """

    p_longer: float | None
    n: int
    p_longer_by_30: float | None
    n_by_30: int
    winner_length_excess: float | None


@dataclass(frozen=True, slots=True)
class SelfPreference:
    """Over ``n`` verdicts on pairs where exactly one output is by ``own``: how often judge and label prefer it."""

    own: str
    judge: float | None
    label: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Biases:
    """A judge's biases. ``label_length`` is the labels' own length bias: better outputs may well be longer."""

    position: PositionBias
    length: LengthBias
    label_length: LengthBias
    self_preference: SelfPreference | None


def biases(judged: Sequence[JudgedPair], own: str | None = None) -> Biases:
    """The biases of one judge; ``own`` is the generator of the judge's own outputs, None if unknown."""
    return Biases(
        position=position_bias(judged),
        length=_length_bias((pair, winner) for pair in judged for winner in pair.winners if winner),
        label_length=_length_bias((pair, pair.label) for pair in judged if pair.label),
        self_preference=None if own is None else _self_preference(judged, own),
    )


def position_bias(judged: Sequence[JudgedPair]) -> PositionBias:
    """The bias over pairs judged in both orders; in the second order output 2 is shown first."""
    both = [pair for pair in judged if len(pair.winners) == 2]
    first = [winner == shown for pair in both for shown, winner in zip((1, 2), pair.winners, strict=True) if winner]
    return PositionBias(
        p_first_shown=mean_or_none(first),
        n=len(first),
        flips_to_first_shown=sum(pair.winners == (1, 2) for pair in both),
        flips_to_second_shown=sum(pair.winners == (2, 1) for pair in both),
    )


def _length_bias(verdicts: Iterable[tuple[JudgedPair, Winner]]) -> LengthBias:
    chars = [(pair.chars[winner - 1], pair.chars[2 - winner]) for pair, winner in verdicts]
    longer = [winner > loser for winner, loser in chars if winner != loser]
    clearly = [winner > loser for winner, loser in chars if abs(winner - loser) > _LENGTH_MARGIN]
    excess = [2 * (winner - loser) / (winner + loser) for winner, loser in chars if winner + loser]
    return LengthBias(mean_or_none(longer), len(longer), mean_or_none(clearly), len(clearly), mean_or_none(excess))


def _self_preference(judged: Sequence[JudgedPair], own: str) -> SelfPreference:
    rows = []
    for pair in judged:
        names = pair.generators or ("", "")
        if names.count(own) == 1:
            rows += [(pair, names.index(own) + 1, winner) for winner in pair.winners if winner]
    return SelfPreference(
        own=own,
        judge=mean_or_none([winner == place for _, place, winner in rows]),
        label=mean_or_none([pair.label == place for pair, place, _ in rows if pair.label]),
        n=len(rows),
    )


# --- RewardBench ---

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One row: the judge's credit in [0, 1], and the lengths of the chosen and the rejected answer (characters)."""

    subset: str
    section: str | None
    credit: float
    readable: bool
    chars: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SectionScores:
    """Accuracies in [0, 1]. ``overall`` is the mean of the present sections; ``missing`` names absent subsets."""

    overall: float | None
    sections: Mapping[str, float]
    subsets: Mapping[str, float]
    counts: Mapping[str, int]
    missing: tuple[str, ...]
    n_unreadable: int

    @property
    def caveats(self) -> tuple[str, ...]:
        """What keeps the overall accuracy from being RewardBench's."""
        sizes = {name: size for those in SECTIONS.values() for name, size in those.items()}
        parts = [name for name, size in sizes.items() if 0 < self.counts.get(name, 0) < size]
        others = [name for name in self.counts if name not in sizes]
        found = [f"{len(self.missing)} of {len(sizes)} subsets are missing"] if self.missing else []
        found += [f"{len(parts)} subsets have fewer rows than upstream's"] if parts else []
        found += [f"subsets that aren't upstream's: {', '.join(others[:4])}"] if others else []
        return (f"not comparable with RewardBench's scores: {'; '.join(found)}",) if found else ()


def read_choices(path: Path) -> tuple[Choice, ...]:
    """Rows ``{"subset", "chosen", "rejected"}`` with ``score_chosen`` and ``score_rejected``, or with a ``winner``
    (``chosen``, ``rejected``, ``tie`` or null). A subset that isn't upstream's may name its ``section``."""
    choices, rows = [], read_rows(path)
    known = {name.casefold(): name for those in SECTIONS.values() for name in those}
    for name in [each for each in ("id", "prompt") if all(row.has(each) for row in rows)]:
        keyed = (((row.text("subset"), row.text(name), row.text("chosen"), row.text("rejected")), row) for row in rows)
        require_one_row(keyed, name, "keep one row for each prompt and pair of answers")
    for row in rows:
        subset = row.text("subset")
        if known.get(subset.casefold(), subset) != subset:
            raise row.error("subset", f"is {subset!r}", f"write {known[subset.casefold()]}")
        if row.has("score_chosen", "winner"):
            raise row.error("winner", "stands beside scores", "give one of them")
        if "score_chosen" in row.fields:
            require_field(row, "score_rejected", "give both scores, null for an unreadable one")
            chosen, rejected = row.optional_number("score_chosen"), row.optional_number("score_rejected")
            readable = chosen is not None and rejected is not None
            earned = 0.5 if chosen is None or rejected is None else float(chosen > rejected)
        elif "winner" in row.fields:
            winner = row.fields["winner"]
            if winner not in ("chosen", "rejected", "tie", None):
                raise row.error("winner", "is none of the known words", "give chosen, rejected, tie or null")
            readable, earned = winner is not None, {"chosen": 1.0, "rejected": 0.0}.get(winner, 0.5)
        else:
            raise row.error("winner", "is missing", "give it, or score_chosen and score_rejected")
        section = row.text("section") if row.has("section") else None
        chars = (len(row.text("chosen")), len(row.text("rejected")))
        choices.append(Choice(subset, section, earned, readable, chars))
    return tuple(choices)


def choices_by_length(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The length-only judge: the longer answer scores higher; a tie is wrong, as for any scoring judge."""
    return tuple(replace(each, credit=float(each.chars[0] > each.chars[1]), readable=True) for each in choices)


def section_scores(choices: Sequence[Choice]) -> SectionScores:
    """The accuracies of one judge."""
    by_subset: dict[str, list[Choice]] = {}
    for choice in choices:
        by_subset.setdefault(choice.subset, []).append(choice)
    subsets = {name: fmean(each.credit for each in those) for name, those in by_subset.items()}
    counts = {name: len(those) for name, those in by_subset.items()}
    own = {name: those[0].section or name for name, those in by_subset.items()}
    sections = combine(subsets, counts, own)
    return SectionScores(
        overall=fmean(sections.values()) if sections else None,
        sections=sections,
        subsets=subsets,
        counts=counts,
        missing=tuple(name for weights in SECTIONS.values() for name in weights if name not in subsets),
        n_unreadable=sum(not choice.readable for choice in choices),
    )


def combine(subsets: Mapping[str, float], counts: Mapping[str, int], sections: Mapping[str, str]) -> dict[str, float]:
    """Accuracies by section. Upstream's subsets have upstream's weights; others weigh by ``counts`` in ``sections``."""
    weights = {name: (section, weight) for section, those in SECTIONS.items() for name, weight in those.items()}
    found: dict[str, list[tuple[float, int]]] = {}
    for name, accuracy in subsets.items():
        section, weight = weights.get(name) or (sections[name], counts[name])
        found.setdefault(section, []).append((accuracy, weight))
    return {
        section: sum(accuracy * weight for accuracy, weight in those) / sum(weight for _, weight in those)
        for section, those in found.items()
    }
